"""One head step by step, with the model's numbers.

softmax(Q K^T / sqrt(d_k)) V (Vaswani et al. 2017, arXiv:1706.03762), with what later models put
into it: key/value heads that several heads share (Ainslie et al. 2023, arXiv:2305.13245), queries
and keys that are normed (Dehghani et al. 2023, arXiv:2302.05442) and rotated by their position (Su
et al. 2021, arXiv:2104.09864). Everything is computed in float64 from the weights, without calling
the model's attention, and compared with what that gave.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.probes.attention_layers import AttentionLayer, attention_layers, blocks_of
from hfscale.probes.attention_seen import (
    WITHOUT,
    Projected,
    Seen,
    affine,
    check_matrices,
    matrices_of,
    norms_of,
    project,
    seen_by,
)
from hfscale.process import InputError

TOLERANCE = 1e-5  # within which a result counts as the model's; of the largest number if above 1
# A share of the spread of the model's own numbers: beyond it a difference is no rounding.
LARGEST_ROUNDING = 1e-3
SHOWN_NUMBERS = 4  # in a sentence
SHOWN_RESULTS = {
    "weights": "A, the weights,",
    "head": "Z, what the head gives,",
    "output": "O, what the layer's attention gives,",
}


class Step(TypedDict):
    """One step of `explain_head`: a matrix whose rows are tokens."""

    name: str
    formula: str
    note: str
    shape: list[int]
    columns: list[str] | None  # what they are, if they are neither numbers of a vector nor tokens
    values: list[list[float]] | None


class Explanation(TypedDict):
    """One head step by step, and how far the result is from what the model computed."""

    layer: int
    head: int
    heads: int
    kv_head: int
    kv_heads: int
    d_k: int
    divisor: float
    remarks: list[str]
    difference: dict[str, float]
    tolerance: float
    equal: bool
    steps: list[Step]


class _Changed(NamedTuple):
    """Queries and keys after a change, and how it is told."""

    q: torch.Tensor
    k: torch.Tensor
    formula: str
    q_note: str
    k_note: str
    before: list[Step]  # what has to be shown first


class _Walk(NamedTuple):
    """The head that is explained, and what its layer did."""

    place: str  # where an error is
    attention: AttentionLayer
    seen: Seen
    tokens: list[str]
    head: int
    kv_head: int
    group: int  # heads that share a key/value head


class _Attended(NamedTuple):
    """What queries, keys and values give."""

    weights: torch.Tensor  # (heads, tokens, tokens)
    concatenated: torch.Tensor  # (tokens, heads x d_v)
    output: torch.Tensor  # (tokens, width)
    divisor: float
    steps: list[Step]


@torch.inference_mode()
def explain_head(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    layer: int,
    head: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Explanation:
    """`steps` with name, formula, and values as nested lists, and how far the weights, the head's
    output and the layer's output, all heads side by side and times W_O, are from what the model
    computed. With a tokenizer, notes name tokens by their text.

    Raises InputError: no such layer or head; the layer attends in a way that the steps do not know,
    by the modules that it has or by the numbers that it gives.
    """
    layers = attention_layers(model)
    place = f"explain {layer} {head}"
    if not (0 <= layer < len(layers) and 0 <= head < layers[0].heads):
        blocks = len(blocks_of(model, layers))
        counted = f" (of {blocks}, those that attend are counted)" if blocks > len(layers) else ""
        raise InputError(
            f"{place}: expected a layer from 0 to {len(layers) - 1}{counted} and a head from 0 to "
            f"{layers[0].heads - 1}"
        )
    attention = layers[layer]
    check_matrices(place, attention.module)
    seen = seen_by(model, attention, input_ids)
    try:
        projected = project(seen, attention)
        group = attention.heads // len(projected.k)
        tokens = _texts(input_ids, tokenizer)
        walk = _Walk(place, attention, seen, tokens, head, head // group, group)
        return _explain(layer, walk, projected)
    except RuntimeError as error:  # shapes that do not fit together
        raise InputError(
            f"{place}: {type(attention.module).__name__} does something that the steps do not "
            f"know: {' '.join(str(error).split())[:120]}; {WITHOUT}"
        ) from None


def _explain(layer: int, walk: _Walk, projected: Projected) -> Explanation:
    q, k, v = projected
    steps = _first_steps(walk, projected)
    changes = _changes(walk)
    marks = ""  # as many as there were changes
    for change in changes:
        changed = change(walk, q, k)
        q, k = changed[:2]
        q_formula, k_formula = (changed.formula.format(f"{name}{marks}") for name in "QK")
        marks += "'"
        steps += [
            *changed.before,
            _step(f"Q{marks}", q_formula, q[walk.head], changed.q_note),
            _step(f"K{marks}", k_formula, k[walk.kv_head], changed.k_note),
        ]
    attended = _attend(walk, Projected(q, k, v), marks)
    difference, equal = _compare(walk, attended)
    return {
        "layer": layer,
        "head": walk.head,
        "heads": walk.attention.heads,
        "kv_head": walk.kv_head,
        "kv_heads": len(k),
        "d_k": q.shape[-1],
        "divisor": attended.divisor,
        "remarks": _remarks(walk, is_rotated=_rotate in changes),
        "difference": difference,
        "tolerance": TOLERANCE,
        "equal": equal,
        "steps": steps + attended.steps,
    }


# ---- what the model did


def _compare(walk: _Walk, attended: _Attended) -> tuple[dict[str, float], bool]:
    """The largest difference from the model's own numbers, of each result, and whether all are
    within the tolerance, which is of the largest number where that is above 1: the model computes
    in float32.

    Raises InputError: one is larger than any rounding, so that the model did something else.
    """
    head = _of_head(attended.concatenated, walk)
    compared = {
        "weights": (attended.weights, walk.seen.weights),
        "head": (head, _of_head(walk.seen.weighted, walk)),
        "output": (attended.output, walk.seen.output),
    }
    differences = {}
    equal = True
    for name, (computed, of_model) in compared.items():
        difference = (computed - of_model).abs().max().item()
        if not difference <= LARGEST_ROUNDING * max(of_model.std().item(), TOLERANCE):
            raise InputError(
                f"{walk.place}: {type(walk.attention.module).__name__} does something that the "
                f"steps do not know: {SHOWN_RESULTS[name]} differs by {difference:.2g} from the "
                f"model's own; {WITHOUT}"
            )
        differences[name] = difference
        equal &= difference <= TOLERANCE * max(1.0, of_model.abs().max().item())
    return differences, equal


def _of_head(side_by_side: torch.Tensor, walk: _Walk) -> torch.Tensor:
    return side_by_side.unflatten(-1, (walk.attention.heads, -1))[:, walk.head]


# ---- X, Q, K, V


def _first_steps(walk: _Walk, projected: Projected) -> list[Step]:
    """What the attention reads, and query, key and value of the head."""
    q, k, v = projected
    matrices = matrices_of(walk.attention.module)
    q_matrix, k_matrix, v_matrix = matrices if len(matrices) == 3 else matrices * 3
    shared = f"of key/value head {walk.kv_head}" if walk.group > 1 else ""
    return [
        _step("X", "what the attention of the layer reads", walk.seen.x),
        _step("Q", _written("X W_Q", q_matrix), q[walk.head]),
        _step("K", _written("X W_K", k_matrix), k[walk.kv_head], shared),
        _step("V", _written("X W_V", v_matrix), v[walk.kv_head], shared),
    ]


def _written(product: str, matrix: Any) -> str:
    """A product with a matrix W_..., and its bias if it has one."""
    return product if matrix.bias is None else f"{product} + b_{product[-1]}"


# ---- what happens to queries and keys


def _changes(walk: _Walk) -> list[Callable[[_Walk, torch.Tensor, torch.Tensor], _Changed]]:
    """Norm and rotation, as far as the layer has them, in its order."""
    changes: list[Callable[[_Walk, torch.Tensor, torch.Tensor], _Changed]]
    changes = [_rotate] if _is_rotated(walk) else []
    if norms_of(walk.attention.module):
        changes.insert(0 if walk.seen.norm_shares_memory else len(changes), _norm)
    return changes


def _is_rotated(walk: _Walk) -> bool:
    """Whether the layer uses the angles that it is given: some give them to layers without a
    rotation too. Tried out without any angle.
    """
    angles = walk.seen.named_inputs.get("position_embeddings")
    if angles is None:
        return False
    module = walk.attention.module
    is_pair = isinstance(angles, tuple) and len(angles) == 2
    if not is_pair or not hasattr(_file_of(module), "apply_rotary_pos_emb"):
        raise InputError(
            f"{walk.place}: the rotation of {type(module).__name__} is none by cosines and sines; "
            f"{WITHOUT}"
        )
    cos, sin = angles
    without = {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}
    output = module(*walk.seen.inputs, **(walk.seen.named_inputs | without))[0]
    return not torch.equal(output[0].cpu(), walk.seen.output)


def _file_of(module: nn.Module) -> Any:
    """The module of Python in which an upstream class is defined."""
    return sys.modules[type(module).__module__]


def _norm(walk: _Walk, q: torch.Tensor, k: torch.Tensor) -> _Changed:
    """Each query and key divided by the root of the mean of its squares, times learned factors."""
    q_norm, k_norm = norms_of(walk.attention.module)
    per_head = walk.seen.norm_width == q.shape[-1]
    over = "" if per_head else ", the mean over the numbers of all heads"
    times = " x g" if any(True for _ in q_norm.parameters()) else ""
    formula = "{0} / sqrt(mean({0}^2) + " + f"{_epsilon(q_norm):g}){times}{over}"

    def change(norm: Any, vectors: torch.Tensor, head: int) -> tuple[torch.Tensor, str]:
        normed, divided_by, factors = _root_mean_square(walk, norm, vectors, per_head)
        last = divided_by[head if per_head else 0, -1].item()
        note = f"{_last_token(walk)} is divided by {last:.4f}"
        first = 0 if per_head else head * vectors.shape[-1]
        few = ", ".join(f"{g:.4f}" for g in factors[first:][:SHOWN_NUMBERS].tolist())
        return normed, note + (f"; g begins {few}" if times else "")

    q_normed, q_note = change(q_norm, q, walk.head)
    k_normed, k_note = change(k_norm, k, walk.kv_head)
    return _Changed(q_normed, k_normed, formula, q_note, k_note, before=[])


def _root_mean_square(
    walk: _Walk, norm: Any, vectors: torch.Tensor, per_head: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors (heads, tokens, d_k) normed, each by itself or those of all heads together, what
    they were divided by, (heads or 1, tokens), and the learned factors.

    Raises InputError: the module's own numbers are others.
    """
    together = vectors if per_head else vectors.transpose(0, 1).flatten(1)[None]
    epsilon = _epsilon(norm)
    divided_by = (together.square().mean(-1) + epsilon).sqrt()
    first = next(norm.parameters(), torch.ones(1))
    ones = torch.ones(1, together.shape[-1], device=first.device)
    factors = norm(ones)[0].cpu().double() * (1 + epsilon) ** 0.5  # some keep them less one
    normed = together / divided_by[..., None] * factors
    of_model = norm(together.float().to(first.device)).cpu()
    if not torch.allclose(normed.float(), of_model, rtol=LARGEST_ROUNDING, atol=LARGEST_ROUNDING):
        raise InputError(
            f"{walk.place}: the steps know norms by the root of the mean square; "
            f"{type(norm).__name__} is another one; {WITHOUT}"
        )
    if per_head:
        return normed, divided_by, factors
    per_head_again = normed[0].unflatten(-1, (len(vectors), -1)).transpose(0, 1)
    return per_head_again, divided_by, factors


