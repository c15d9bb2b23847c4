"""A training stops before numbers that are not finite reach its weights or a checkpoint."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import Trainer

from hfscale.manifest import check_manifest
from hfscale.process import InputError, from_main_rank

ADVICE = "try a lower learning_rate"  # to who finds numbers that are not finite
# Under these, every rank holds whole gradients.
WHOLE_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# PyTorch divides by the norm plus this much, so clips a little below the limit already.
CLIP_EPSILON = 1e-6


def guard_gradients(trainer: Trainer) -> None:
    """Let a trainer stop, with FloatingPointError, before a step whose gradients are not finite.

    Their norm is computed at each step anyway, so this costs a comparison. In float16 such steps
    are left out by the scaler.
    """
    if trainer.args.fp16:
        return
    accelerator = trainer.accelerator
    clip = accelerator.clip_grad_norm_

    def checked(parameters: Iterable[torch.Tensor], max_norm: float, **kwargs: Any) -> Any:
        parameters = list(parameters)
        if accelerator.distributed_type in WHOLE_GRADIENTS and not _has_shards(parameters):
            norm = clip_where_above(parameters, max_norm)
        else:
            norm = clip(parameters, max_norm, **kwargs)
        if norm is not None and not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradients became {float(norm)} at step {trainer.state.global_step + 1}; "
                f"{ADVICE}"
            )
        return norm

    trainer.accelerator.clip_grad_norm_ = checked


def clip_where_above(parameters: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """`torch.nn.utils.clip_grad_norm_`, bit for bit, but for its multiplication by 1 of gradients
    that are short enough.

    Returns:
        The norm of all gradients as it was before.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm(gradients)
    if float(norm) > max_norm - 2 * CLIP_EPSILON:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _has_shards(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether a gradient is a part of one, so that its norm takes all ranks."""
    gradients = [parameter.grad for parameter in parameters]
    return any(type(gradient) not in (torch.Tensor, type(None)) for gradient in gradients)


def check_finite(trainer: Trainer) -> None:
    """Raise FloatingPointError, on all ranks together, if a weight is NaN or infinite on one of
    them. Each looks at the shards that it holds. Collective.

    The optimizer's state needs no look: before squares of gradients overflow in it, their norm
    does, at which `guard_gradients` stops.
    """
    for rank, name in enumerate(gather_object([_first_not_finite(trainer)])):
        if name is not None:
            raise FloatingPointError(
                f"{name} is not finite at step {trainer.state.global_step} (rank {rank}), of which "
                f"no checkpoint is kept; {ADVICE}"
            )


def _first_not_finite(trainer: Trainer) -> str | None:
    """The name of a tensor with such numbers."""
    model: Any = trainer.model
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return name
    return None


@torch.no_grad()
def _is_finite(tensor: torch.Tensor) -> bool:
    part = _local_part(tensor)
    if not part.is_floating_point():
        return True
    # Much quicker than to look at each number. A sum can overflow where all of them are finite.
    total = part.sum(dtype=torch.float32)
    return math.isfinite(total.item()) or bool(torch.isfinite(part).all())


def _local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor: all of it, or its shard under ZeRO-3 or FSDP2."""
    zero3_shard = getattr(tensor, "ds_tensor", None)
    if zero3_shard is not None:
        return zero3_shard
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def guard_best(trainer: Trainer) -> None:
    """Let a trainer verify the best checkpoint before it becomes the final model.

    Loading it raises InputError, on all ranks together, for one that is not as it was written.
    """
    load = trainer._load_best_model

    def load_verified() -> None:
        best = trainer.state.best_model_checkpoint
        assert best is not None, "upstream loads one that it knows"
        if problem := from_main_rank(lambda: check_manifest(best)):
            raise InputError(
                f"load_best_model_at_end: {best} is the best checkpoint and not whole any more "
                f"({problem}); no final model is written; put it back and give --resume auto, or "
                "take a later checkpoint"
            )
        load()

    vars(trainer)["_load_best_model"] = load_verified
