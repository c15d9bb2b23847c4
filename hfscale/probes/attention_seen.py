"""What goes into the attention of a layer and what comes out of it, and its queries, keys and
values once more from the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfscale.probes.attention_layers import AttentionLayer
from hfscale.process import InputError

# How upstream calls what the steps know: one matrix that gives all queries, then all keys, then all
# values; one that gives query, key and value of each head; norms of queries and keys.
SIDE_BY_SIDE = ("c_attn", "qkv_proj")
HEAD_BY_HEAD = "query_key_value"
NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
WITHOUT = "leave --explain out: the maps and scores need none of it"


class Seen(NamedTuple):
    """What went into the attention of a layer and what came out of it, on the CPU."""

    x: torch.Tensor  # (tokens, width) in float64
    inputs: tuple  # of its forward, as the model gave them
    named_inputs: dict[str, Any]
    output: torch.Tensor  # (tokens, width)
    weights: torch.Tensor  # (heads, tokens, tokens)
    weighted: torch.Tensor  # (tokens, heads x d_v): what the output matrix reads
    norm_shares_memory: bool  # of the queries that are normed with those that the matrix gives
    norm_width: int  # of the vectors that are normed


class Projected(NamedTuple):
    """Query, key and value of each head, (heads, tokens, d_k), in float64; there can be fewer heads
    of keys and values.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class _Call(NamedTuple):
    """The last call of a module."""

    inputs: tuple
    named_inputs: dict[str, Any]
    output: Any


def check_matrices(place: str, module: nn.Module) -> None:
    """Raise InputError unless queries, keys and values come from matrices that are known."""
    if len(matrices_of(module)) in (1, 3):
        return
    names = [name for name, part in module.named_children() if isinstance(part, nn.Linear)]
    known = ", ".join(("q_proj with k_proj and v_proj", *SIDE_BY_SIDE, HEAD_BY_HEAD))
    raise InputError(
        f"{place}: {type(module).__name__} has the matrices {', '.join(names)}; the steps know "
        f"queries, keys and values by {known}; {WITHOUT}"
    )


def matrices_of(module: nn.Module) -> list[nn.Module]:
    """Those of queries, keys and values, or the one that gives all three."""
    fused = [name for name in (*SIDE_BY_SIDE, HEAD_BY_HEAD) if has_module(module, name)]
    separate = [f"{name}_proj" for name in "qkv" if has_module(module, f"{name}_proj")]
    return [getattr(module, name) for name in fused or separate]


def norms_of(module: nn.Module) -> list[Any]:
    """Those of queries and of keys, if it has them."""
    pairs = [pair for pair in NORMS if has_module(module, pair[0])]
    return [getattr(module, name) for name in pairs[0]] if pairs else []


def has_module(module: nn.Module, name: str) -> bool:
    """Whether a module has a part of this name: some have None in its place."""
    return isinstance(getattr(module, name, None), nn.Module)


def seen_by(model: PreTrainedModel, attention: AttentionLayer, input_ids: torch.Tensor) -> Seen:
    """What really went through the attention of a layer."""
    module = attention.module
    watched = [module, attention.output_matrix, matrices_of(module)[0], *norms_of(module)[:1]]
    with _calls_of(watched) as calls:
        model.eval()(input_ids, output_attentions=True, use_cache=False)
    whole, mixed, projected, *normed = (calls[part] for part in watched)
    output, *others = whole.output
    x = whole.inputs[0] if whole.inputs else whole.named_inputs["hidden_states"]
    weights = next(part for part in others if getattr(part, "ndim", 0) == 4)
    norm_reads = normed[0].inputs[0] if normed else torch.empty(0)
    return Seen(
        x=x[0].cpu().double(),  # on the CPU: not every accelerator has float64
        inputs=whole.inputs,
        named_inputs=whole.named_inputs,
        output=output[0].cpu(),
        weights=weights[0].cpu(),
        weighted=mixed.inputs[0][0].cpu(),
        norm_shares_memory=_memory(norm_reads) == _memory(projected.output),
        norm_width=norm_reads.shape[-1],
    )


@contextmanager
def _calls_of(modules: list[nn.Module]) -> Iterator[dict[nn.Module, _Call]]:
    """What goes into modules and comes out."""
    calls: dict[nn.Module, _Call] = {}

    def note(module: nn.Module, inputs: tuple, named_inputs: dict, output: Any) -> None:
        calls[module] = _Call(inputs, named_inputs, output)

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def project(seen: Seen, attention: AttentionLayer) -> Projected:
    """Query, key and value of what the attention reads.

    Raises RuntimeError: shapes do not fit, or so many heads cannot share the keys and values.
    """
    heads = attention.heads
    d_v = seen.weighted.shape[-1] // heads
    products = [affine(seen.x, matrix) for matrix in matrices_of(attention.module)]
    if has_module(attention.module, HEAD_BY_HEAD):
        q, k, v = products[0].unflatten(-1, (heads, 3, -1)).unbind(-2)
    elif len(products) == 1:
        of_keys = (products[0].shape[-1] - heads * d_v) // 2
        widths = [heads * d_v, of_keys, of_keys]
        q, k, v = (part.unflatten(-1, (-1, d_v)) for part in products[0].split(widths, dim=-1))
    else:
        d_k = products[0].shape[-1] // heads
        q, k = (product.unflatten(-1, (-1, d_k)) for product in products[:2])
        v = products[2].unflatten(-1, (k.shape[-2], -1))
    if heads % k.shape[-2]:
        raise RuntimeError(f"{k.shape[-2]} key/value heads for {heads} heads")
    return Projected(*(part.transpose(0, 1) for part in (q, k, v)))


def affine(x: torch.Tensor, matrix: Any) -> torch.Tensor:
    """A Linear or Conv1D in float64."""
    weight = matrix.weight.cpu().double()
    product = x @ (weight if isinstance(matrix, Conv1D) else weight.T)
    return product if matrix.bias is None else product + matrix.bias.cpu().double()
