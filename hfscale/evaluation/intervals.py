"""Bootstrap confidence intervals of numbers that are computed from sums over items (documents, questions, ...)."""

from collections.abc import Callable, Sequence

import numpy as np

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "word_perplexity")
ONE_ITEM = "one item: nothing to resample"
NO_SPREAD = "all items scored alike: resampling them cannot show how uncertain the value is"


def bootstrap_sums(columns: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """(resamples, columns) sums over samples of the items, drawn with replacement and as large as the original.

    `columns` is (items, columns). The ratio of two sums is the ratio estimator of that resample (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Equal `seed` and number of items give equal
    draws, so two systems that were scored on the same items are compared pair by pair.
    """
    columns = np.asarray(columns, dtype=np.float64)
    generator, items = np.random.default_rng(seed), len(columns)
    return np.stack([columns[generator.integers(items, size=items)].sum(axis=0) for _ in range(resamples)])


def percentile_interval(samples: np.ndarray, level: float = 0.95) -> list[float]:
    """[low, high]: the percentile interval at `level` of bootstrapped values, shape (resamples,)."""
    return np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()


def means(names: Sequence[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (...)} from sums (..., k), the last of which counts what the others are means over."""
    return {name: sums[..., i] / sums[..., -1] for i, name in enumerate(names)}


def estimate(columns: np.ndarray, values: Callable, resamples: int = 1000, seed: int = 0) -> dict:
    """{name: value, name_ci95: [low, high] or None} of `values`, which maps sums (..., k) to {name: (...)}.

    `columns` is (items, k). One item leaves nothing to resample: its interval is None.
    """
    drawn, found = values(bootstrap_sums(columns, resamples, seed)) if len(columns) > 1 else {}, {}
    for name, value in values(np.sum(columns, axis=0)).items():
        found[name] = float(value)
        found[f"{name}_ci95"] = percentile_interval(drawn[name]) if drawn else None
    return found


def interval_notes(metrics: dict) -> dict[str, str]:
    """Why an interval of `estimate` is None or has no width, by its name."""
    return {name: ONE_ITEM if value is None else NO_SPREAD for name, value in metrics.items()
            if value is None or isinstance(value, list) and value[0] == value[1]}


def compare(first: np.ndarray, second: np.ndarray, values: Callable, resamples: int = 1000, seed: int = 0
            ) -> dict[str, dict]:
    """{name: {"difference", "difference_ci95", "p_value", "better"}}: paired bootstrap of second minus first.

    Both are (items, k) over the same items. Each resample draws the same items for both (Koehn 2004, Statistical
    Significance Tests for Machine Translation Evaluation). The p-value is twice the smaller share of resampled
    differences on one side of zero, counting the sample itself; `better` is "first" or "second" where p < 0.05, else
    None: not shown.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} items cannot be paired")
    observed = [values(np.sum(columns, axis=0)) for columns in (first, second)]
    drawn = [values(bootstrap_sums(columns, resamples, seed)) for columns in (first, second)]
    found = {}
    for name, before in observed[0].items():
        difference, differences = float(observed[1][name] - before), drawn[1][name] - drawn[0][name]
        smaller = min((differences <= 0).sum(), (differences >= 0).sum())
        p_value = min(1.0, 2 * (1 + int(smaller)) / (1 + resamples))
        rises = (difference > 0) != (name in LOWER_IS_BETTER)
        found[name] = {"difference": difference, "difference_ci95": percentile_interval(differences),
                       "p_value": p_value, "better": ("second" if rises else "first") if p_value < 0.05 else None}
    return found
