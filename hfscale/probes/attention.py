"""What the heads of a GPT-2 attend to, what they do for the loss, and one head step by step.

A sentence is read as [prefix, t0, t1, ...], the prefix being BOS (else EOS) as in training, so that
every token of it is predicted. Weights have the shape (layers, heads, tokens, tokens); row i is
what token i attends to.
"""

import math
from functools import partial
from typing import Any

import torch
from accelerate.utils import tqdm
from torch.nn.functional import cross_entropy, nll_loss
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from hfscale.data.tokens import after_once, encode_texts, start_ids
from hfscale.models import check_token_ids, context_limit
from hfscale.process import InputError

TOKENS_AT_ONCE = 1024  # of which an ablation holds all logits
TOLERANCE = 1e-5  # within which a step-by-step result counts as the model's


def attention_layers(model: PreTrainedModel) -> list[GPT2Attention]:
    """The self-attention of each layer, in order.

    Raises InputError: the model's attention is another class, or returns no weights as it was
    loaded.
    """
    if not isinstance(model, GPT2LMHeadModel):
        raise InputError(
            f"model: {type(model).__name__} does not attend as GPT-2 does; give a GPT-2-style "
            "model (GPT2LMHeadModel)"
        )
    if model.config._attn_implementation != "eager":
        raise InputError(
            f"model: attn_implementation {model.config._attn_implementation} returns no weights; "
            "load it "
            'with attn_implementation="eager"'
        )
    return [block.attn for block in model.transformer.h]