def _last_token(walk: _Walk) -> str:
    return f"{walk.tokens[-1]!r} at position {len(walk.tokens) - 1}"


def _epsilon(norm: nn.Module) -> float:
    stated = [getattr(norm, name, None) for name in ("variance_epsilon", "eps")]
    return next((value for value in stated if value is not None), 0.0)


def _rotate(walk: _Walk, q: torch.Tensor, k: torch.Tensor) -> _Changed:
    """Each pair of numbers turned by its angle, which grows with the position."""
    turn = _rotation(walk)
    q_turned = turn(q)
    k_turned = turn(k)
    pairs, angles, lengths = _pairs(walk, turn)
    columns = [f"{i}, {j}" for i, j in pairs]
    speeds = ", ".join(f"{angle:.4g}" for angle in angles[1, :SHOWN_NUMBERS].tolist())
    more = ", ..." if len(pairs) > SHOWN_NUMBERS else ""
    rest = q.shape[-1] - 2 * len(pairs)
    stays = f"; the last {rest} numbers stay" if rest else ""
    grown = f", and grown by {lengths.max().item():.4g}" if lengths.max() > 1 + TOLERANCE else ""

    def note(before: torch.Tensor, after: torch.Tensor) -> str:
        pair = list(pairs[0])
        first, second = (
            "({:.4f}, {:.4f})".format(*vectors[-1, pair].tolist()) for vectors in (before, after)
        )
        return (
            f"numbers {pair[0]} and {pair[1]} of {_last_token(walk)}: {first} turned by "
            f"{angles[-1, 0].item():.4f}{grown} is {second}"
        )

    step = _step(
        "angle",
        f"position x ({speeds}{more}), in radians",
        angles,
        f"of each pair of numbers, a column, at each position{stays}",
        columns,
    )
    return _Changed(
        q_turned,
        k_turned,
        "{0}, each pair (a, b) as (a cos - b sin, a sin + b cos) of its angle",
        note(q[walk.head], q_turned[walk.head]),
        note(k[walk.kv_head], k_turned[walk.kv_head]),
        before=[step],
    )


