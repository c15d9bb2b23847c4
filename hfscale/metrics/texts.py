"""Metrics as sums: per item a row of sufficient statistics, and a function of the rows' sum.

So the value of a corpus, its bootstrap interval, a paired comparison and a sum over ranks are one
mechanism: `metric_values(name, item_statistics(name, predictions, references).sum(axis=0))`.
Formulas: docs/metrics.md.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from itertools import zip_longest

import numpy as np

from hfscale.metrics.code import pass_at_k
from hfscale.metrics.intervals import estimate, means
from hfscale.metrics.options import (
    ROUGE_TYPES,
    filled_options,
    rouge_scorer,
    rouge_tokens,
    sacrebleu_metric,
)
from hfscale.options import did_you_mean
from hfscale.process import InputError

TEXT_METRICS = (
    "bleu",
    "chrf",
    "rouge",
    "exact_match",
    "f1",
)  # they compare a prediction with references
METRICS = (*TEXT_METRICS, "accuracy", "pass_at_k", "perplexity")
ACCURACIES = ("accuracy", "accuracy_per_token", "accuracy_per_byte")
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
        streams = list(
            zip_longest(*references)
        )  # sacrebleu wants the first references of all items, the second, ...
        return np.array(
            sacrebleu_metric(metric, options)._extract_corpus_statistics(predictions, streams),
            np.float64,
        )
    settings, pairs = filled_options(metric, options), zip(predictions, references, strict=True)
    if metric == "rouge":
        scores = map(rouge_scorer(**settings).score_multi, references, predictions)
        rows = [[*(score[name].fmeasure for name in ROUGE_TYPES), 1] for score in scores]
    else:
        rows = [[_squad_score(metric, text, golds, **settings), 1] for text, golds in pairs]
    return np.array(rows, dtype=np.float64)


def metric_values(metric: str, sums: np.ndarray, **options) -> dict[str, np.ndarray]:
    """{name: (...)} from sums of statistics, (..., k); in the units of the metric's source.

    bleu, chrf, exact_match, f1: 0 to 100; rouge, accuracy, pass_at_k: 0 to 1; bits_per_byte: bits.
    `options` are those of the statistics.
    """
    check_metric(metric)
    sums = np.asarray(sums, dtype=np.float64)
    if metric in ("bleu", "chrf"):
        value = sacrebleu_metric(metric, options)._compute_score_from_stats
        return {metric: np.apply_along_axis(lambda row: value(row.tolist()).score, -1, sums)[()]}
    if metric == "perplexity":
        nll, tokens, num_bytes, words = np.moveaxis(sums, -1, 0)
        return {
            "loss": nll / tokens,
            "perplexity": np.exp(nll / tokens),
            "bits_per_byte": nll / np.log(2) / num_bytes,
            "word_perplexity": np.exp(nll / words),
        }
    if metric in ("exact_match", "f1"):
        return {metric: 100 * sums[..., 0] / sums[..., 1]}
    names = {
        "rouge": ROUGE_TYPES,
        "accuracy": ACCURACIES,
        "pass_at_k": [f"pass@{k}" for k in options.get("ks", (1,))],
    }
    return means(names[metric], sums)


def text_statistics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str],
    options: dict[str, dict],
) -> dict[str, np.ndarray]:
    """{metric: `item_statistics`} with the options of each metric."""
    return {
        metric: item_statistics(metric, predictions, references, **options.get(metric, {}))
        for metric in metrics
    }


def metrics_of(columns: dict[str, np.ndarray], options: dict[str, dict], seed: int = 0) -> dict:
    """The values of {metric: statistics of the items}, each with its 95 % interval beside it as
    `_ci95`.
    """
    found = {}
    for metric, rows in columns.items():
        found |= estimate(
            rows, partial(metric_values, metric, **options.get(metric, {})), seed=seed
        )
    return found


def signature(metric: str, references: Sequence[Sequence[str]] = (), **options) -> str:
    """What a value depends on, in sacrebleu's form `key:value|...`; with `references` it tells
    their number.
    """
    check_metric(metric)
    counts = {len(golds) for golds in references}
    if metric in ("bleu", "chrf"):
        scorer = sacrebleu_metric(metric, options)
        scorer.num_refs = None if not counts else counts.pop() if len(counts) == 1 else -1
        return scorer.get_signature().format()
    if metric == "pass_at_k":
        return f"estimator:unbiased|k:{','.join(map(str, options.get('ks', (1,))))}"
    how = {
        "rouge": {"refs": "best", "version": version("rouge_score")},
        "accuracy": {"ties": "shared"},
        "perplexity": {"mean": "token"},
    }.get(metric, {"refs": "best"})
    return "|".join(
        f"{key}:{value}" for key, value in (filled_options(metric, options) | how).items()
    )


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
    _check_lengths(metric, references=references)
    places = places or [f"item {i}" for i in range(len(references))]
    for place, golds in zip(places, references, strict=True):
        if isinstance(golds, str) or not golds or not all(isinstance(gold, str) for gold in golds):
            raise InputError(
                f"{metric}: references of {place} are {golds!r}, expected a list of one or more "
                "strings"
            )
        if metric not in ("exact_match", "f1") and not any(gold.strip() for gold in golds):
            raise InputError(
                f"{metric}: references of {place} are empty; give its right answer or leave it out"
            )
    if metric in ("bleu", "chrf"):
        sacrebleu_metric(metric, options)
    else:
        filled = filled_options(metric, options)
    if metric == "rouge":
        _check_rouge_tokenizer(references, places, filled["tokenizer"])


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
    for i, (values, *units, answer) in enumerate(
        zip(logliks, tokens, num_bytes, answers, strict=True)
    ):
        if (
            {len(unit) for unit in units} != {len(values)}
            or not 0 <= answer < len(values)
            or np.min(units) < 1
        ):
            raise InputError(
                f"accuracy: item {i} has logliks {values}, tokens {units[0]}, bytes {units[1]}, "
                f"answer {answer}; expected one number per choice, no empty choice, and an answer "
                "among them"
            )
        if np.isnan(values).any():
            raise FloatingPointError(f"item {i}: the log-likelihood of a choice is nan")
        best = [likeliest(values, unit) for unit in (np.ones(len(values)), *units)]
        rows.append([*((answer in choices) / len(choices) for choices in best), 1])
    return np.array(rows, dtype=np.float64)


def likeliest(logliks: Sequence[float], units: Sequence[int] | np.ndarray) -> list[int]:
    """The choice with the highest log-likelihood per unit, and those that tie with it: `TIE_NATS`
    more would bring them level."""
    units = np.asarray(units)
    values = np.asarray(logliks, dtype=np.float64) / units
    best = values.max()
    return np.flatnonzero((values == best) | (best - values < TIE_NATS / units)).tolist()


def tied_accuracies(
    logliks: Sequence[float], tokens: Sequence[int], num_bytes: Sequence[int]
) -> list[str]:
    """In which of ACCURACIES several choices of an item tie for the likeliest."""
    units = (np.ones(len(logliks)), tokens, num_bytes)
    return [
        name
        for name, unit in zip(ACCURACIES, units, strict=True)
        if len(likeliest(logliks, unit)) > 1
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
    rows = [[*(pass_at_k(*counts, k) for k in ks), 1] for counts in zip(n, c, strict=True)]
    return np.array(rows, dtype=np.float64)


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no English article, single spaces."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _check_lengths(metric: str, **columns: Sequence) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise InputError(
            f"{metric}: got {', '.join(f'{n} {name}' for name, n in lengths.items())}; expected "
            "one of each per item, and at least one item"
        )


def _squad_score(metric: str, prediction: str, golds: Sequence[str], squad_version: int) -> float:
    """Best score over the right answers, 0 to 1. Version 2 passes over those that normalise to
    nothing, unless all do: then only such a prediction is right. Version 1 gives it exact match 1
    and F1 0.
    """
    words, answers = (
        normalize_answer(prediction).split(),
        [normalize_answer(gold).split() for gold in golds],
    )
    if squad_version == 2:
        answers = [answer for answer in answers if answer] or [[]]
    if metric == "exact_match" or squad_version == 2 and not (words and answers[0]):
        return float(words in answers)
    shared = [sum((Counter(words) & Counter(answer)).values()) for answer in answers]
    return max(
        2 * n / max(1, len(words) + len(answer)) for n, answer in zip(shared, answers, strict=True)
    )


def _check_rouge_tokenizer(
    references: Sequence[Sequence[str]], places: Sequence[str], tokenizer: str
) -> None:
    """rouge-score's own tokenizer drops all but a-z and 0-9: the score would be that of the rest,
    often 0.
    """
    tokens = rouge_tokens(tokenizer)
    for place, golds in zip(places, references, strict=True):
        text = " ".join(golds).lower()
        kept, letters = sum(map(len, tokens(text))), sum(map(str.isalnum, text))
        if 2 * kept < max(1, letters):
            raise InputError(
                f"rouge: {place}: the tokenizer {tokenizer} drops most of {golds[0][:40]!r}; set "
                "tokenizer to words for letters beyond a to z, to character for text without spaces"
            )
