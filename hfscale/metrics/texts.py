"""Metrics as sums: per item a row of sufficient statistics, and a function of the rows' sum.

So the value of a corpus, its bootstrap interval, a paired comparison and a sum over ranks are one
mechanism: `metric_values(name, item_statistics(name, predictions, references).sum(axis=0))`.
Formulas: docs/metrics.md.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import numpy as np

from hfscale.metrics.code import pass_at_k
from hfscale.metrics.intervals import means
from hfscale.metrics.options import (
    ROUGE_TYPES,
    filled_options,
    rouge_scorer,
    rouge_tokens,
    sacrebleu_metric,
)
from hfscale.options import did_you_mean
from hfscale.process import InputError

# They compare a prediction with references.
TEXT_METRICS = ("bleu", "chrf", "rouge", "exact_match", "f1")
METRICS: tuple[str, ...] = (*TEXT_METRICS, "accuracy", "pass_at_k", "perplexity")
ACCURACIES = ("accuracy", "accuracy_per_token", "accuracy_per_byte")
# How a metric reduces what it counts, for its signature; of several references the best counts.
SIGNATURES = {
    "accuracy": {"ties": "shared"},
    "perplexity": {"mean": "token"},
}
TIE_NATS = 1e-4  # closer log-likelihoods are equal but for float32 rounding


def item_statistics(
    metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]], **options
) -> np.ndarray:
    """(items, k) float64: what a text metric needs of each item, so that sums over items give its
    value.

    Args:
        references: the right answers of each item, at least one; `""` means that no answer is right
            (exact_match, f1).
        options: bleu, chrf: arguments of sacrebleu's `BLEU` and `CHRF` (tokenize, lowercase,
            word_order, ...); rouge: `tokenizer` ("rouge_score", "words" or "character") and
            `use_stemmer`; exact_match, f1: `squad_version`.

    Raises:
        InputError: an unknown metric or option, lengths that differ, or references that it cannot
            score (see `check_references`).
    """
    check_references(metric, references, **options)
    _check_lengths(metric, predictions=predictions, references=references)
    for i, text in enumerate(predictions):
        if not isinstance(text, str):
            raise InputError(f"{metric}: prediction of item {i} is {text!r}, expected a string")
    if metric in ("bleu", "chrf"):
        # sacrebleu wants the first references of all items, then the second ones, ...
        streams = list(zip_longest(*references))
        scorer = sacrebleu_metric(metric, options)
        return np.array(scorer._extract_corpus_statistics(predictions, streams), np.float64)
    settings = filled_options(metric, options)
    if metric == "rouge":
        return _rouge_statistics(predictions, references, settings)
    scores = [
        _squad_score(metric, text, golds, **settings)
        for text, golds in zip(predictions, references, strict=True)
    ]
    return np.column_stack([scores, np.ones(len(scores))])


def _rouge_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], settings: dict[str, Any]
) -> np.ndarray:
    """(items, 5) float64: F1 of each of ROUGE_TYPES, the best over the references; and 1."""
    scorer = rouge_scorer(**settings)
    rows = []
    for text, golds in zip(predictions, references, strict=True):
        scores = scorer.score_multi(golds, text)
        rows.append([*(scores[name].fmeasure for name in ROUGE_TYPES), 1])
    return np.array(rows, dtype=np.float64)


def metric_values(metric: str, sums: np.ndarray, **options) -> dict[str, np.ndarray]:
    """{name: (...)} from sums of statistics, (..., k); in the units of the metric's source.

    bleu, chrf, exact_match, f1: 0 to 100; rouge, accuracy, pass_at_k: 0 to 1; bits_per_byte: bits.
    `options` are those of the statistics.
    """
    check_metric(metric)
    sums = np.asarray(sums, dtype=np.float64)
    if metric in ("bleu", "chrf"):
        return {metric: _sacrebleu_values(metric, sums, options)}
    if metric == "perplexity":
        return _perplexity_values(sums)
    if metric in ("exact_match", "f1"):
        return {metric: 100 * sums[..., 0] / sums[..., 1]}
    if metric == "rouge":
        return means(ROUGE_TYPES, sums)
    if metric == "accuracy":
        return means(ACCURACIES, sums)
    return means([f"pass@{k}" for k in options.get("ks", (1,))], sums)


def _sacrebleu_values(metric: str, sums: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    scorer = sacrebleu_metric(metric, options)

    def score(row: np.ndarray) -> float:
        return scorer._compute_score_from_stats(row.tolist()).score

    return np.apply_along_axis(score, -1, sums)[()]


def _perplexity_values(sums: np.ndarray) -> dict[str, np.ndarray]:
    nll, tokens, num_bytes, words = np.moveaxis(sums, -1, 0)
    return {
        "loss": nll / tokens,
        "perplexity": np.exp(nll / tokens),
        "bits_per_byte": nll / np.log(2) / num_bytes,
        "word_perplexity": np.exp(nll / words),
    }


def signature(metric: str, references: Sequence[Sequence[str]] = (), **options) -> str:
    """What a value depends on, in sacrebleu's form `key:value|...`; with `references` it tells
    their number.
    """
    check_metric(metric)
    if metric in ("bleu", "chrf"):
        scorer = sacrebleu_metric(metric, options)
        scorer.num_refs = _reference_count(references)
        return scorer.get_signature().format()
    if metric == "pass_at_k":
        return f"estimator:unbiased|k:{','.join(map(str, options.get('ks', (1,))))}"
    facts = filled_options(metric, options) | SIGNATURES.get(metric, {"refs": "best"})
    if metric == "rouge":
        facts["version"] = version("rouge_score")
    return "|".join(f"{key}:{value}" for key, value in facts.items())


def _reference_count(references: Sequence[Sequence[str]]) -> int | None:
    """How many references each item has, as sacrebleu tells it: -1 where items differ, None where
    there are none to count."""
    counts = {len(golds) for golds in references}
    if not counts:
        return None
    return counts.pop() if len(counts) == 1 else -1


def check_metric(metric: str) -> None:
    """Raise InputError unless `metric` is one of METRICS; it names the nearest."""
    if metric not in METRICS:
        known = ", ".join(METRICS)
        raise InputError(
            f"metric: got {metric!r}, expected one of {known}{did_you_mean(metric, METRICS)}"
        )


def check_references(
    metric: str,
    references: Sequence[Sequence[str]],
    *,
    places: Sequence[str] | None = None,
    **options,
) -> None:
    """Raise InputError if a text metric cannot score against these references; worth doing before
    generating. `places` names the items, such as file and line."""
    check_metric(metric)
    if metric not in TEXT_METRICS:
        raise InputError(
            f"metric: {metric} does not compare texts; expected one of {', '.join(TEXT_METRICS)}"
        )
    places = places or [f"item {i}" for i in range(len(references))]
    check_reference_lists(metric, references, places)
    if metric not in ("exact_match", "f1"):
        for place, golds in zip(places, references, strict=True):
            if not any(gold.strip() for gold in golds):
                raise InputError(
                    f"{metric}: references of {place} are empty; give its right answer or leave it "
                    "out"
                )
    if metric in ("bleu", "chrf"):
        sacrebleu_metric(metric, options)
        return
    settings = filled_options(metric, options)
    if metric == "rouge":
        _check_rouge_tokenizer(references, places, settings["tokenizer"])


def check_reference_lists(
    metric: str, references: Sequence[Sequence[str]], places: Sequence[str]
) -> None:
    """Raise InputError unless each item has a list of one or more texts as references."""
    _check_lengths(metric, references=references)
    for place, golds in zip(places, references, strict=True):
        is_list = not isinstance(golds, str) and len(golds) > 0
        if not is_list or not all(isinstance(gold, str) for gold in golds):
            raise InputError(
                f"{metric}: references of {place} are {golds!r}, expected a list of one or more "
                "strings"
            )


def choice_statistics(
    logliks: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    num_bytes: Sequence[Sequence[int]],
    answers: Sequence[int],
) -> np.ndarray:
    """(items, 4) float64 for `accuracy`: is the choice with the highest log-likelihood, in sum, per
    token and per UTF-8 byte, the right one; and 1. Of k choices that tie (see `likeliest`) each
    counts 1 / k. Each item has one number per choice.

    Raises:
        InputError: lists of different length, an empty choice, or an answer that is no index of a
            choice.
        FloatingPointError: a log-likelihood is NaN.
    """
    _check_lengths("accuracy", logliks=logliks, tokens=tokens, num_bytes=num_bytes, answers=answers)
    rows = []
    for i, (values, token_counts, byte_counts, answer) in enumerate(
        zip(logliks, tokens, num_bytes, answers, strict=True)
    ):
        _check_choices(i, values, token_counts, byte_counts, answer)
        row = []
        for units in ([1] * len(values), token_counts, byte_counts):
            choices = likeliest(values, units)
            row.append((answer in choices) / len(choices))
        rows.append([*row, 1])
    return np.array(rows, dtype=np.float64)


def _check_choices(
    item: int,
    logliks: Sequence[float],
    tokens: Sequence[int],
    num_bytes: Sequence[int],
    answer: int,
) -> None:
    same_length = len(logliks) == len(tokens) == len(num_bytes)
    if not same_length or not 0 <= answer < len(logliks) or min(*tokens, *num_bytes) < 1:
        raise InputError(
            f"accuracy: item {item} has logliks {logliks}, tokens {tokens}, bytes {num_bytes}, "
            f"answer {answer}; expected one number per choice, no empty choice, and an answer "
            "among them"
        )
    if np.isnan(logliks).any():
        raise FloatingPointError(f"item {item}: the log-likelihood of a choice is nan")


def likeliest(logliks: Sequence[float], units: Sequence[int]) -> list[int]:
    """The choice with the highest log-likelihood per unit, and those that tie with it: `TIE_NATS`
    more would bring them level."""
    divisors = np.asarray(units)
    values = np.asarray(logliks, dtype=np.float64) / divisors
    best = values.max()
    # The first also holds for -inf, whose distance to itself is no number.
    ties = (values == best) | (best - values < TIE_NATS / divisors)
    return np.flatnonzero(ties).tolist()


def tied_accuracies(
    logliks: Sequence[float], tokens: Sequence[int], num_bytes: Sequence[int]
) -> list[str]:
    """In which of ACCURACIES several choices of an item tie for the likeliest."""
    units_of_accuracies = ([1] * len(logliks), tokens, num_bytes)
    return [
        name
        for name, units in zip(ACCURACIES, units_of_accuracies, strict=True)
        if len(likeliest(logliks, units)) > 1
    ]


def tie_shares(tied: Sequence[Sequence[str]]) -> dict[str, float]:
    """{<accuracy>_ties: share of items with a tie} from the `tied_accuracies` of each. Where it is
    large, the accuracy says little but how many choices there are."""
    return {f"{name}_ties": sum(name in names for names in tied) / len(tied) for name in ACCURACIES}


def pass_at_k_statistics(
    n: Sequence[int], c: Sequence[int], ks: Sequence[int] = (1,)
) -> np.ndarray:
    """(items, len(ks) + 1) float64 from the number of programs and of those that pass, per item;
    see `pass_at_k`.
    """
    _check_lengths("pass_at_k", n=n, c=c)
    rows = []
    for programs, passing in zip(n, c, strict=True):
        rows.append([*(pass_at_k(programs, passing, k) for k in ks), 1])
    return np.array(rows, dtype=np.float64)


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no English article, single spaces."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _check_lengths(metric: str, **columns: Sequence) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        counts = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise InputError(
            f"{metric}: got {counts}; expected one of each per item, and at least one item"
        )


def _squad_score(metric: str, prediction: str, golds: Sequence[str], squad_version: int) -> float:
    """Best score over the right answers, 0 to 1. Version 2 passes over those that normalise to
    nothing, unless all do: then only such a prediction is right. Version 1 gives it exact match 1
    and F1 0.
    """
    words = normalize_answer(prediction).split()
    answers = [normalize_answer(gold).split() for gold in golds]
    if squad_version == 2:
        answers = [answer for answer in answers if answer] or [[]]
    one_is_empty = not words or not answers[0]
    if metric == "exact_match" or (squad_version == 2 and one_is_empty):
        return float(words in answers)
    scores = []
    for answer in answers:
        shared = (Counter(words) & Counter(answer)).total()
        scores.append(2 * shared / max(1, len(words) + len(answer)))
    return max(scores)


def _check_rouge_tokenizer(
    references: Sequence[Sequence[str]], places: Sequence[str], tokenizer: str
) -> None:
    """rouge-score's own tokenizer drops all but a-z and 0-9: the score would be that of the rest,
    often 0.
    """
    tokens = rouge_tokens(tokenizer)
    for place, golds in zip(places, references, strict=True):
        text = " ".join(golds).lower()
        kept = sum(map(len, tokens(text)))
        letters = sum(map(str.isalnum, text))
        if 2 * kept < max(1, letters):
            raise InputError(
                f"rouge: {place}: the tokenizer {tokenizer} drops most of {golds[0][:40]!r}; set "
                "tokenizer to words for letters beyond a to z, to character for text without spaces"
            )