def encode_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str
) -> torch.Tensor:
    """(1, tokens) ids of the prefix and the sentence, on the model's device.

    Raises InputError: no token in it, more than the context, or an id outside the vocabulary."""
    prefix = start_ids(tokenizer)
    ids = after_once(prefix, next(encode_texts([sentence], tokenizer)))
    check_token_ids(model, ids, "sentence")
    limit, size = context_limit(model), len(ids) - len(prefix)
    if not size or limit and len(ids) > limit:
        raise InputError(
            f"sentence: {size} tokens; the model's context takes 1 to {limit - len(prefix)} and "
            f"the prefix; {'shorten it' if size else 'write some text'}"
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
    rows, positions = weights[..., 1:, :], torch.arange(weights.shape[-1], device=weights.device)
    return {
        "entropy": -torch.xlogy(rows, rows).sum(-1).mean(-1),
        "mean_distance": (rows * (positions[1:, None] - positions)).sum(-1).mean(-1),
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
    """
    size = min(len(tokenizer), model.config.get_text_config().vocab_size)
    usual = torch.tensor(sorted(set(range(size)) - set(tokenizer.all_special_ids)))
    length = min(length, len(usual), ((context_limit(model) or 2**31) - 1) // 2)
    if length < 2:
        raise InputError(
            "model: its context or vocabulary is too short to repeat a sequence of two tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack(
        [usual[torch.randperm(len(usual), generator=generator)[:length]] for _ in range(sequences)]
    )
    prefix = torch.tensor([start_ids(tokenizer)[:1]] * sequences)
    weights = attention_weights(model, torch.cat([prefix, drawn, drawn], dim=1).to(model.device))
    followers = weights.diagonal(1 - length, -2, -1)[
        ..., 2:
    ]  # the first two rows of it are of the first r
    return followers.mean(dim=(0, -1))


def rollout(weights: torch.Tensor) -> torch.Tensor:
    """(layers, tokens, tokens): what each token's state after a layer mixes of the input tokens,
    where attention, mean over heads, and residual count half each (Abnar and Zuidema 2020,
    arXiv:2005.00928).
    """
    mixed, layers = torch.eye(weights.shape[-1], device=weights.device), []
    for layer in weights.mean(dim=1):
        mixed = (layer + torch.eye(len(layer), device=weights.device)) / 2 @ mixed
        layers.append(mixed)
    return torch.stack(layers)


@torch.inference_mode()
def ablate_heads(
    model: PreTrainedModel, input_ids: torch.Tensor, *, progress: bool = False
) -> tuple[float, torch.Tensor]:
    """The loss of ids (1, tokens) in nats per token, and (layers, heads): by how much it rises if
    the head's output is replaced by zeros, one head at a time.
    """
    whole, layers, effects = _losses(model, input_ids)[0], attention_layers(model), []
    at_once = max(1, TOKENS_AT_ONCE // input_ids.shape[1])
    for layer in tqdm(layers, desc="ablating", unit="layer", disable=not progress):
        for heads in torch.arange(layer.num_heads).split(
            at_once
        ):  # row r of the batch runs without heads[r]
            with layer.c_proj.register_forward_pre_hook(
                partial(_drop_heads, heads, layer.head_dim)
            ):
                effects.append(_losses(model, input_ids.expand(len(heads), -1)) - whole)
    return whole.item(), torch.cat(effects).view(len(layers), -1)


def _drop_heads(
    heads: torch.Tensor, head_dim: int, module: torch.nn.Module, inputs: tuple
) -> tuple[torch.Tensor]:
    per_head = inputs[0].unflatten(-1, (-1, head_dim)).clone()
    per_head[torch.arange(len(heads)), :, heads] = 0
    return (per_head.flatten(-2),)


def _losses(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
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
    *states, last = model.eval()(
        input_ids, output_hidden_states=True, use_cache=False
    ).hidden_states
    found = []
    for normed in (
        *map(model.transformer.ln_f, states),
        last,
    ):  # upstream has normed the last one already
        log_p = model.lm_head(normed)[0].float().log_softmax(-1)
        top = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1)
        found.append((top.indices, top.values.exp(), nll_loss(log_p[:-1], input_ids[0, 1:])))
    return dict(
        zip(
            ("top_ids", "top_probabilities", "loss"),
            map(torch.stack, zip(*found, strict=True)),
            strict=True,
        )
    )


@torch.inference_mode()
def explain_head(
    model: PreTrainedModel, input_ids: torch.Tensor, layer: int, head: int
) -> dict[str, Any]:
    """softmax(Q K^T / sqrt(d_k)) V of one head (Vaswani et al. 2017, arXiv:1706.03762) in float64
    from the model's weights, without calling its attention: `steps` with name, formula, and values
    as nested lists, and how far the weights and the layer's output, all heads concatenated and
    times W_O, are from what the model computed.

    Raises InputError: no such layer or head.
    """
    layers, seen = attention_layers(model), []
    if not (0 <= layer < len(layers) and 0 <= head < layers[0].num_heads):
        raise InputError(
            f"explain {layer} {head}: expected a layer from 0 to {len(layers) - 1} and a head from "
            f"0 to {layers[0].num_heads - 1}"
        )
    module = layers[layer]
    with module.register_forward_hook(lambda module, inputs, outputs: seen.extend(outputs)):
        states = model.eval()(input_ids, output_hidden_states=True, use_cache=False).hidden_states[
            layer
        ]
    x = (
        model.transformer.h[layer].ln_1(states)[0].cpu().double()
    )  # not every accelerator has float64
    q, k, v = (
        part.unflatten(-1, (-1, module.head_dim)).transpose(0, 1)
        for part in _affine(x, module.c_attn).chunk(3, -1)
    )
    factors = (
        [(module.head_dim**0.5, f"sqrt({module.head_dim})")] if module.scale_attn_weights else []
    )
    factors += [(layer + 1, str(layer + 1))] if module.scale_attn_by_inverse_layer_idx else []
    divisor, shown = (
        math.prod(value for value, _ in factors),
        " / ".join(text for _, text in factors) or "1",
    )
    scores = q @ k.transpose(-1, -2) / divisor
    masked = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    weights = masked.softmax(-1)
    concatenated = (weights @ v).transpose(0, 1).flatten(1)
    output = _affine(concatenated, module.c_proj)
    difference = {
        name: (own - theirs[0].cpu()).abs().max().item()
        for name, own, theirs in zip(("output", "weights"), (output, weights), seen, strict=True)
    }
    steps = [
        ("X", "the layer's input after its layer norm", x),
        ("Q", "X W_Q + b_Q", q[head]),
        ("K", "X W_K + b_K", k[head]),
        ("V", "X W_V + b_V", v[head]),
        ("S", f"Q K^T / {shown}", scores[head]),
        ("M", "S, with -inf where a token would see a later one", masked[head]),
        ("A", "softmax(M), row by row", weights[head]),
        ("Z", "A V, the weighted sum", (weights @ v)[head]),
        ("C", f"Z of all {module.num_heads} heads, side by side", concatenated),
        ("O", "C W_O + b_O", output),
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
        "steps": [
            {
                "name": name,
                "formula": formula,
                "shape": list(values.shape),
                "values": values.tolist(),
            }
            for name, formula, values in steps
        ],
    }


def _affine(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    return x @ layer.weight.cpu().double() + layer.bias.cpu().double()