def _rotation(walk: _Walk) -> Callable[[torch.Tensor], torch.Tensor]:
    """What turns vectors (heads, tokens, d_k), by upstream's own function in float64: which numbers
    are pairs, and which way they turn, is another thing in every file.
    """
    apply = _file_of(walk.attention.module).apply_rotary_pos_emb
    cos, sin = (part.cpu().double() for part in walk.seen.named_inputs["position_embeddings"])
    width = cos.shape[-1]  # some rotate only the first numbers of each head

    def turn(vectors: torch.Tensor) -> torch.Tensor:
        first = vectors[None, ..., :width]
        turned = apply(first, first, cos, sin)[0][0]
        return torch.cat([turned, vectors[..., width:]], dim=-1)

    return turn


def _pairs(
    walk: _Walk, turn: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor]:
    """Which numbers are turned together, their angles (tokens, pairs) and by how much they grow,
    (tokens, pairs): seen from where the unit vectors go.
    """
    width = walk.seen.named_inputs["position_embeddings"][0].shape[-1]
    tokens = len(walk.seen.x)
    units = torch.eye(width, dtype=torch.float64)
    turned = turn(units[:, None].expand(-1, tokens, -1))  # (which, tokens, width)
    moved = (turned - units[:, None]).abs().sum(1)
    partners = moved.fill_diagonal_(0).argmax(-1).tolist()
    pairs = [(i, partner) for i, partner in enumerate(partners) if i < partner]
    first, second = (list(column) for column in zip(*pairs, strict=True))
    cos = turned[first, :, first].T
    sin = turned[first, :, second].T
    angles = np.unwrap(torch.atan2(sin, cos).numpy(), axis=0)
    return pairs, torch.from_numpy(angles), torch.hypot(sin, cos)


