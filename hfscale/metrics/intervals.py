"""Numbers that are computed from sums over items (documents, questions, ...): bootstrap intervals,
paired tests.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "word_perplexity")
SIGNIFICANCE = 0.05  # below this p-value a difference counts as shown
EXACT_ITEMS = 12  # up to so many items that differ, a paired test tries all ways to swap them
SWAPS_AT_ONCE = 2**22  # items times draws, in memory
ONE_ITEM = "one item: nothing to resample"
NO_SPREAD = "all items scored alike: resampling them cannot show how uncertain the value is"
NO_DIFFERENCE = "both scored alike on every item"


# From sums over items, (..., k), to {name: (...)}.
ValuesOfSums: TypeAlias = Callable[[np.ndarray], dict[str, np.ndarray]]


class Statistics(NamedTuple):
    """What a metric keeps of each item, and how their sums give its values."""

    rows: np.ndarray  # (items, k) float64
    values: ValuesOfSums


def bootstrap_sums(columns: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """(resamples, columns) sums over samples of the items, drawn with replacement and as large as
    the original.

    `columns` is (items, columns). The ratio of two sums is the ratio estimator of that resample
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Equal `seed` and
    number of items give equal draws, so two systems that were scored on the same items are compared
    pair by pair.
    """
    columns = np.asarray(columns, dtype=np.float64)
    items = len(columns)
    generator = np.random.default_rng(seed)
    sums = [columns[generator.integers(items, size=items)].sum(axis=0) for _ in range(resamples)]
    return np.stack(sums)


def percentile_interval(samples: np.ndarray, level: float = 0.95) -> list[float]:
    """[low, high]: the percentile interval at `level` of bootstrapped values, shape
    (resamples,).
    """
    return np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()


def means(names: Sequence[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (...)} from sums (..., k), the last of which counts what the others are means over."""
    return {name: sums[..., i] / sums[..., -1] for i, name in enumerate(names)}


def bootstrap_intervals(
    columns: np.ndarray, values: ValuesOfSums, resamples: int = 1000, seed: int = 0
) -> dict[str, list[float] | None]:
    """{name: [low, high]}, the 95 % interval of each of `values` of the sums over items.

    `columns` is (items, k). One item leaves nothing to resample: its intervals are None.
    """
    if len(columns) <= 1:
        return dict.fromkeys(values(np.sum(columns, axis=0)))
    drawn = values(bootstrap_sums(columns, resamples, seed))
    return {name: percentile_interval(samples) for name, samples in drawn.items()}


