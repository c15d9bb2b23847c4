"""What the heads of a model attend to, and what they do for the loss.

A sentence is read as [prefix, t0, t1, ...], the prefix being BOS (else EOS) as in training, so that
every token of it is predicted. Weights have the shape (layers, heads, tokens, tokens); row i is
what token i attends to.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.tokens import after_once, encode_texts, start_ids
from hfscale.models import check_token_ids, context_limit
from hfscale.probes.attention_layers import attention_layers, blocks_of
from hfscale.process import InputError

TOKENS_AT_ONCE = 1024  # of which an ablation, or the logit lens, holds all logits


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
    """The model's own weights, (batch, layers, heads, tokens, tokens), of ids (batch, tokens);
    layers that do not attend are not counted.

    Raises InputError: see `attention_layers`.
    """
    layers = attention_layers(model)
    maps = model.eval()(input_ids, output_attentions=True, use_cache=False).attentions
    return torch.stack([maps[layer.place] for layer in layers], dim=1)


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
        for heads in torch.arange(layer.heads).split(at_once):
            # Row r of the batch runs without heads[r].
            drop_heads = partial(_drop_heads, heads, layer.heads)
            with layer.output_matrix.register_forward_pre_hook(drop_heads):
                losses = _losses(model, input_ids.expand(len(heads), -1))
            effects.append(losses - whole)
    return whole.item(), torch.cat(effects).view(len(layers), -1)


def _drop_heads(
    heads: torch.Tensor, head_count: int, module: nn.Module, inputs: tuple
) -> tuple[torch.Tensor]:
    """What the output matrix reads, (rows, tokens, width), with zeros for heads[r] in row r."""
    per_head = inputs[0].unflatten(-1, (head_count, -1)).clone()
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
    """What the model would predict if it stopped at a layer (0: the embeddings): what it makes of
    each layer's output in the place of the last one's, by its final norm, its unembedding and what
    else it has there (nostalgebraist 2020, "interpreting GPT: the logit lens"). `top_ids` and
    `top_probabilities` are (layers + 1, tokens, top_k), `loss` (layers + 1) in nats per token.
    """
    last_block = blocks_of(model, attention_layers(model))[-1]
    outputs = model.eval()(input_ids, output_hidden_states=True, use_cache=False)
    *early_states, _ = outputs.hidden_states
    at_once = max(1, TOKENS_AT_ONCE // input_ids.shape[1])
    shown = [_lens_of(outputs.logits, input_ids, top_k)]
    for states in reversed(torch.cat(early_states).split(at_once)):
        with last_block.register_forward_hook(partial(_give_instead, states)):
            logits = model(input_ids.expand(len(states), -1), use_cache=False).logits
        shown.insert(0, _lens_of(logits, input_ids, top_k))
    return {name: torch.cat([lens[name] for lens in shown]) for name in shown[0]}


def _give_instead(states: torch.Tensor, module: nn.Module, inputs: tuple, output: Any) -> Any:
    """A block's output, which is a tensor or begins with one, with `states` in the place of it."""
    return states if isinstance(output, torch.Tensor) else (states, *output[1:])


def _lens_of(logits: torch.Tensor, input_ids: torch.Tensor, top_k: int) -> dict[str, torch.Tensor]:
    """Of logits (layers, tokens, vocabulary), what `logit_lens` gives."""
    log_p = logits.float().log_softmax(-1)
    top = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1)
    of_next = log_p[:, :-1].gather(-1, input_ids[:, 1:, None].expand(len(log_p), -1, -1))
    return {
        "top_ids": top.indices,
        "top_probabilities": top.values.exp(),
        "loss": -of_next.mean(dim=(1, 2)),
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
