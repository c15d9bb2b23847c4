"""Bootstrap confidence intervals of numbers that are computed from sums over items (documents, questions, ...)."""

import numpy as np


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
