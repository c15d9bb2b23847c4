"""The number that says how well a run went, what it means, and what stands beside it: the start of
the run, and a simple baseline.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hfscale.report.comparison import NO_MEASURE
from hfscale.report.tables import number

# What a metric is called and what it means, in the order in which one is picked where the run's
# settings name none.
MEANINGS = {
    "reward_accuracy": (
        "of held-out pairs won",
        "the share of pairs of which the tuning raised the better answer above the worse one",
    ),
    "pair_accuracy": (
        "of held-out pairs right",
        "the share of pairs of which the model finds the better answer likelier, per token",
    ),
    "reward_margin": (
        "reward margin",
        "by how much more good held-out answers gained than bad ones; 0 is nothing learned",
    ),
    "attribute_accuracy": (
        "% attributes right",
        "the share of what captions say (such as colour or number) that is in the picture",
    ),
    "exact_match": (
        "% exact match",
        "the share of held-out answers that are the reference, word for word",
    ),
    "accuracy": ("accuracy", "the share of held-out questions that are answered right"),
    "f1": ("F1", "how many words answers and references share; 100 is all"),
    "bleu": ("BLEU", "how many word sequences of the references the answers have; 100 is all"),
    "chrf": ("chrF", "how many character sequences of the references the answers have; 100 is all"),
    "rougeL": ("ROUGE-L", "how long a word sequence answers and references share; 1 is all of it"),
    "rougeLsum": ("ROUGE-Lsum", "the same as ROUGE-L, sentence by sentence; 1 is all"),
    "rouge1": ("ROUGE-1", "how many words answers and references share; 1 is all"),
    "rouge2": ("ROUGE-2", "how many pairs of words answers and references share; 1 is all"),
    "bits_per_byte": (
        "bits per byte",
        "what the model needs, on average, for each byte of text that it never trained on; 8 is "
        "guessing",
    ),
    "perplexity": (
        "perplexity",
        "among how many equally likely tokens the model hesitates, on average, in text that it "
        "never trained on; 1 is certainty",
    ),
    "loss": ("nats per token", "the loss on text that the model never trained on; 0 is certainty"),
}
# Where a metric stands before any training by what it measures.
STARTS = {"reward_accuracy": "Before training every pair is a tie, which counts 0.5"}
LOWER_IS_BETTER = ("bits_per_byte", "perplexity", "word_perplexity", "loss")
COUNTS = ("tokens", "finished")  # measured beside the metrics, and none themselves


class Bar(NamedTuple):
    """One of the numbers that stand beside each other."""

    name: str
    value: float
    ci95: Sequence[float] | None


class Measured(NamedTuple):
    """A metric before the training, of the baseline, and after it; None: not measured."""

    metric: str
    label: str
    meaning: str
    after: float | None
    after_ci95: Sequence[float] | None
    before: float | None
    before_ci95: Sequence[float] | None
    baseline: float | None
    baseline_ci95: Sequence[float] | None
    baseline_name: str

    @property
    def name(self) -> str:
        """Without the unit, which the headline's label begins with."""
        return self.label.removeprefix("% ")


def headline(record: dict[str, Any], history: Sequence[dict[str, Any]] = ()) -> Measured | None:
    """The metric that matters for this run; None: nothing was measured on held-out text.

    Of a task it is the first that its settings name, of preferences the reward's accuracy, else
    bits per byte, which does not depend on the tokenizer.
    """
    asked = record["config"].get("metrics")
    names = [*(asked if isinstance(asked, list) else ()), *MEANINGS]
    for name in names:
        if _is_number(record["metrics"].get(f"eval_{name}")):
            return measured(record, str(name), history)
    return None


def measured(
    record: dict[str, Any], metric: str, history: Sequence[dict[str, Any]] = ()
) -> Measured:
    """What the record, or the log's evaluation before the first step, knows of a metric."""
    metrics = record["metrics"]
    label, meaning = MEANINGS.get(metric, (metric.replace("_", " "), ""))
    before = metrics.get(f"before_eval_{metric}")
    if before is None:
        before = _at_start(history, f"eval_{metric}")
    baseline_name = str(record["config"].get("baseline") or "baseline").replace("_", " ")
    return Measured(
        metric,
        label,
        meaning,
        metrics.get(f"eval_{metric}"),
        metrics.get(f"eval_{metric}_ci95"),
        before,
        metrics.get(f"before_eval_{metric}_ci95"),
        metrics.get(f"baseline_{metric}"),
        metrics.get(f"baseline_{metric}_ci95"),
        baseline_name,
    )


def _at_start(history: Sequence[dict[str, Any]], name: str) -> Any:
    """What an evaluation before the first step gave."""
    for log in history:
        if log.get("step") == 0 and _is_number(log.get(name)):
            return log[name]
    return None


def compared(record: dict[str, Any], history: Sequence[dict[str, Any]] = ()) -> list[Measured]:
    """Each metric that has a start or a baseline to stand beside, but for counts, and for the loss,
    which the perplexity says more plainly.
    """
    names = [
        name.removeprefix("eval_")
        for name in record["metrics"]
        if name.startswith("eval_") and not name.endswith((*NO_MEASURE, "_ci95"))
    ]
    found = [measured(record, name, history) for name in names if name not in (*COUNTS, "loss")]
    return [
        each
        for each in found
        if _is_number(each.after) and not (each.before is None and each.baseline is None)
    ]


def bar_rows(metric: Measured) -> list[Bar]:
    """The numbers that were measured, the one after training last."""
    rows = (
        ("before training", metric.before, metric.before_ci95),
        (f"baseline: {metric.baseline_name}", metric.baseline, metric.baseline_ci95),
        ("after training", metric.after, metric.after_ci95),
    )
    return [Bar(name, value, ci95) for name, value, ci95 in rows if value is not None]


def against(metric: Measured) -> str:
    """What the number says beside the start of the run and the baseline, in a sentence."""
    parts = [
        _beside(metric, "before training it was", metric.before, metric.before_ci95),
        _beside(
            metric,
            f"the baseline ({metric.baseline_name}) has",
            metric.baseline,
            metric.baseline_ci95,
        ),
    ]
    said = "; ".join(part for part in (STARTS.get(metric.metric, ""), *parts) if part)
    if not said:
        return "There is no measurement before training, and no baseline, to compare it with."
    return f"{said[0].upper()}{said[1:]}."


def _beside(
    metric: Measured, words: str, other: float | None, other_ci95: Sequence[float] | None
) -> str:
    """One comparison: how much better, or that chance could have made the difference."""
    if not _is_number(other) or other is None or metric.after is None:
        return ""
    said = f"{words} {number(other)}"
    if metric.after == other:
        return f"{said}, the same"
    if _overlap(metric.after_ci95, other_ci95):
        return f"{said}, and the intervals overlap: the difference may be chance"
    better = (metric.after < other) == (metric.metric in LOWER_IS_BETTER)
    word = "better" if better else "worse"
    if metric.metric in LOWER_IS_BETTER and other > 0:
        percent = abs(1 - metric.after / other)
        less = "less" if better else "more"
        return f"{said}, now it is {percent:.0%} {less}"
    return (
        f"{said}, {'so' if better else 'but'} the model is {word} by {_difference(metric, other)}"
    )


def _difference(metric: Measured, other: float) -> str:
    assert metric.after is not None
    return number(abs(metric.after - other), 3)


def _overlap(first: Sequence[float] | None, second: Sequence[float] | None) -> bool:
    if not first or not second:
        return False
    return first[0] <= second[1] and second[0] <= first[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
