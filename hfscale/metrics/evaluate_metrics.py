"""The metrics that the recipes call: hfscale's own and the user's, as `evaluate.Metric` classes.

    metrics = evaluate.combine(load_metrics(["bleu", "my_file.py:my_metric"], {}))
    compute_with_intervals(metrics, {"predictions": predictions, "references": references})

evaluate computes the values; the intervals are from the sums of the items that each metric keeps.
Importing `evaluate` takes seconds.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value

from hfscale.metrics import texts
from hfscale.metrics.intervals import Statistics, bootstrap_intervals
from hfscale.metrics.options import check_options
from hfscale.metrics.user_metrics import (
    TEXT_FEATURES,
    UserMetric,
    load_folder_metric,
    load_function_metric,
    load_hub_metric,
)
from hfscale.options import did_you_mean
from hfscale.process import InputError
from hfscale.user_code import names_function

# What is measured of a task's answers; perplexity is of text.
TASK_METRICS = tuple(name for name in texts.METRICS if name != "perplexity")
# They need likelihoods of choices, or to run programs; all others judge the answers' text.
MORE_THAN_TEXT = ("accuracy", "pass_at_k")
# What a metric takes that does not compare texts.
FEATURES = {
    "accuracy": Features(
        logliks=List(Value("float64")),
        tokens=List(Value("int64")),
        num_bytes=List(Value("int64")),
        answers=Value("int64"),
    ),
    "pass_at_k": Features(n=Value("int64"), c=Value("int64")),
    "perplexity": Features(
        nll=Value("float64"), tokens=Value("int64"), bytes=Value("int64"), words=Value("int64")
    ),
}
WHOLE_VALUE = "one number for all items, so no interval; a metric can return one per item instead"


class SumMetric(evaluate.Metric):
    """`SumMetric("bleu").compute(predictions=[...], references=[...])`, and so for each of
    `texts.METRICS`.

    It needs no network and runs no code of others. `options` are those of the metric; the other
    arguments, and how it works on several ranks, are those of `evaluate.Metric`: `num_process`,
    `process_id`, `experiment_id` and a `cache_dir` that all ranks share. After `compute`,
    `statistics` has what it kept of each item. Raises InputError as `item_statistics`.
    """

    statistics: Statistics | None = None
    whole_values: Sequence[str] = ()  # none: each value is a function of sums over items

    def __init__(self, metric: str, *, options: dict[str, Any] | None = None, **kwargs: Any):
        texts.check_metric(metric)
        self.label = metric
        # The names of the columns that it takes.
        self.inputs = tuple(FEATURES.get(metric, TEXT_FEATURES[0]))
        self.options = options or {}
        super().__init__(config_name=metric, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=texts.signature(self.config_name, **self.options),
            citation="",
            inputs_description="",
            features=FEATURES.get(self.config_name, TEXT_FEATURES),
        )

    def signature(self, references: Sequence[Sequence[str]] = ()) -> str:
        """What a value depends on; see `texts.signature`."""
        return texts.signature(self.config_name, references, **self.options)

    def _compute(self, **columns: Any) -> dict[str, float]:
        rows = self._rows(columns)
        self.statistics = Statistics(rows, self._values)
        values = self._values(rows.sum(axis=0))
        return {name: float(value) for name, value in values.items()}

    def _rows(self, columns: dict[str, Any]) -> np.ndarray:
        """(items, k) float64. Among `columns` there can be what only other metrics take."""
        metric = self.config_name
        inputs = {name: columns[name] for name in self.inputs}
        if metric == "accuracy":
            return texts.choice_statistics(**inputs)
        if metric == "pass_at_k":
            return texts.pass_at_k_statistics(**inputs, **self.options)
        if metric == "perplexity":
            return np.column_stack(list(inputs.values()))
        references = [
            [golds] if isinstance(golds, str) else golds for golds in columns["references"]
        ]
        return texts.item_statistics(metric, columns["predictions"], references, **self.options)

    def _values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return texts.metric_values(self.config_name, sums, **self.options)


def check_metric_names(
    names: Collection[str], options: dict[str, Any], *, trust_remote_code: bool = False
) -> None:
    """Raise InputError for a metric that is none of those that `load_metrics` takes, and for
    options that a metric does not take. No file is read."""
    for name in names:
        is_known = name in TASK_METRICS or names_function(name) or Path(name).is_dir()
        if not is_known and not trust_remote_code:
            raise InputError(
                f"metrics: got {name!r}, expected one of {', '.join(TASK_METRICS)}, "
                "FILE.py:FUNCTION, the folder of an evaluate metric, or with --trust_remote_code a "
                f"Hub id of one{did_you_mean(name, TASK_METRICS)}"
            )
    check_options(options, names)


def load_metrics(
    names: Sequence[str],
    options: dict[str, dict[str, Any]],
    *,
    pass_at: Sequence[int] = (1,),
    trust_remote_code: bool = False,
) -> list[SumMetric | UserMetric]:
    """The metrics of a task, to be combined with `evaluate.combine`.

    Args:
        names: built-in ones, `my_file.py:function`, folders of evaluate metrics, or Hub ids.
        options: {name: its options}.
        pass_at: the k of pass@k.
        trust_remote_code: whether the code of a metric on the Hub may run.

    Raises:
        InputError: as `check_metric_names`; a file, folder or Hub id without the metric.
    """
    check_metric_names(names, options, trust_remote_code=trust_remote_code)
    metrics: list[SumMetric | UserMetric] = []
    for name in dict.fromkeys(names):
        metric_options = options.get(name, {})
        if name == "pass_at_k":
            metrics.append(SumMetric(name, options={"ks": pass_at}, keep_in_memory=True))
        elif name in TASK_METRICS:
            metrics.append(SumMetric(name, options=metric_options, keep_in_memory=True))
        elif names_function(name):
            metrics.append(load_function_metric(name, metric_options))
        elif Path(name).is_dir():
            metrics.append(load_folder_metric(name, metric_options))
        else:
            metrics.append(load_hub_metric(name, metric_options))
    return metrics


def compute_with_intervals(
    metrics: evaluate.CombinedEvaluations, inputs: Mapping[str, Sequence[Any]], seed: int = 0
) -> dict[str, Any]:
    """The values of the metrics, each with its 95 % interval beside it as `_ci95`: None for a
    single item, left out where a metric gives one number for all items.

    Args:
        metrics: `evaluate.combine` of those that `load_metrics` gives.
        inputs: what they take, each a column with an entry per item: `predictions` and
            `references`, and for others see FEATURES.
        seed: of the bootstrap.

    Raises:
        InputError: as the metrics, or two of them give a value of the same name.
    """
    values = metrics.compute(**inputs)
    intervals: dict[str, list[float] | None] = {}
    names: list[str] = []
    for metric in metrics.evaluation_modules:
        if metric.statistics is not None:
            rows, values_of_sums = metric.statistics
            of_metric = bootstrap_intervals(rows, values_of_sums, seed=seed)
            intervals |= of_metric
            names += of_metric
        names += metric.whole_values
    # evaluate would give each of two equal names a prefix.
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(
            f"metrics: {min(twice)}: two of the metrics give a value of this name; rename one"
        )
    measured: dict[str, Any] = {}
    for name, value in values.items():
        measured[name] = value
        if name in intervals:
            measured[f"{name}_ci95"] = intervals[name]
    return measured


def whole_value_notes(metrics: evaluate.CombinedEvaluations) -> dict[str, str]:
    """{name: why it has no interval} of the values that are one number for all items."""
    names = [name for metric in metrics.evaluation_modules for name in metric.whole_values]
    return dict.fromkeys(names, WHOLE_VALUE)
