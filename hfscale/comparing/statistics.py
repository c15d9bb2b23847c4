"""Whether a difference between two ways to train is real: paired tests over seeds, with and without
looking at each seed as it comes.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95  # of all intervals
SIGNIFICANCE = 1 - LEVEL
POWER = 0.8  # chance to see a difference that is there
# How large, in standard deviations of the paired differences, the always-valid test takes a
# difference to be: their variance. A larger one sees a large difference after fewer seeds (3, where
# 1 takes 5), and a small one after more.
EFFECT_VARIANCE = 10.0
MOST_SEEDS = 10**7  # that a forecast looks at


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """The mean of second minus first over seeds, with the interval and two-sided p-value of
    Student's t-test of paired values.

    Returns `difference`, `difference_ci95`, `p_value`, `standard_deviation` (of the differences,
    over seeds) and `seeds`. Differences that are all alike leave nothing to test: the interval and
    p-value are None, but for no difference at all (interval [0, 0], p-value 1).

    Raises ValueError: other numbers of values, or fewer than two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} values: expected pairs, two at least")
    differences = np.subtract(second, first)
    test: dict[str, Any] = {"difference_ci95": None, "p_value": None}
    if not differences.any():
        test = {"difference_ci95": [0.0, 0.0], "p_value": 1.0}
    elif np.ptp(differences):
        result = stats.ttest_1samp(differences, 0.0)
        interval = result.confidence_interval(LEVEL)
        test = {
            "difference_ci95": [float(interval.low), float(interval.high)],
            "p_value": float(result.pvalue),
        }
    return {
        "difference": float(differences.mean()),
        **test,
        "standard_deviation": float(differences.std(ddof=1)),
        "seeds": len(differences),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, each raised so that the chance of any false alarm among
    all of them stays below the level that they are read at (Holm 1979, A Simple Sequentially
    Rejective Multiple Test Procedure), in their order.
    """
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def seeds_to_detect(standard_deviation: float, detect: float, power: float = POWER) -> int:
    """How many seeds the paired t-test takes to show a mean difference of `detect` with a chance
    of `power`, where the paired differences scatter by `standard_deviation`.

    Raises ValueError: one of them is not positive, or it takes more than ten million.
    """
    from statsmodels.stats.power import TTestPower

    if not (standard_deviation > 0 and detect > 0):
        raise ValueError(f"{detect} of {standard_deviation}: expected positive numbers")
    effect_size = detect / standard_deviation

    def chance(seeds: int) -> float:
        return float(TTestPower().power(effect_size, seeds, SIGNIFICANCE))

    seeds = range(2, MOST_SEEDS)
    enough = bisect.bisect_left(seeds, power, key=chance)
    if enough == len(seeds):
        raise ValueError(f"{detect} of {standard_deviation}: more than {MOST_SEEDS:,} seeds")
    return seeds[enough]


def deviation_interval(standard_deviation: float, count: int) -> list[float]:
    """The 95 % interval of a standard deviation that was found from `count` normal values."""
    tails = [(1 + LEVEL) / 2, (1 - LEVEL) / 2]
    ratios = (count - 1) / stats.chi2.ppf(tails, count - 1)
    return (standard_deviation * np.sqrt(ratios)).tolist()


def anytime_p_value(differences: Sequence[float]) -> float:
    """The always-valid p-value that the paired differences have no mean, whatever number of seeds
    one stops at and however often one looked: the least, over all looks so far, of one over the
    Bayes factor of the t-test.

    The factor weighs a normal prior of variance `EFFECT_VARIANCE` on the mean, in standard
    deviations, against no mean; with the standard deviation's right Haar prior it is an e-process:
    the chance that it ever passes 1/p is at most p (Lindon, Ham, Tingley and Bojinov 2022,
    Anytime-Valid Linear Models, arXiv:2210.08589; Hendriksen, de Heide and Grünwald 2021, Optional
    Stopping with Bayes Factors). Before the third seed it cannot be below 0.05.
    """
    least = 1.0
    for seeds in range(2, len(differences) + 1):
        seen = np.asarray(differences[:seeds], dtype=np.float64)
        if np.ptp(seen):
            statistic = seen.mean() / (seen.std(ddof=1) / math.sqrt(seeds))
            least = min(least, math.exp(-_log_bayes_factor(statistic, seeds)))
    return least


def _log_bayes_factor(t_statistic: float, seeds: int) -> float:
    """Of a mean against none: Rouder et al. 2009, Bayesian t tests for accepting and rejecting the
    null hypothesis, with a normal prior in place of its mixture."""
    freedom = seeds - 1
    shrink = 1 / (1 + seeds * EFFECT_VARIANCE)
    square = t_statistic**2 / freedom
    gain = math.log1p(square) - math.log1p(shrink * square)
    return 0.5 * math.log(shrink) + 0.5 * seeds * gain


def anytime_interval(differences: Sequence[float]) -> list[float] | None:
    """[low, high] that holds the mean difference at every number of seeds at once, with a chance of
    95 %: all means that `anytime_p_value` would not reject at any look so far. None: too few seeds
    to bound it, or differences without spread.
    """
    lows, highs = [-math.inf], [math.inf]
    for seeds in range(2, len(differences) + 1):
        seen = np.asarray(differences[:seeds], dtype=np.float64)
        reach = _anytime_t_bound(seeds) * seen.std(ddof=1) / math.sqrt(seeds)
        if reach:
            lows.append(seen.mean() - reach)
            highs.append(seen.mean() + reach)
    low, high = float(max(lows)), float(min(highs))
    return [low, high] if math.isfinite(low) else None


def _anytime_t_bound(seeds: int) -> float:
    """The t statistic at which the Bayes factor reaches 1 / 0.05; infinite: at none."""
    freedom = seeds - 1
    shrink = 1 / (1 + seeds * EFFECT_VARIANCE)
    ratio = (1 / (SIGNIFICANCE**2 * shrink)) ** (1 / seeds)
    if ratio * shrink >= 1:
        return math.inf
    return math.sqrt(freedom * (ratio - 1) / (1 - ratio * shrink))