# ---- scores, mask, weights


def _attend(walk: _Walk, projected: Projected, marks: str) -> _Attended:
    """softmax(Q K^T / sqrt(d_k)) V of all heads, and the steps of one."""
    q, k, v = projected
    head = walk.head
    module = walk.attention.module
    divisor, shown_divisor = _divisor(module, q.shape[-1])
    scores = q @ k.repeat_interleave(walk.group, dim=0).transpose(-1, -2) / divisor
    steps = [_step("S", f"Q{marks} K{marks}^T / {shown_divisor}", scores[head])]
    cap = getattr(module, "attn_logit_softcapping", None)
    if cap:
        scores = cap * (scores / cap).tanh()
        steps.append(_step("S'", f"{cap:g} tanh(S / {cap:g})", scores[head]))
    hidden, shown_hidden = _mask(walk.seen, scores)
    masked = scores.masked_fill(hidden, -torch.inf)
    weights = masked.softmax(-1)
    weighted = weights @ v.repeat_interleave(walk.group, dim=0)
    concatenated = weighted.transpose(0, 1).flatten(1)
    output = affine(concatenated, walk.attention.output_matrix)
    steps += [
        _step("M", f"{steps[-1]['name']}, with -inf where {shown_hidden}", masked[head]),
        _step("A", "softmax(M), row by row", weights[head]),
        _step("Z", "A V, the weighted sum", weighted[head]),
        _step("C", f"Z of all {walk.attention.heads} heads, side by side", concatenated),
        _step("O", _written("C W_O", walk.attention.output_matrix), output),
    ]
    return _Attended(weights, concatenated, output, divisor, steps)


