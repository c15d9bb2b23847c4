"""Numbers that are computed from sums over items (documents, questions, ...): bootstrap intervals,
paired tests.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "word_perplexity")
SIGNIFICANCE = 0.05  # below this p-value a difference counts as shown
EXACT_ITEMS = 12  # up to so many items that differ, a paired test tries all ways to swap them
SWAPS_AT_ONCE = 2**22  # items times draws, in memory
ONE_ITEM = "one item: nothing to resample"
NO_SPREAD = "all items scored alike: resampling them cannot show how uncertain the value is"
NO_DIFFERENCE = "both scored alike on every item"


def bootstrap_sums(columns: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """(resamples, columns) sums over samples of the items, drawn with replacement and as large as
    the original.

    `columns` is (items, columns). The ratio of two sums is the ratio estimator of that resample
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Equal `seed` and
    number of items give equal draws, so two systems that were scored on the same items are compared
    pair by pair.
    """
    columns = np.asarray(columns, dtype=np.float64)
    generator, items = np.random.default_rng(seed), len(columns)
    return np.stack(
        [columns[generator.integers(items, size=items)].sum(axis=0) for _ in range(resamples)]
    )


def percentile_interval(samples: np.ndarray, level: float = 0.95) -> list[float]:
    """[low, high]: the percentile interval at `level` of bootstrapped values, shape
    (resamples,).
    """
    return np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()


def means(names: Sequence[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (...)} from sums (..., k), the last of which counts what the others are means over."""
    return {name: sums[..., i] / sums[..., -1] for i, name in enumerate(names)}


def estimate(columns: np.ndarray, values: Callable, resamples: int = 1000, seed: int = 0) -> dict:
    """{name: value, name_ci95: [low, high] or None} of `values`, which maps sums (..., k) to {name:
    (...)}.

    `columns` is (items, k). One item leaves nothing to resample: its interval is None.
    """
    drawn, found = values(bootstrap_sums(columns, resamples, seed)) if len(columns) > 1 else {}, {}
    for name, value in values(np.sum(columns, axis=0)).items():
        found[name] = float(value)
        found[f"{name}_ci95"] = percentile_interval(drawn[name]) if drawn else None
    return found


def interval_notes(metrics: dict) -> dict[str, str]:
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
    names: dict[str, list[str]] = {}
    for name, note in notes.items():
        names.setdefault(note, []).append(name.removesuffix("_ci95"))
    return {note: ", ".join(dict.fromkeys(about)) for note, about in names.items()}


def compare(
    first: np.ndarray, second: np.ndarray, values: Callable, resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """{name: {"difference", "difference_ci95", "p_value", "better"}} of second minus first.

    Both are (items, k) over the same items. The interval is that of a paired bootstrap, in which
    each resample draws the same items for both (Koehn 2004, Statistical Significance Tests for
    Machine Translation Evaluation); None for one item. The p-value is that of `swap_test`.
    `better` is "first" or "second" where it is below 0.05, else None: not shown.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} items cannot be paired")
    before, after = (values(np.sum(columns, axis=0)) for columns in (first, second))
    drawn = [values(bootstrap_sums(columns, resamples, seed)) for columns in (first, second)]
    p_values = swap_test(first, second, values, draws=resamples, seed=seed)
    found = {}
    for name in before:
        difference = float(after[name] - before[name])
        differences = drawn[1][name] - drawn[0][name]
        interval = percentile_interval(differences) if len(first) > 1 else None
        rises = (difference > 0) != (name in LOWER_IS_BETTER)
        better = ("second" if rises else "first") if p_values[name] < SIGNIFICANCE else None
        found[name] = {
            "difference": difference,
            "difference_ci95": interval,
            "p_value": p_values[name],
            "better": better,
        }
    return found


def swap_test(
    first: np.ndarray, second: np.ndarray, values: Callable, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """{name: two-sided p-value} of the difference of `values` between two systems on the same
    items, (items, k) each, if each item's two results could as well have been swapped (Noreen 1989,
    Computer-Intensive Methods for Testing Hypotheses). For a mean it is the sign-flip test.

    With at most 12 items that differ it is exact: the share of all ways to swap them whose
    difference is as large, so never below 2 / 2**items. With more, `draws` of them are tried; the
    results as they are, and all of them swapped, count too (see `drawn_floor`).
    """
    first, second = (np.asarray(columns, dtype=np.float64) for columns in (first, second))
    unlike = (first != second).any(axis=1)
    changes = (second - first)[unlike]
    sums, total = first.sum(axis=0), (first + second).sum(axis=0)
    before, after = values(sums), values(total - sums)
    exact = len(changes) <= EXACT_ITEMS
    swaps = _all_swaps(len(changes)) if exact else _drawn_swaps(len(changes), draws, seed)
    as_large = dict.fromkeys(before, 0 if exact else 2)
    tried = 0 if exact else 2
    for part in swaps:
        swapped = sums + part @ changes
        one, other = values(swapped), values(total - swapped)
        tried += len(part)
        for name in as_large:
            observed = abs(after[name] - before[name])
            rounding = 1e-9 * observed + 1e-12 * abs(before[name])
            as_large[name] += int((abs(other[name] - one[name]) >= observed - rounding).sum())
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
    unlike = (np.asarray(first) != np.asarray(second)).any(axis=1).sum()
    return None if unlike <= EXACT_ITEMS else 2 / (2 + draws)


def sign_flip_floor(signs: np.ndarray, draws: int = 10_000) -> float | None:
    """`drawn_floor` of `sign_flip_p`."""
    signs = np.asarray(signs)[:, None]
    return drawn_floor(np.zeros_like(signs), signs, draws)


def paired_note(first: np.ndarray, second: np.ndarray) -> str:
    """Why `swap_test` of these (items, k) cannot come below 0.05, whatever they are; "" if it
    can.
    """
    unlike = int((np.asarray(first) != np.asarray(second)).any(axis=1).sum())
    if not unlike:
        return NO_DIFFERENCE
    smallest = 2 / 2**unlike
    if smallest < SIGNIFICANCE:
        return ""
    return (
        f"only {unlike} of {len(first)} items differ, so the p-value is at least {smallest:.4g}: "
        "too few to show a difference"
    )


def _all_swaps(items: int) -> Iterator[np.ndarray]:
    """(2**(items - 1), items) of 0 and 1: half of all ways; the others are their mirror images."""
    yield (np.arange(2 ** max(0, items - 1))[:, None] >> np.arange(items)) & 1


def _drawn_swaps(items: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    generator, left = np.random.default_rng(seed), draws
    while left:
        rows = min(left, max(1, SWAPS_AT_ONCE // items))
        yield (generator.random((rows, items)) < 0.5).astype(np.float64)
        left -= rows
