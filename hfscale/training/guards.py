"""A training stops before numbers that are not finite reach its weights or a checkpoint."""

import math
from typing import Any

import torch
from transformers import Trainer

ADVICE = "try a lower learning_rate"  # to who finds numbers that are not finite


def guard_gradients(trainer: Trainer) -> None:
    """Let a trainer stop, with FloatingPointError, before a step whose gradients are not finite.

    Their norm is computed at each step anyway, so this costs a comparison. In float16 such steps
    are left out by the scaler.
    """
    if trainer.args.fp16:
        return
    clip = trainer.accelerator.clip_grad_norm_

    def checked(*args: Any, **kwargs: Any) -> Any:
        norm = clip(*args, **kwargs)
        if norm is not None and not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradients became {float(norm)} at step {trainer.state.global_step + 1}; the "
                f"weights of the last checkpoint are good; {ADVICE}"
            )
        return norm

    trainer.accelerator.clip_grad_norm_ = checked


def check_weights(model: torch.nn.Module, step: int) -> None:
    """Raise FloatingPointError for weights that are NaN or infinite.

    Shards are passed over: one rank would stop alone. The norm of all their gradients was finite.
    """
    for name, parameter in model.named_parameters():
        if type(parameter.data) is torch.Tensor and not torch.isfinite(parameter.data).all():
            raise FloatingPointError(
                f"{name} is not finite at step {step}, of which no checkpoint is kept; the one "
                f"before it is good; {ADVICE}"
            )
