"""Several sources -> one data set, with each source's share and epochs known exactly."""

import numpy as np
from datasets import Dataset, concatenate_datasets

from hfscale.config import InputError


def mix(sources: dict[str, Dataset], weights: dict[str, float] | float | str = "proportional", *,
        size: int | None = None, seed: int = 42) -> tuple[Dataset, dict[str, float]]:
    """Shuffled rows of all sources in the wanted shares, and the epochs of each source that they hold.

    A share counts rows. Mix packed rows to weigh by tokens, or texts to weigh by documents. Counts are exact rather
    than drawn: a source gives each of its rows once per whole epoch, and the rest from one more permutation.

    Args:
        sources: data sets with the same columns, by name.
        weights: one weight for each name; or a temperature T, which makes the share of a source of n rows
            proportional to n^(1/T) (1: as the sizes are; larger: nearer to equal); or "proportional", the same as 1.
        size: rows of the mixture; default: as many as the sources hold together.
        seed: of the permutations and of the final order.

    Raises:
        InputError: an empty source, other names than the sources', a weight below 0, or a temperature not above 0.
    """
    lengths = np.array([len(rows) for rows in sources.values()])
    if not sources or not lengths.all():
        raise InputError(f"mixture: no rows in {[name for name, rows in sources.items() if not len(rows)]}; "
                         "give sources that hold text")
    counts = _counts(_weights(weights, list(sources), lengths), lengths.sum() if size is None else size)
    generator = np.random.default_rng(seed)
    parts = []
    for rows, count in zip(sources.values(), counts, strict=True):
        order = [generator.permutation(len(rows)) for _ in range(-(-int(count) // len(rows)))]
        parts.append(rows.select(np.concatenate([np.empty(0, int), *order])[:count]))
    epochs = {name: float(count / len(rows)) for (name, rows), count in zip(sources.items(), counts, strict=True)}
    return concatenate_datasets(parts).shuffle(seed=seed), epochs


def _weights(weights: dict[str, float] | float | str, names: list[str], lengths: np.ndarray) -> np.ndarray:
    if isinstance(weights, dict):
        if set(weights) != set(names):
            raise InputError(f"mixture: weights for {sorted(weights)}, sources are {sorted(names)}; name the same")
        values = np.array([weights[name] for name in names], float)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.sum() > 0):
            raise InputError(f"mixture: weights {weights}; expected numbers from 0 up, not all 0")
        return values
    temperature = 1.0 if weights == "proportional" else weights
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise InputError(f"mixture: got {weights!r}, expected weights by name, 'proportional' or a number above 0")
    return lengths ** (1 / temperature)


def _counts(weights: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers that sum to `size`, nearest to the shares (largest remainders; the earlier source wins a tie)."""
    exact = weights / weights.sum() * size
    counts = np.floor(exact + 1e-9).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[:size - counts.sum()]] += 1
    return counts
