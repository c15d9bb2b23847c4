"""What a metric can be told, and the scorers of sacrebleu and rouge-score that this makes."""

import re
import typing
import unicodedata
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import regex

from hfscale.data.words import find_words
from hfscale.options import convert, did_you_mean
from hfscale.process import InputError

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ROUGE_TOKENIZERS = ("rouge_score", "words", "character")
SQUAD_OPTIONS = {"squad_version": (2, 1)}
# Allowed values, the default first. bleu and chrf take sacrebleu's own options.
OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "rouge": {"tokenizer": ROUGE_TOKENIZERS, "use_stemmer": (False, True)},
    "exact_match": SQUAD_OPTIONS,
    "f1": SQUAD_OPTIONS,
}
BUILT_IN = (*OPTIONS, "bleu", "chrf", "accuracy", "pass_at_k")
# Below these sacrebleu fails, or gives numbers without a meaning.
LEAST = {"max_ngram_order": 1, "smooth_value": 0, "char_order": 1, "word_order": 0, "beta": 0}
CHARACTER = regex.compile(r"\S[\p{M}\u200c\u200d]*+")  # with the marks on it


def check_options(options: dict[str, Any], metrics: Collection[str]) -> None:
    """Raise InputError unless {metric: its options} are of some of `metrics`, and such as these
    take. Those of a metric of the user's own are not looked at."""
    for metric, metric_options in options.items():
        if metric not in metrics:
            hint = did_you_mean(metric, metrics) or f"; add it to --metrics ({', '.join(metrics)})"
            raise InputError(f"metric_options: {metric!r} is not among the metrics{hint}")
        if not isinstance(metric_options, dict):
            raise InputError(
                f"metric_options: {metric}: got {metric_options!r}, expected its options by name, "
                "such as {rouge: {tokenizer: words}}"
            )
        if metric in ("bleu", "chrf"):
            sacrebleu_metric(metric, metric_options)
        elif metric in BUILT_IN:
            filled_options(metric, metric_options)


def filled_options(metric: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a metric that sacrebleu does not compute, defaults filled in.

    Raises InputError: an unknown option or value."""
    known = OPTIONS.get(metric, {})
    for name, value in options.items():
        if name not in known or value not in known[name]:
            raise InputError(f"{metric}: got option {name}={value!r}, expected {known or 'none'}")
    filled = {name: values[0] for name, values in known.items()} | options
    if filled.get("use_stemmer") and filled["tokenizer"] != "rouge_score":
        raise InputError(
            f"rouge: use_stemmer stems English words; tokenizer {filled['tokenizer']!r} goes "
            "without it"
        )
    return filled


def sacrebleu_metric(metric: str, options: dict[str, Any]) -> Any:
    """sacrebleu's `BLEU` or `CHRF`.

    Raises InputError: options that it does not take, or a tokenizer whose package is missing."""
    from sacrebleu.metrics import BLEU, CHRF

    scorer = {"bleu": BLEU, "chrf": CHRF}[metric]
    try:
        _check_sacrebleu_options(scorer, options)
        return scorer(**options)
    except Exception as error:  # its own errors, and those of a tokenizer's package or download
        reason = " ".join(str(error).split())
        raise InputError(f"{metric}: sacrebleu does not take {options}: {reason}") from None


def _check_sacrebleu_options(scorer: Any, options: dict[str, Any]) -> None:
    """Raise ValueError for what sacrebleu takes without a word, and fails on later."""
    kinds = typing.get_type_hints(scorer.__init__)
    del kinds["references"]
    for name, value in options.items():
        if name not in kinds:
            raise ValueError(f"unknown option {name}{did_you_mean(name, kinds)}")
        convert(value, kinds[name])
        if value is not None and name in LEAST and value < LEAST[name]:
            raise ValueError(f"{name}: got {value}, expected at least {LEAST[name]}")


def rouge_scorer(tokenizer: str, use_stemmer: bool) -> Any:
    """rouge-score's scorer of ROUGE_TYPES with one of ROUGE_TOKENIZERS."""
    from rouge_score.rouge_scorer import RougeScorer  # takes seconds: it imports nltk

    if tokenizer == "rouge_score":
        return RougeScorer(ROUGE_TYPES, use_stemmer)
    tokens = SimpleNamespace(tokenize=rouge_tokens(tokenizer))
    return RougeScorer(ROUGE_TYPES, use_stemmer, tokenizer=tokens)


def rouge_tokens(tokenizer: str) -> Callable[[str], list[str]]:
    """What cuts a text into the tokens of one of ROUGE_TOKENIZERS, all in lower case; `rouge_score`
    without its stemmer."""
    if tokenizer == "words":
        return lambda text: find_words(text.lower())
    if tokenizer == "character":
        return lambda text: CHARACTER.findall(unicodedata.normalize("NFC", text.lower()))
    return lambda text: re.findall(r"[a-z0-9]+", text.lower())