def estimate(
    columns: np.ndarray, values: ValuesOfSums, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """{name: value, name_ci95: [low, high] or None} of `values`, which maps sums (..., k) to {name:
    (...)}.

    `columns` is (items, k); see `bootstrap_intervals`.
    """
    intervals = bootstrap_intervals(columns, values, resamples, seed)
    estimates: dict[str, Any] = {}
    for name, value in values(np.sum(columns, axis=0)).items():
        estimates[name] = float(value)
        estimates[f"{name}_ci95"] = intervals[name]
    return estimates


def interval_notes(metrics: dict[str, Any]) -> dict[str, str]:
    """Why an interval of `estimate` is None or has no width (but for rounding), by its name."""
    intervals = {name: value for name, value in metrics.items() if name.endswith("_ci95")}
    notes = {name: interval_note(value) for name, value in intervals.items()}
    return {name: note for name, note in notes.items() if note}


def interval_note(interval: Sequence[float] | None) -> str:
    """Why an interval is None or has no width; "" for any other."""
    if interval is None:
        return ONE_ITEM
    low, high = interval
    return NO_SPREAD if np.isclose(low, high, rtol=1e-9, atol=0) else ""


def by_note(notes: dict[str, str]) -> dict[str, str]:
    """{note: the names that it is about, as a list to read}; an interval goes by its value's
    name.
    """
    names_by_note: dict[str, list[str]] = {}
    for name, note in notes.items():
        names_by_note.setdefault(note, []).append(name.removesuffix("_ci95"))
    return {note: ", ".join(dict.fromkeys(names)) for note, names in names_by_note.items()}


def compare_paired(
    first: np.ndarray,
    second: np.ndarray,
    values: ValuesOfSums,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{name: {"difference", "difference_ci95", "p_value", "better"}} of second minus first.

    Both are (items, k) over the same items. The interval is that of a paired bootstrap, in which
    each resample draws the same items for both (Koehn 2004, Statistical Significance Tests for
    Machine Translation Evaluation); None for one item. The p-value is that of `swap_test`.
    `better` is "first" or "second" where it is below 0.05, else None: not shown.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} items cannot be paired")
    first_values = values(np.sum(first, axis=0))
    second_values = values(np.sum(second, axis=0))
    # The same seed draws the same items for both.
    first_drawn = values(bootstrap_sums(first, resamples, seed))
    second_drawn = values(bootstrap_sums(second, resamples, seed))
    p_values = swap_test(first, second, values, draws=resamples, seed=seed)
    comparisons = {}
    for name in first_values:
        difference = float(second_values[name] - first_values[name])
        differences = second_drawn[name] - first_drawn[name]
        comparisons[name] = {
            "difference": difference,
            "difference_ci95": percentile_interval(differences) if len(first) > 1 else None,
            "p_value": p_values[name],
            "better": _better(name, difference, p_values[name]),
        }
    return comparisons


def _better(name: str, difference: float, p_value: float) -> str | None:
    """Which of two is shown to be better, "first" or "second"; None: it is not shown."""
    if p_value >= SIGNIFICANCE:
        return None
    second_is_better = (difference > 0) != (name in LOWER_IS_BETTER)
    return "second" if second_is_better else "first"


def swap_test(
    first: np.ndarray,
    second: np.ndarray,
    values: ValuesOfSums,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """{name: two-sided p-value} of the difference of `values` between two systems on the same
    items, (items, k) each, if each item's two results could as well have been swapped (Noreen 1989,
    Computer-Intensive Methods for Testing Hypotheses). For a mean it is the sign-flip test.

    With at most 12 items that differ it is exact: the share of all ways to swap them whose
    difference is as large, so never below 2 / 2**items. With more, `draws` of them are tried; the
    results as they are, and all of them swapped, count too (see `drawn_floor`).
    """
    first = np.asarray(first, dtype=np.float64)
    second = np.asarray(second, dtype=np.float64)
    differ = (first != second).any(axis=1)
    changes = (second - first)[differ]
    first_sums = first.sum(axis=0)
    both_sums = (first + second).sum(axis=0)
    first_values = values(first_sums)
    second_values = values(both_sums - first_sums)
    if len(changes) <= EXACT_ITEMS:
        swaps = _all_swaps(len(changes))
        tried = 0
    else:
        swaps = _drawn_swaps(len(changes), draws, seed)
        tried = 2
    as_large = dict.fromkeys(first_values, tried)
    for block in swaps:
        swapped_sums = first_sums + block @ changes
        swapped_first = values(swapped_sums)
        swapped_second = values(both_sums - swapped_sums)
        tried += len(block)
        for name in as_large:
            observed = abs(second_values[name] - first_values[name])
            # Sums in another order differ in their last bits; equal differences count as equal.
            rounding = 1e-9 * observed + 1e-12 * abs(first_values[name])
            swapped = abs(swapped_second[name] - swapped_first[name])
            as_large[name] += int((swapped >= observed - rounding).sum())
    return {name: count / tried for name, count in as_large.items()}


def sign_flip_p(signs: np.ndarray, seed: int = 0, draws: int = 10_000) -> float:
    """Two-sided p-value of the sum of `signs`, one per item, if each could as well have the other
    sign: `swap_test` against zeros."""
    signs = np.asarray(signs, dtype=np.float64)[:, None]

    def values(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"sum": sums[..., 0]}

    return swap_test(np.zeros_like(signs), signs, values, draws, seed)["sum"]


def drawn_floor(first: np.ndarray, second: np.ndarray, draws: int = 1000) -> float | None:
    """The p-value of `swap_test` for a difference that no drawn swap reaches: the true one may be
    far smaller. None: it draws none, so its value is exact.
    """
    if _count_differing(first, second) <= EXACT_ITEMS:
        return None
    return 2 / (2 + draws)


def sign_flip_floor(signs: np.ndarray, draws: int = 10_000) -> float | None:
    """`drawn_floor` of `sign_flip_p`."""
    signs = np.asarray(signs)[:, None]
    return drawn_floor(np.zeros_like(signs), signs, draws)


def paired_note(first: np.ndarray, second: np.ndarray) -> str:
    """Why `swap_test` of these (items, k) cannot come below 0.05, whatever they are; "" if it
    can.
    """
    differing = _count_differing(first, second)
    if differing == 0:
        return NO_DIFFERENCE
    smallest = 2 / 2**differing
    if smallest < SIGNIFICANCE:
        return ""
    return (
        f"only {differing} of {len(first)} items differ, so the p-value is at least "
        f"{smallest:.4g}: too few to show a difference"
    )


def _count_differing(first: np.ndarray, second: np.ndarray) -> int:
    """On how many items, (items, k) each, the two differ."""
    return int((np.asarray(first) != np.asarray(second)).any(axis=1).sum())


def _all_swaps(items: int) -> Iterator[np.ndarray]:
    """(2**(items - 1), items) of 0 and 1: half of all ways; the others are their mirror images."""
    numbers = np.arange(2 ** max(0, items - 1))[:, None]
    yield (numbers >> np.arange(items)) & 1  # the bits of each number say what is swapped


def _drawn_swaps(items: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """`draws` rows of `items` numbers, 0 and 1, in blocks that fit into memory."""
    generator = np.random.default_rng(seed)
    left = draws
    while left:
        rows = min(left, max(1, SWAPS_AT_ONCE // items))
        yield (generator.random((rows, items)) < 0.5).astype(np.float64)
        left -= rows
