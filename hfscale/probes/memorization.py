"""What a model learned by heart: text that its samples copy, and secrets that were planted in its
training text.
"""

import random
import re

import numpy as np
import regex
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.words import UNSPACED
from hfscale.metrics.intervals import bootstrap_sums, estimate, percentile_interval
from hfscale.metrics.perplexity import score_documents
from hfscale.process import InputError

WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*+|[^\s{UNSPACED}]++")


def longest_copy(text: str, training_text: str) -> str:
    """The longest run of whole words of `text` that stands in `training_text` letter for letter; ""
    if none does. A word goes from space to space; in scripts without spaces between words it is a
    character.
    """
    spans, best, stop = [word.span() for word in WORD.finditer(text)], (0, 0), 0
    for start in range(len(spans)):  # what begins one word later reaches at least as far
        stop = max(stop, start)
        while stop < len(spans) and text[spans[start][0] : spans[stop][1]] in training_text:
            stop += 1
        best = max(best, (start, stop), key=lambda run: run[1] - run[0])
    return text[spans[best[0]][0] : spans[best[1] - 1][1]] if best[1] > best[0] else ""


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
    digits, generator, drawn = pattern.count("#"), random.Random(seed), set()
    while len(drawn) < min(candidates, 10**digits):
        drawn.add(generator.randrange(10**digits))
    others = {_fill(pattern, f"{number:0{digits}}") for number in drawn} - {canary}
    texts = [canary, *sorted(others)]
    nll = score_documents(model, tokenizer, texts, batch_size=batch_size).sums[:, 0]
    rank = 1 + int((nll[1:] <= nll[0]).sum())  # a tie shows nothing
    return {
        "rank": rank,
        "candidates": len(texts),
        "exposure_bits": float(np.log2(len(texts) / rank)),
        "exposure_limit_bits": float(np.log2(len(texts))),
    }


def loss_gap(
    first: np.ndarray, second: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, float | list]:
    """Loss of the second set of documents less that of the first, with a 95 % bootstrap interval.

    Both are (documents, columns) sums as `score_documents` gives them: nll in nats, tokens, ...;
    the sets are resampled independently.
    """

    def loss(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    found = {
        "gap_ci95": percentile_interval(
            loss(bootstrap_sums(second, seed=seed + 1)) - loss(bootstrap_sums(first, seed=seed))
        )
    }
    for i, (name, sums) in enumerate((("train_loss", first), ("validation_loss", second))):
        found |= estimate(sums, lambda sums, name=name: {name: loss(sums)}, seed=seed + i)
    return found | {"gap": found["validation_loss"] - found["train_loss"]}


def _fill(pattern: str, digits: str) -> str:
    filling = iter(digits)
    return "".join(next(filling) if letter == "#" else letter for letter in pattern)
