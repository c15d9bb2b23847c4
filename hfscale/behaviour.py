"""What a loaded model does, tried out on a few random tokens: neither its name nor its
configuration tells."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel
from transformers.distributed.utils import is_local_dist_rank_0
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

TRIED_TOKENS = 20
# Shares of the logits' spread. Over 140 architectures with tiny random weights, rounding in float32
# changed at most 3e-5 of it, and another document, or a later token, at least 2e-3.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.1}


def forward_takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the model (below its adapter) has an input of this name. Trainer drops columns of
    other names.
    """
    below_adapter = getattr(model, "get_base_model", None)
    plain = below_adapter() if below_adapter else model
    return name in inspect.signature(plain.forward).parameters


def random_ids(model: PreTrainedModel, size: int, seed: int) -> torch.Tensor:
    """`size` token ids of the model's vocabulary; the global random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.get_text_config().vocab_size, (size,), generator=generator)


def is_causal(model: PreTrainedModel, size: int) -> bool:
    """Whether no logit changes with a later token, tried on two rows of `size` tokens with equal
    first halves."""
    half = size // 2
    first = random_ids(model, size, seed=0)
    second = random_ids(model, size, seed=1)
    second[:half] = first[:half]
    with _as_evaluated(model):
        one, other = _logits(model, {"input_ids": torch.stack([first, second])})
    return logits_equal(one[:half], other[:half])


def logits_on_trial(model: PreTrainedModel, size: int) -> torch.Tensor:
    """For a row of `size` tokens, the same ones for every model of the same vocabulary."""
    with _as_evaluated(model):
        return _logits(model, {"input_ids": random_ids(model, size, 0)[None]})


def reads_as_alone(
    model: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    documents: Sequence[tuple[int, int, int]],
) -> bool:
    """Whether each document, given as (row, start, stop), has in this batch the logits that it has
    alone.

    In the batch the model gets what it gets in training: every column that it takes, no attention
    mask, no cache; alone the token ids and nothing else. Every rank asks, and gets the answer of
    the first.
    """
    answer = [has_weights() and _reads_as_alone(model, batch, documents)]
    return broadcast_object_list(answer)[0]


def run_as_in_training(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> None:
    """One forward pass in training mode; it raises whatever the model raises there, such as for an
    input that only training needs."""
    if has_weights():
        with _as_evaluated(model):
            model.train()
            _logits(model, {name: ids for name, ids in batch.items() if forward_takes(model, name)})


def has_weights() -> bool:
    """Whether this rank has what was loaded: FSDP hands out what the first rank of each machine has
    read."""
    return not is_fsdp_enabled() or is_local_dist_rank_0()


def _reads_as_alone(
    model: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    documents: Sequence[tuple[int, int, int]],
) -> bool:
    with _as_evaluated(model):
        together = _logits(
            model, {name: ids for name, ids in batch.items() if forward_takes(model, name)}
        )
        for row, start, stop in documents:
            alone = _logits(model, {"input_ids": batch["input_ids"][row : row + 1, start:stop]})
            if not logits_equal(together[row, start:stop], alone[0]):
                return False
    return True


def _logits(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: ids.to(model.device) for name, ids in inputs.items() if name != "labels"}
    return model(**inputs, use_cache=False).logits


def logits_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the two differ by no more than rounding (see `TOLERANCE`)."""
    finite = one.isfinite() & other.isfinite()  # broken weights are found by what uses them
    if not finite.any():
        return True
    tolerance = TOLERANCE.get(one.dtype, TOLERANCE[torch.float32])
    difference = (one[finite].float() - other[finite].float()).abs().max()
    spread = other[finite].float().std()
    return bool(difference <= tolerance * spread)


@contextlib.contextmanager
def _as_evaluated(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients, with whole weights; model and random state stay as found."""
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), _gathered(model):
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _gathered(model: PreTrainedModel) -> Iterator[None]:
    """Under ZeRO-3 each module's weights are gathered while it computes; DeepSpeed's engine, which
    else does that, is made only when training begins."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    open_now: dict[torch.nn.Module, contextlib.AbstractContextManager] = {}

    def gather(module: torch.nn.Module, inputs: tuple) -> None:
        open_now[module] = deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False)))
        open_now[module].__enter__()

    def release(module: torch.nn.Module, inputs: tuple, output: object) -> None:
        open_now.pop(module).__exit__(None, None, None)

    for buffer in model.buffers():  # the engine would move them
        buffer.data = buffer.data.to(model.device)
    hooks = [module.register_forward_pre_hook(gather) for module in model.modules()]
    hooks += [module.register_forward_hook(release) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
