"""Where a model attends, found by what its modules return: every architecture names them
otherwise.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfscale.behaviour import random_ids
from hfscale.process import InputError

TRIED_TOKENS = 3


class AttentionLayer(NamedTuple):
    """A module that returns attention weights, and the matrix in it that mixes its heads."""

    name: str
    module: nn.Module
    output_matrix: nn.Module  # reads (batch, tokens, width), the heads side by side
    heads: int
    place: int  # of its weights among `attentions`, where some models have other things too


class _Ran(NamedTuple):
    """One call of a module."""

    name: str
    module: nn.Module
    inputs: list[Any]
    output: Any


def attention_layers(model: PreTrainedModel) -> list[AttentionLayer]:
    """The self-attention of each layer that has one, in the order in which they run.

    Raises InputError: the model returns no weights for each head, at all or as it was loaded, or
    not of the same number of heads in all layers.
    """
    implementation = model.config._attn_implementation
    if implementation not in (None, "eager"):
        raise InputError(
            f"model: attn_implementation {implementation} returns no weights; load it with "
            'attn_implementation="eager"'
        )
    layers = _try_out(model)
    if not layers:
        raise InputError(
            f"model: {type(model).__name__} returns no attention weights of heads, as models "
            "without attention do; give one whose layers attend"
        )
    if len({layer.heads for layer in layers}) > 1:
        raise InputError(
            f"model: the layers of {type(model).__name__} have different numbers of heads; give "
            "one whose layers have the same"
        )
    return layers


def blocks_of(model: PreTrainedModel, layers: list[AttentionLayer]) -> list[nn.Module]:
    """The blocks of which the attention layers are parts, whether they attend or not."""
    parts = layers[0].name.split(".")
    place = next(i for i, part in enumerate(parts) if part.isdigit())
    return list(model.get_submodule(".".join(parts[:place])).children())


@torch.inference_mode()
def _try_out(model: PreTrainedModel) -> list[AttentionLayer]:
    """The modules that return the weights (1, heads, tokens, tokens) of a few tokens."""
    ids = random_ids(model, TRIED_TOKENS, seed=0)[None].to(model.device)
    with _watched(model) as ran:
        outputs = model.eval()(ids, output_attentions=True, use_cache=False)
    square = (TRIED_TOKENS, TRIED_TOKENS)
    layers = []
    for place, weights in enumerate(getattr(outputs, "attentions", None) or ()):
        if weights is not None and weights.dim() == 4 and weights.shape[-2:] == square:
            layer = _layer_of(weights, ran, place)
            layers += [layer] if layer else []
    return layers


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[_Ran]]:
    """Everything that runs below the model, in the order in which it ends."""
    ran: list[_Ran] = []

    def watch(name: str, part: nn.Module) -> Any:
        def note(module: nn.Module, inputs: tuple, named_inputs: dict, output: Any) -> None:
            ran.append(_Ran(name, module, [*inputs, *named_inputs.values()], output))

        return part.register_forward_hook(note, with_kwargs=True)

    handles = [watch(name, part) for name, part in model.named_modules()]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _layer_of(weights: torch.Tensor, ran: list[_Ran], place: int) -> AttentionLayer | None:
    """The innermost module that returned the very weights."""
    for end, one in enumerate(ran):
        if isinstance(one.output, tuple | list) and _is_in(weights, one.output):
            matrix = _output_matrix(ran, end)
            if matrix is not None:
                return AttentionLayer(one.name, one.module, matrix, weights.shape[1], place)
    return None


def _output_matrix(ran: list[_Ran], end: int) -> nn.Module | None:
    """The matrix that reads the heads: the last in the attention that ended at `end` but for
    those that read what the attention itself does, else the first after it.
    """
    attention = ran[end]
    inside = list(attention.module.modules())
    for one in reversed(ran[:end]):
        is_inside = any(one.module is module for module in inside)
        if _is_matrix(one) and is_inside and not _is_in(one.inputs[0], attention.inputs):
            return one.module
    return next((one.module for one in ran[end:] if _is_matrix(one)), None)


def _is_matrix(one: _Ran) -> bool:
    return isinstance(one.module, nn.Linear | Conv1D)


def _is_in(tensor: torch.Tensor, values: Iterable[Any]) -> bool:
    return any(value is tensor for value in values)
