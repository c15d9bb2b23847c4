"""Is an export the same model: its tokens, logits, perplexity and greedy texts beside those of the
original.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from hfscale.data.tokens import after_once, encode_texts, leading_ids, start_ids
from hfscale.export.runners import Runner
from hfscale.process import InputError
from hfscale.report.tables import show_table


class Tolerance(NamedTuple):
    """How far an export may be from the original; None: as far as it is, if that is a number.

    Attributes:
        logits: largest difference between two of them.
        perplexity: its change, as a share of the original's.
    """

    logits: float | None
    perplexity: float | None


# float32 differs by the order of sums, float16 keeps 11 bits of a weight; q8_0 has 8 bits beside a
# scale for 32 weights, int8 7 bits beside one for a row: what they change was measured.
TOLERANCES = {
    "f32": Tolerance(1e-4, None),
    "f16": Tolerance(1e-2, None),
    "q8_0": Tolerance(None, 0.01),
    "int8": Tolerance(None, 0.02),
}
PROMPT_TOKENS = 16  # of a document, which greedy continuations go on from
CONTINUATIONS = 20  # of as many documents, all at once

PAIR = tuple[Runner, PreTrainedTokenizerBase]


def chosen_tolerance(outtype: str, logits: float | None, perplexity: float | None) -> Tolerance:
    """That of the numbers in a file, with what is given instead."""
    stated = TOLERANCES[outtype]
    return Tolerance(
        stated.logits if logits is None else logits,
        stated.perplexity if perplexity is None else perplexity,
    )


def certify(
    original: PAIR,
    export: PAIR,
    texts: Sequence[str],
    *,
    context: int,
    scored_documents: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """What an export's own runtime makes of it, beside the original in float32.

    Args:
        texts: held-out documents, all of which become tokens.
        context: tokens that the models read at once.
        scored_documents: of how many of them the models read the beginning, up to the context.
        max_new_tokens: length of each greedy continuation of the first tokens of a document.

    Returns JSON values: `tokens`, `logits`, `greedy`. Raises InputError: no text has a token.
    """
    model, tokenizer = original
    rows = list(_rows(tokenizer, texts[:scored_documents], context))
    if not rows:
        raise InputError("source: its documents hold no token to compare on; give other text")
    return {
        "tokens": compare_tokens(tokenizer, export[1], texts),
        "logits": compare_logits(model, export[0], rows),
        "greedy": compare_continuations(model, export[0], rows, context, max_new_tokens),
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


def compare_logits(model: Runner, other: Runner, rows: Sequence[list[int]]) -> dict[str, Any]:
    """The largest difference between two logits over all places of rows of token ids, and with
    both models the perplexity of all tokens but the first of each row; None: beyond a float.
    """
    differences = []
    losses = []  # (2,) each, in nats
    for ids in rows:
        input_ids = torch.tensor([ids])
        logits = [runner.logits(input_ids)[0] for runner in (model, other)]
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


def compare_continuations(
    model: Runner, other: Runner, rows: Sequence[list[int]], context: int, max_new_tokens: int
) -> dict[str, Any]:
    """Of the likeliest tokens after the first ones of the first rows, how many are the same up to
    the first that is not, row by row.
    """
    length = min(PROMPT_TOKENS, *(len(ids) for ids in rows))
    prompts = torch.tensor([ids[:length] for ids in rows[:CONTINUATIONS]])
    count = min(max_new_tokens, context - length)
    written = [runner.continue_greedily(prompts, count) for runner in (model, other)]
    differ = written[0] != written[1]
    same = (differ.cumsum(1) == 0).sum().item()
    return {"continuations": len(prompts), "tokens": differ.numel(), "same_tokens": same}


def _rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int
) -> Iterator[list[int]]:
    """Ids of the beginning of each text, as many as the model reads at once."""
    start = start_ids(tokenizer)
    for ids in encode_texts(texts, tokenizer):
        row = after_once(start, ids)[:context]
        if len(row) > 1:  # else nothing is predicted
            yield row


def check_certificate(certificate: dict[str, Any], tolerance: Tolerance) -> None:
    """Raise InputError for an export that is another model."""
    _check_tokens(certificate["tokens"])
    logits = certificate["logits"]
    difference = logits["largest_difference"]
    limit = float("inf") if tolerance.logits is None else tolerance.logits
    if not difference <= limit or difference == float("inf"):
        raise InputError(
            f"export: logits differ by up to {difference:.3g}, allowed is {limit:.3g}; nothing is "
            "kept; --outtype f32 keeps every digit, --tolerance allows a larger difference"
        )
    change = perplexity_change(logits)
    if tolerance.perplexity is not None and not change <= tolerance.perplexity:
        raise InputError(
            f"export: its perplexity changes by {change:.2g} of it ({_shown(logits['perplexity'])} "
            f"-> {_shown(logits['perplexity_of_export'])}), allowed is {tolerance.perplexity:.2g}; "
            "nothing is kept; --outtype f32 keeps every digit, --perplexity_tolerance allows a "
            "larger change"
        )


def _check_tokens(tokens: dict[str, Any]) -> None:
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


def perplexity_change(logits: dict[str, Any]) -> float:
    """Of `compare_logits`: up or down, as a share of the original's; NaN: one is beyond a float."""
    original = logits["perplexity"]
    export = logits["perplexity_of_export"]
    if original is None or export is None:
        return float("nan")
    return abs(export / original - 1)


def show_certificate(record: dict[str, Any]) -> None:
    """The table that a person reads."""
    show_table(
        ["compared", record["outtype"]],
        certificate_rows(record),
        title=f"{record['to']}, read back",
    )


def certificate_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What was compared, and what came of it, for a table."""
    tokens = record["tokens"]
    logits = record["logits"]
    greedy = record["greedy"]
    documents = f"{tokens['documents']:,}"
    tolerance = Tolerance(**record["tolerance"])
    stated = "" if tolerance.logits is None else f" (at most {tolerance.logits:g})"
    changed = "" if tolerance.perplexity is None else f" (within {tolerance.perplexity:.2g})"
    return [
        ("documents with the same tokens", f"{documents} of {documents}"),
        (f"largest difference of logits{stated}", f"{logits['largest_difference']:.2g}"),
        (f"perplexity on {logits['tokens']:,} tokens", _shown(logits["perplexity"])),
        (f"perplexity with the export{changed}", _shown(logits["perplexity_of_export"])),
        ("greedy tokens that are the same", f"{greedy['same_tokens']:,} of {greedy['tokens']:,}"),
    ]


def _shown(perplexity: float | None) -> str:
    return "too large" if perplexity is None else f"{perplexity:,.5g}"
