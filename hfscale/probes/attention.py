"""What the heads of a GPT-2 attend to, what they do for the loss, and one head step by step.

A sentence is read as [prefix, t0, t1, ...], the prefix being BOS (else EOS) as in training, so that
every token of it is predicted. Weights have the shape (layers, heads, tokens, tokens); row i is
what token i attends to.
"""

from functools import partial
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np
import torch
from accelerate.utils import tqdm
from torch.nn.functional import cross_entropy, nll_loss
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block

from hfscale.data.tokens import after_once, encode_texts, start_ids
from hfscale.models import check_token_ids, context_limit
from hfscale.process import InputError

TOKENS_AT_ONCE = 1024  # of which an ablation holds all logits
TOLERANCE = 1e-5  # within which a step-by-step result counts as the model's


class Step(TypedDict):
    """One step of `explain_head`."""

    name: str
    formula: str
    shape: list[int]
    values: list[list[float]] | None


class Explanation(TypedDict):
    """One head step by step, and how far the result is from what the model computed."""

    layer: int
    head: int
    heads: int
    d_k: int
    divisor: float
    difference: dict[str, float]
    tolerance: float
    equal: bool
    steps: list[Step]


def check_gpt2(model: PreTrainedModel) -> GPT2LMHeadModel:
    """The model, which attends as GPT-2 does and was loaded so that it returns the weights.

    Raises InputError: its attention is another class, or returns no weights as it was loaded.
    """
    if not isinstance(model, GPT2LMHeadModel):
        raise InputError(
            f"model: {type(model).__name__} does not attend as GPT-2 does; give a GPT-2-style "
            "model (GPT2LMHeadModel)"
        )
    if model.config._attn_implementation != "eager":
        raise InputError(
            f"model: attn_implementation {model.config._attn_implementation} returns no weights; "
            'load it with attn_implementation="eager"'
        )
    return model


def _blocks(model: GPT2LMHeadModel) -> list[GPT2Block]:
    return [cast(GPT2Block, block) for block in model.transformer.h]


def attention_layers(model: PreTrainedModel) -> list[GPT2Attention]:
    """The self-attention of each layer, in order; raises InputError as `check_gpt2`."""
    return [block.attn for block in _blocks(check_gpt2(model))]


def encode_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str
) -> torch.Tensor:
    """(1, tokens) ids of the prefix and the sentence, on the model's device.

    Raises InputError: no token in it, more than the context, or an id outside the vocabulary.
    """
    prefix = start_ids(tokenizer)
    ids = after_once(prefix, next(encode_texts([sentence], tokenizer)))
    check_token_ids(model, ids, "sentence")
    limit = context_limit(model)
    size = len(ids) - len(prefix)
    is_too_long = limit is not None and len(ids) > limit
    if not size or is_too_long:
        room = "any number" if limit is None else f"1 to {limit - len(prefix)}"
        raise InputError(
            f"sentence: {size} tokens; the model's context takes {room} and the prefix; "
            f"{'shorten it' if is_too_long else 'write some text'}"
        )
    return torch.tensor([ids], device=model.device)


