"""Bootstrap confidence intervals of numbers that are computed from sums over items (documents, questions, ...)."""

import numpy as np

DRAWS_AT_ONCE = 2**22  # bounds the memory: about 32 MB of indices, whatever the number of items


def bootstrap_sums(columns: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Column sums of `resamples` samples of the items, each as large as the original and drawn with replacement.

    A ratio of two of the sums is the ratio estimator of that resample (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13). Equal `seed` and number of items give equal draws: two systems that were scored on
    the same items are thereby compared pair by pair.

    Args:
        columns: (items, columns), one row per item.
        resamples: number of resamples.
        seed: of `numpy.random.default_rng`.

    Returns:
        (resamples, columns) float64.
    """
    columns = np.asarray(columns, dtype=np.float64)
    items = len(columns)
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // items)
    sums = np.empty((resamples, columns.shape[1]))
    for start in range(0, resamples, at_once):
        draws = generator.integers(items, size=(min(at_once, resamples - start), items))
        for column in range(columns.shape[1]):
            sums[start : start + len(draws), column] = columns[:, column][draws].sum(axis=1)
    return sums


def percentile_interval(samples: np.ndarray, level: float = 0.95) -> list[float]:
    """[low, high]: the percentile interval at `level` of bootstrapped values, shape (resamples,)."""
    tail = 100 * (1 - level) / 2
    return [float(bound) for bound in np.percentile(samples, [tail, 100 - tail])]
