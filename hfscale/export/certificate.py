"""Is an export the same model: its tokens, logits, perplexity and greedy texts beside those of the
original.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.tokens import after_once, encode_texts, leading_ids, start_ids
from hfscale.models import context_limit
from hfscale.process import InputError
from hfscale.report.tables import show_table

# Largest difference between two logits; None: as large as it is measured. float32 differs by the
# order of sums, float16 keeps 11 bits of a weight, q8_0 8 bits beside a scale.
TOLERANCES = {"f32": 1e-4, "f16": 1e-2, "q8_0": None}
PROMPT_TOKENS = 16  # of a document, which greedy continuations go on from
CONTINUATIONS = 20  # of as many documents, all at once
UNLIMITED_CONTEXT = 1024  # tokens read at once of a model that states no limit

PAIR = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def certify(
    original: PAIR,
    export: PAIR,
    texts: Sequence[str],
    *,
    scored_documents: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """What an export's own reader makes of it, beside the original; both in float32 on one device.

    Args:
        texts: held-out documents, all of which become tokens.
        scored_documents: of how many of them the models read the beginning, up to the context.
        max_new_tokens: length of each greedy continuation of the first tokens of a document.

    Returns JSON values: `tokens`, `logits`, `greedy`. Raises InputError: no text has a token.
    """
    model, tokenizer = original
    rows = list(_rows(model, tokenizer, texts[:scored_documents]))
    if not rows:
        raise InputError("source: its documents hold no token to compare on; give other text")
    return {
        "tokens": compare_tokens(tokenizer, export[1], texts),
        "logits": compare_logits(model, export[0], rows),
        "greedy": compare_continuations(model, export[0], rows, max_new_tokens),
    }


def compare_tokens(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str]
) -> dict[str, Any]:
    """How many texts become other ids, or other text again. Beside the given ones stands a text
    with each special token in it.
    """
    compared = [*texts, *(f"a{token} {token}b" for token in tokenizer.all_special_tokens)]
    num_tokens = 0
    differing = []
    pairs = zip(encode_texts(compared, tokenizer), encode_texts(compared, other), strict=True)
    for text, (ids, other_ids) in zip(compared, pairs, strict=True):
        num_tokens += len(ids)
        if ids != other_ids or tokenizer.decode(ids) != other.decode(ids):
            differing.append(text)
    facts = {name: (_facts(tokenizer)[name], _facts(other)[name]) for name in _facts(tokenizer)}
    return {
        "documents": len(texts),
        "tokens": num_tokens,
        "differing": len(differing),
        "first_differing": differing[0][:80] if differing else None,
        "other_settings": [name for name, (one, two) in facts.items() if one != two],
    }


def _facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What else a program reads in a tokenizer."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "tokens in front of a text": leading_ids(tokenizer),
        "chat_template": tokenizer.chat_template,
        **{name: getattr(tokenizer, name) for name in ids},
    }


@torch.no_grad()
def compare_logits(
    model: PreTrainedModel, other: PreTrainedModel, rows: Sequence[list[int]]
) -> dict[str, Any]:
    """The largest difference between two logits over all places of rows of token ids, and with
    both models the perplexity of all tokens but the first of each row; None: beyond a float.
    """
    differences = []
    losses = []  # (2,) each, in nats
    for ids in rows:
        input_ids = torch.tensor([ids], device=model.device)
        logits = [m(input_ids, use_cache=False).logits[0].float() for m in (model, other)]
        differences.append((logits[0] - logits[1]).abs().max())
        predicted = input_ids[0, 1:]
        losses.append([cross_entropy(part[:-1], predicted, reduction="sum") for part in logits])
    num_tokens = sum(len(ids) - 1 for ids in rows)
    original, export = (torch.tensor(losses, dtype=torch.float64).sum(0) / num_tokens).exp()
    return {
        "tokens": num_tokens,
        "largest_difference": torch.stack(differences).max().item(),  # NaN, if one is
        "perplexity": _finite(original),
        "perplexity_of_export": _finite(export),
    }


def _finite(value: torch.Tensor) -> float | None:
    return value.item() if value.isfinite() else None


@torch.no_grad()
def compare_continuations(
    model: PreTrainedModel,
    other: PreTrainedModel,
    rows: Sequence[list[int]],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Of the likeliest tokens after the first ones of the first rows, how many are the same up to
    the first that is not, row by row.
    """
    length = min(PROMPT_TOKENS, *(len(ids) for ids in rows))
    prompts = torch.tensor([ids[:length] for ids in rows[:CONTINUATIONS]], device=model.device)
    count = min(max_new_tokens, _context(model) - length)
    differ = _likeliest(model, prompts, count) != _likeliest(other, prompts, count)
    same = (differ.cumsum(1) == 0).sum().item()
    return {"continuations": len(prompts), "tokens": differ.numel(), "same_tokens": same}


def _likeliest(model: PreTrainedModel, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """(prompts, count) ids, without `generate`, whose settings come from the model's folder."""
    ids = prompts
    for _ in range(count):
        logits = model(ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[:, prompts.shape[1] :]


def _rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Iterator[list[int]]:
    """Ids of the beginning of each text, as many as the model reads at once."""
    start = start_ids(tokenizer)
    for ids in encode_texts(texts, tokenizer):
        row = after_once(start, ids)[: _context(model)]
        if len(row) > 1:  # else nothing is predicted
            yield row


def _context(model: PreTrainedModel) -> int:
    return context_limit(model) or UNLIMITED_CONTEXT


def check_certificate(certificate: dict[str, Any], tolerance: float | None) -> None:
    """Raise InputError for an export that is another model.

    Args:
        tolerance: the largest difference between two logits; None: any that is a number.
    """
    tokens = certificate["tokens"]
    if tokens["differing"]:
        raise InputError(
            f"export: {tokens['differing']} of {tokens['documents']} documents become other tokens "
            f"when the file is read, the first is {tokens['first_differing']!r}; nothing is kept; "
            "--to safetensors keeps any tokenizer"
        )
    if tokens["other_settings"]:
        raise InputError(
            f"export: {', '.join(tokens['other_settings'])} of the tokenizer read back is another; "
            "nothing is kept; --to safetensors keeps any tokenizer"
        )
    difference = certificate["logits"]["largest_difference"]
    limit = float("inf") if tolerance is None else tolerance
    if not difference <= limit or difference == float("inf"):
        raise InputError(
            f"export: logits differ by up to {difference:.3g}, allowed is {limit:.3g}; nothing is "
            "kept; --outtype f32 keeps every digit, --tolerance allows a larger difference"
        )


def show_certificate(record: dict[str, Any]) -> None:
    """The table that a person reads."""
    tokens = record["tokens"]
    logits = record["logits"]
    greedy = record["greedy"]
    tolerance = record["tolerance"]
    stated = "as measured" if tolerance is None else f"at most {tolerance:g}"
    rows = [
        ("documents with the same tokens", f"{tokens['documents']:,} of {tokens['documents']:,}"),
        (f"largest difference of logits ({stated})", f"{logits['largest_difference']:.2g}"),
        (f"perplexity on {logits['tokens']:,} tokens", _shown(logits["perplexity"])),
        ("perplexity with the export", _shown(logits["perplexity_of_export"])),
        ("greedy tokens that are the same", f"{greedy['same_tokens']:,} of {greedy['tokens']:,}"),
    ]
    show_table(["compared", record["outtype"]], rows, title=f"{record['to']}, read back")


def _shown(perplexity: float | None) -> str:
    return "too large" if perplexity is None else f"{perplexity:,.5g}"