@torch.inference_mode()
def attention_weights(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """The model's own weights, (batch, layers, heads, tokens, tokens), of ids (batch, tokens)."""
    attention_layers(model)
    return torch.stack(
        model.eval()(input_ids, output_attentions=True, use_cache=False).attentions, dim=1
    )


def head_scores(weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """(layers, heads) each, as means over the rows but the first, which can only attend to itself:
    `entropy` in nats, `mean_distance` in tokens, and the weight on the `previous_token` and on the
    `first_token`.
    """
    positions = torch.arange(weights.shape[-1], device=weights.device)
    distances = positions[:, None] - positions  # of column j from row i
    rows = weights[..., 1:, :]
    return {
        "entropy": -torch.xlogy(rows, rows).sum(-1).mean(-1),
        "mean_distance": (rows * distances[1:]).sum(-1).mean(-1),
        "previous_token": weights.diagonal(-1, -2, -1).mean(-1),
        "first_token": rows[..., 0].mean(-1),
    }


def induction_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 50,
    sequences: int = 4,
    seed: int = 0,
) -> torch.Tensor:
    """(layers, heads): on [prefix, r, r], r being `length` different random tokens (or as many as
    the context and the vocabulary allow), the mean weight that a token of the second r puts on the
    token which followed it in the first (prefix matching: Olsson et al. 2022, In-context Learning
    and Induction Heads).

    Raises InputError: a context or vocabulary too short for two tokens.
    """
    size = min(len(tokenizer), model.config.get_text_config().vocab_size)
    usual = torch.tensor(sorted(set(range(size)) - set(tokenizer.all_special_ids)))
    length = min(length, len(usual))
    context = context_limit(model)
    if context is not None:
        length = min(length, (context - 1) // 2)
    if length < 2:
        raise InputError(
            "model: its context or vocabulary is too short to repeat a sequence of two tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(usual), generator=generator) for _ in range(sequences)]
    drawn = torch.stack([usual[order[:length]] for order in orders])
    prefix = torch.tensor([start_ids(tokenizer)[:1]] * sequences)
    ids = torch.cat([prefix, drawn, drawn], dim=1).to(model.device)
    # A token of the second r stands `length` after itself, so what followed it `length - 1` before.
    followers = attention_weights(model, ids).diagonal(1 - length, -2, -1)
    of_the_second = followers[..., 2:]  # the first two rows of that diagonal are of the first r
    return of_the_second.mean(dim=(0, -1))


def rollout(weights: torch.Tensor) -> torch.Tensor:
    """(layers, tokens, tokens): what each token's state after a layer mixes of the input tokens,
    where attention, mean over heads, and residual count half each (Abnar and Zuidema 2020,
    arXiv:2005.00928).
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    mixed = identity
    layers = []
    for layer in weights.mean(dim=1):
        mixed = (layer + identity) / 2 @ mixed
        layers.append(mixed)
    return torch.stack(layers)


@torch.inference_mode()
def ablate_heads(
    model: PreTrainedModel, input_ids: torch.Tensor, *, progress: bool = False
) -> tuple[float, torch.Tensor]:
    """The loss of ids (1, tokens) in nats per token, and (layers, heads): by how much it rises if
    the head's output is replaced by zeros, one head at a time.
    """
    whole = _losses(model, input_ids)[0]
    layers = attention_layers(model)
    effects = []
    at_once = max(1, TOKENS_AT_ONCE // input_ids.shape[1])
    for layer in tqdm(layers, desc="ablating", unit="layer", disable=not progress):
        for heads in torch.arange(layer.num_heads).split(at_once):
            # Row r of the batch runs without heads[r].
            drop_heads = partial(_drop_heads, heads, layer.head_dim)
            with layer.c_proj.register_forward_pre_hook(drop_heads):
                losses = _losses(model, input_ids.expand(len(heads), -1))
            effects.append(losses - whole)
    return whole.item(), torch.cat(effects).view(len(layers), -1)


def _drop_heads(
    heads: torch.Tensor, head_dim: int, module: torch.nn.Module, inputs: tuple
) -> tuple[torch.Tensor]:
    """What the output matrix reads, (rows, tokens, width), with zeros for heads[r] in row r."""
    per_head = inputs[0].unflatten(-1, (-1, head_dim)).clone()
    per_head[torch.arange(len(heads)), :, heads] = 0
    return (per_head.flatten(-2),)


def _losses(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """(rows): nats per token of ids (rows, tokens)."""
    logits = model.eval()(input_ids, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none").mean(-1)


@torch.inference_mode()
def logit_lens(
    model: PreTrainedModel, input_ids: torch.Tensor, top_k: int = 3
) -> dict[str, torch.Tensor]:
    """What the model would predict if it stopped at a layer (0: the embeddings): final layer norm
    and unembedding of each layer's output (nostalgebraist 2020, "interpreting GPT: the logit
    lens"). `top_ids` and `top_probabilities` are (layers + 1, tokens, top_k), `loss` (layers + 1)
    in nats per token.
    """
    gpt2 = check_gpt2(model)
    outputs = gpt2.eval()(input_ids, output_hidden_states=True, use_cache=False)
    *states, last = outputs.hidden_states
    # Upstream has normed the last state already.
    normed_states = [gpt2.transformer.ln_f(state) for state in states] + [last]
    ids = []
    probabilities = []
    losses = []
    for normed in normed_states:
        log_p = gpt2.lm_head(normed)[0].float().log_softmax(-1)
        top = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1)
        ids.append(top.indices)
        probabilities.append(top.values.exp())
        losses.append(nll_loss(log_p[:-1], input_ids[0, 1:]))
    return {
        "top_ids": torch.stack(ids),
        "top_probabilities": torch.stack(probabilities),
        "loss": torch.stack(losses),
    }


class _Projected(NamedTuple):
    """Query, key and value of each head, (heads, tokens, d_k), in float64."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


@torch.inference_mode()
def explain_head(
    model: PreTrainedModel, input_ids: torch.Tensor, layer: int, head: int
) -> Explanation:
    """softmax(Q K^T / sqrt(d_k)) V of one head (Vaswani et al. 2017, arXiv:1706.03762) in float64
    from the model's weights, without calling its attention: `steps` with name, formula, and values
    as nested lists, and how far the weights and the layer's output, all heads concatenated and
    times W_O, are from what the model computed.

    Raises InputError: no such layer or head.
    """
    layers = attention_layers(model)
    if not (0 <= layer < len(layers) and 0 <= head < layers[0].num_heads):
        raise InputError(
            f"explain {layer} {head}: expected a layer from 0 to {len(layers) - 1} and a head from "
            f"0 to {layers[0].num_heads - 1}"
        )
    module = layers[layer]
    x, models_output, models_weights = _seen_by_layer(check_gpt2(model), input_ids, layer)
    q, k, v = _project(x, module)
    divisor, shown_divisor = _divisor(module, layer)
    scores = q @ k.transpose(-1, -2) / divisor
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    masked = scores.masked_fill(later, -torch.inf)
    weights = masked.softmax(-1)
    weighted = weights @ v
    concatenated = weighted.transpose(0, 1).flatten(1)
    output = _affine(concatenated, module.c_proj)
    difference = {
        "output": (output - models_output).abs().max().item(),
        "weights": (weights - models_weights).abs().max().item(),
    }
    steps = [
        _step("X", "the layer's input after its layer norm", x),
        _step("Q", "X W_Q + b_Q", q[head]),
        _step("K", "X W_K + b_K", k[head]),
        _step("V", "X W_V + b_V", v[head]),
        _step("S", f"Q K^T / {shown_divisor}", scores[head]),
        _step("M", "S, with -inf where a token would see a later one", masked[head]),
        _step("A", "softmax(M), row by row", weights[head]),
        _step("Z", "A V, the weighted sum", weighted[head]),
        _step("C", f"Z of all {module.num_heads} heads, side by side", concatenated),
        _step("O", "C W_O + b_O", output),
    ]
    return {
        "layer": layer,
        "head": head,
        "heads": module.num_heads,
        "d_k": module.head_dim,
        "divisor": divisor,
        "difference": difference,
        "tolerance": TOLERANCE,
        "equal": max(difference.values()) <= TOLERANCE,
        "steps": steps,
    }


def _seen_by_layer(
    model: GPT2LMHeadModel, input_ids: torch.Tensor, layer: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the attention of a layer reads, (tokens, width) in float64, and what it really gave: its
    output (tokens, width) and its weights (heads, tokens, tokens).
    """
    block = _blocks(model)[layer]
    given: list[torch.Tensor] = []
    with block.attn.register_forward_hook(lambda module, inputs, outputs: given.extend(outputs)):
        outputs = model.eval()(input_ids, output_hidden_states=True, use_cache=False)
    normed = block.ln_1(outputs.hidden_states[layer])
    output, weights = given
    # On the CPU: not every accelerator has float64.
    return normed[0].cpu().double(), output[0].cpu(), weights[0].cpu()


def _project(x: torch.Tensor, module: GPT2Attention) -> _Projected:
    """Query, key and value of what the attention reads, (tokens, width)."""
    thirds = _affine(x, module.c_attn).chunk(3, -1)
    return _Projected(
        *(third.unflatten(-1, (-1, module.head_dim)).transpose(0, 1) for third in thirds)
    )


def _divisor(module: GPT2Attention, layer: int) -> tuple[float, str]:
    """What the scores of a layer are divided by, and how it is written."""
    divisor = 1.0
    shown = []
    if module.scale_attn_weights:
        divisor *= module.head_dim**0.5
        shown.append(f"sqrt({module.head_dim})")
    if module.scale_attn_by_inverse_layer_idx:
        divisor *= layer + 1
        shown.append(str(layer + 1))
    return divisor, " / ".join(shown) or "1"


def _affine(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """A Conv1D in float64."""
    weight = cast(torch.Tensor, layer.weight)
    bias = cast(torch.Tensor, layer.bias)
    return x @ weight.cpu().double() + bias.cpu().double()


def _step(name: str, formula: str, values: torch.Tensor) -> Step:
    return {
        "name": name,
        "formula": formula,
        "shape": list(values.shape),
        "values": values.tolist(),
    }


# ---- as records


def head_records(scores: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """A record for each head, with each of the (layers, heads) `scores` by its name."""
    first = next(iter(scores.values()))
    records = []
    for layer, head in np.ndindex(first.shape):
        record: dict[str, float] = {"layer": layer, "head": head}
        record |= {name: float(values[layer, head]) for name, values in scores.items()}
        records.append(record)
    return records


def lens_records(
    lens: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """A record for each layer of `logit_lens`, the embeddings first: its loss, and for each
    position the likeliest tokens as [text, probability].
    """
    records = []
    for layer, loss in enumerate(lens["loss"].tolist()):
        ids_of_positions = lens["top_ids"][layer].tolist()
        probabilities_of_positions = lens["top_probabilities"][layer].tolist()
        top = []
        for ids, probabilities in zip(ids_of_positions, probabilities_of_positions, strict=True):
            texts = [tokenizer.decode([token]) for token in ids]
            top.append([list(pair) for pair in zip(texts, probabilities, strict=True)])
        records.append({"loss": loss, "top": top})
    return records
