"""What a model learned by heart: text that its samples copy, and secrets that were planted in its
training text.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import regex
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.words import UNSPACED
from hfscale.metrics.intervals import (
    bootstrap_sums,
    by_note,
    estimate,
    interval_notes,
    percentile_interval,
)
from hfscale.metrics.perplexity import score_documents
from hfscale.process import InputError
from hfscale.report.tables import cell, show_table
from hfscale.shown import show_text

SHOWN_CHARACTERS = 300  # of a copy on the terminal; all of it is in the record
# From space to space, or one character (with the marks on it) of a script without spaces.
WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*+|[^\s{UNSPACED}]++")


def longest_copy(text: str, training_text: str) -> str:
    """The longest run of whole words of `text` that stands in `training_text` letter for letter; ""
    if none does. A word goes from space to space; in scripts without spaces between words it is a
    character.
    """
    spans = [word.span() for word in WORD.finditer(text)]
    longest = (0, 0)
    stop = 0
    for start in range(len(spans)):
        stop = max(stop, start)  # what begins one word later reaches at least as far
        while stop < len(spans) and text[spans[start][0] : spans[stop][1]] in training_text:
            stop += 1
        if stop - start > longest[1] - longest[0]:
            longest = (start, stop)
    start, stop = longest
    if start == stop:
        return ""
    return text[spans[start][0] : spans[stop - 1][1]]


def count_words(text: str) -> int:
    """As `longest_copy` counts them."""
    return len(WORD.findall(text))


def check_canary(canary: str, pattern: str) -> None:
    """Raise InputError if the canary does not have the pattern's form, or the pattern has no #."""
    if "#" not in pattern or not re.fullmatch(re.escape(pattern).replace(r"\#", r"\d"), canary):
        raise InputError(
            f"canary '{canary}': does not have the form '{pattern}' (# stands for one digit)"
        )


def exposure_bits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    canary: str,
    pattern: str,
    *,
    candidates: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, float | int]:
    """Exposure of a planted canary: log2 of the number of texts it is compared with, less log2 of
    its rank by likelihood among them (Carlini et al., The Secret Sharer, 2019). 0 to 1 is what
    chance gives most often; the most that can be seen is `exposure_limit_bits`.

    `pattern` is the canary with # for each random digit; it is compared with all texts of that
    form, or with `candidates` of them drawn at random with `seed`.

    Raises InputError as `check_canary`.
    """
    check_canary(canary, pattern)
    digits = pattern.count("#")
    generator = random.Random(seed)
    numbers: set[int] = set()
    while len(numbers) < min(candidates, 10**digits):
        numbers.add(generator.randrange(10**digits))
    others = {_fill(pattern, f"{number:0{digits}}") for number in numbers} - {canary}
    texts = [canary, *sorted(others)]
    nll = score_documents(model, tokenizer, texts, batch_size=batch_size).sums[:, 0]
    as_likely = int((nll[1:] <= nll[0]).sum())  # a tie shows nothing
    rank = 1 + as_likely
    return {
        "rank": rank,
        "candidates": len(texts),
        "exposure_bits": float(np.log2(len(texts) / rank)),
        "exposure_limit_bits": float(np.log2(len(texts))),
    }


def loss_gap(
    train: np.ndarray, validation: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Loss of held-out documents less that of training documents, in nats per token, with a 95 %
    bootstrap interval.

    Both are (documents, columns) sums as `score_documents` gives them: nll in nats, tokens, ...;
    the sets are resampled independently, with different seeds.
    """
    losses = estimate(train, _named_loss("train_loss"), resamples, seed)
    losses |= estimate(validation, _named_loss("validation_loss"), resamples, seed + 1)
    drawn_train = _loss(bootstrap_sums(train, resamples, seed))
    drawn_validation = _loss(bootstrap_sums(validation, resamples, seed + 1))
    return losses | {
        "gap": losses["validation_loss"] - losses["train_loss"],
        "gap_ci95": percentile_interval(drawn_validation - drawn_train),
    }


def _loss(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _named_loss(name: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda sums: {name: _loss(sums)}


def copy_records(texts: dict[str, Sequence[str]], training_text: str) -> dict[str, Any]:
    """What sets of texts share with the training text, by the sets' names: `longest_copy_words`,
    how many words the longest copy in each text has, and `longest_copy`, the longest of all.
    """
    copies = {name: [longest_copy(text, training_text) for text in texts[name]] for name in texts}
    return {
        "longest_copy_words": {name: list(map(count_words, copies[name])) for name in copies},
        "longest_copy": {name: max(copies[name], key=count_words) for name in copies},
    }


def show_memorization(record: dict[str, Any]) -> None:
    """Print the record as a table, with notes on what the intervals cannot show."""
    rows = []
    for name, copy in record["longest_copy"].items():
        text = f"{count_words(copy)} words: {copy[:SHOWN_CHARACTERS]}"
        rows.append((f"longest copy in {name}", text))
    loss = record["loss"]
    rows += [(name, cell(loss, name)) for name in ("train_loss", "validation_loss", "gap")]
    for canary, exposure in record["canaries"].items():
        text = (
            f"exposure {exposure['exposure_bits']:.1f} of at most "
            f"{exposure['exposure_limit_bits']:.1f} bits, rank {exposure['rank']:,} of "
            f"{exposure['candidates']:,}"
        )
        rows.append((canary, text))
    show_table(("what", "value"), rows)
    for note, names in by_note(interval_notes(loss)).items():
        show_text(f"{names}: {note}")


def _fill(pattern: str, digits: str) -> str:
    filling = iter(digits)
    return "".join(next(filling) if letter == "#" else letter for letter in pattern)