def _divisor(module: nn.Module, d_k: int) -> tuple[float, str]:
    """What the scores of a layer are divided by, and how it is written."""
    divisor = 1 / float(getattr(module, "scaling", d_k**-0.5))
    factor = divisor / d_k**0.5
    if abs(divisor - 1) < TOLERANCE:
        return divisor, "1"
    if abs(factor - 1) < TOLERANCE:
        return divisor, f"sqrt({d_k})"
    if abs(factor - round(factor)) < TOLERANCE:
        return divisor, f"sqrt({d_k}) / {factor:.0f}"
    return divisor, f"{divisor:g}"


def _mask(seen: Seen, scores: torch.Tensor) -> tuple[torch.Tensor, str]:
    """What each token (row) must not see, (tokens, tokens), as the model gave it, and in words."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    given = seen.named_inputs.get("attention_mask")
    if given is None or given.dim() != 4:
        return later, "a token would see a later one"
    shown = given[0, 0].cpu()
    hidden = ~shown if shown.dtype == torch.bool else shown < 0
    if torch.equal(hidden, later):
        return hidden, "a token would see a later one"
    reach = int((~hidden).sum(-1).max())
    return hidden, f"a token would see a later one, or one {reach} or more before it"


def _remarks(walk: _Walk, *, is_rotated: bool) -> list[str]:
    remarks = []
    if walk.group > 1:
        first = walk.kv_head * walk.group
        kv_heads = walk.attention.heads // walk.group
        remarks.append(
            f"Heads {first} to {first + walk.group - 1} share key/value head {walk.kv_head} of "
            f"{kv_heads}."
        )
    if walk.seen.named_inputs.get("position_embeddings") is not None and not is_rotated:
        remarks.append(
            "This layer does not rotate its queries and keys: its scores do not depend on how far "
            "apart two tokens are."
        )
    return remarks


def _texts(input_ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    ids = input_ids[0].tolist()
    return [str(tokenizer.decode([token])) if tokenizer else str(token) for token in ids]


def _step(
    name: str,
    formula: str,
    values: torch.Tensor,
    note: str = "",
    columns: list[str] | None = None,
) -> Step:
    return {
        "name": name,
        "formula": formula,
        "note": note,
        "shape": list(values.shape),
        "columns": columns,
        "values": values.tolist(),
    }
