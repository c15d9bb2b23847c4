"""The metrics as an `evaluate.Metric`, for code that speaks that interface. Importing `evaluate`
takes seconds.
"""

import evaluate
import numpy as np
from datasets import Features, List, Value

from hfscale.metrics import texts as metrics

# One format for all that compare texts, so that they combine; references are a string or a list of
# strings per item.
TEXT_FEATURES = [
    Features(predictions=Value("string"), references=golds)
    for golds in (Value("string"), List(Value("string")))
]
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
STATISTICS = {
    "accuracy": metrics.choice_statistics,
    "pass_at_k": metrics.pass_at_k_statistics,
    "perplexity": lambda nll, tokens, bytes, words: np.column_stack([nll, tokens, bytes, words]),
}


class SumMetric(evaluate.Metric):
    """`SumMetric("bleu").compute(predictions=[...], references=[...])`, and so for each of
    `metrics.METRICS`.

    It needs no network and runs no code of others. `options` are those of the metric; the other
    arguments, and how it works on several ranks, are those of `evaluate.Metric`: `num_process`,
    `process_id`, `experiment_id` and a `cache_dir` that all ranks share. Raises InputError as
    `item_statistics`.
    """

    def __init__(self, metric: str, *, options: dict | None = None, **kwargs):
        metrics.check_metric(metric)
        self.options = options or {}
        super().__init__(config_name=metric, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = (
            TEXT_FEATURES
            if self.config_name in metrics.TEXT_METRICS
            else FEATURES[self.config_name]
        )
        return evaluate.MetricInfo(
            description=metrics.signature(self.config_name, **self.options),
            citation="",
            inputs_description="",
            features=features,
        )

    def _compute(self, **columns) -> dict[str, float]:
        if self.config_name in metrics.TEXT_METRICS:
            references = [
                [gold] if isinstance(gold, str) else gold for gold in columns["references"]
            ]
            rows = metrics.item_statistics(
                self.config_name, columns["predictions"], references, **self.options
            )
        else:
            rows = STATISTICS[self.config_name](**columns, **self.options)
        values = metrics.metric_values(self.config_name, rows.sum(axis=0), **self.options)
        return {name: float(value) for name, value in values.items()}
