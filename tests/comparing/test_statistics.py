"""Intervals that hold what they promise, tests that raise no more false alarms than they say, found
by simulation; and single values against other ways to compute them.
"""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from hfscale.comparing.statistics import (
    EFFECT_VARIANCE,
    anytime_interval,
    anytime_p_value,
    deviation_interval,
    holm,
    paired_difference,
    seeds_to_detect,
)

MOST_SEEDS = 20  # that a planted comparison goes on to


def planted(comparisons: int, mean: float, seed: int, seeds: int = MOST_SEEDS) -> np.ndarray:
    """(comparisons, seeds) of paired differences with a mean, as runs would give them."""
    generator = np.random.default_rng(seed)
    return generator.normal(mean, 0.01, (comparisons, seeds))


def test_a_paired_difference_is_that_of_students_test():
    first = [2.10, 2.14, 2.09, 2.12, 2.11]
    second = [2.01, 2.08, 2.03, 2.01, 2.04]

    found = paired_difference(first, second)

    differences = np.subtract(second, first)
    mean, deviation = differences.mean(), differences.std(ddof=1)
    reach = stats.t.ppf(0.975, 4) * deviation / math.sqrt(5)
    assert found["difference"] == pytest.approx(-0.078)
    assert found["difference_ci95"] == pytest.approx([mean - reach, mean + reach])
    assert found["p_value"] == pytest.approx(stats.ttest_rel(second, first).pvalue)
    assert found["standard_deviation"] == pytest.approx(deviation)
    assert found["seeds"] == 5


def test_alike_runs_show_no_difference_and_a_constant_one_is_not_tested():
    alike = paired_difference([2.0, 2.5], [2.0, 2.5])
    constant = paired_difference([2.0, 2.5], [1.0, 1.5])

    assert (alike["difference_ci95"], alike["p_value"]) == ([0.0, 0.0], 1.0)
    assert (constant["difference"], constant["p_value"]) == (-1.0, None)
    with pytest.raises(ValueError, match="two at least"):
        paired_difference([2.0], [1.0])


def test_intervals_hold_the_true_mean_in_93_to_97_percent_of_planted_comparisons():
    truth = 0.004
    found = [paired_difference(np.zeros(5), row) for row in planted(3000, truth, 1, seeds=5)]
    held = [low <= truth <= high for low, high in (one["difference_ci95"] for one in found)]

    assert 0.93 <= np.mean(held) <= 0.97


def test_a_p_value_among_several_is_holms():
    # By hand: 0.01 x 4, then the larger of that and 0.02 x 3, then 0.03 x 2 (0.06 again), then 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []


def test_so_many_seeds_see_a_difference_four_times_in_five():
    seeds = seeds_to_detect(standard_deviation=0.01, detect=0.01)
    rejected = [
        [stats.ttest_1samp(row[:count], 0).pvalue < 0.05 for count in (seeds, seeds - 1)]
        for row in planted(4000, 0.01, 2, seeds=seeds)
    ]
    enough, one_less = np.mean(rejected, axis=0)

    assert seeds == 10  # as G*Power and pwr.t.test say for an effect of 1
    assert enough >= 0.8 - 0.02
    assert one_less < 0.8
    assert seeds_to_detect(0.01, 1.0) == 2
    with pytest.raises(ValueError, match="positive"):
        seeds_to_detect(0.0, 0.01)


def test_the_interval_of_a_deviation_holds_the_true_one():
    samples = planted(2000, 0.0, 3, seeds=5)
    intervals = [deviation_interval(row.std(ddof=1), 5) for row in samples]

    assert np.mean([low <= 0.01 <= high for low, high in intervals]) == pytest.approx(
        0.95, abs=0.02
    )


def test_looking_at_each_of_a_thousand_null_comparisons_rarely_raises_an_alarm():
    null = planted(1000, 0.0, 4)
    alarms = np.mean([anytime_p_value(row) < 0.05 for row in null])
    looks = range(2, MOST_SEEDS + 1)
    peeking = np.mean(
        [any(stats.ttest_1samp(row[:n], 0).pvalue < 0.05 for n in looks) for row in null[:200]]
    )

    assert alarms <= 0.05
    assert peeking > 0.15  # what the same looks cost with the plain test


def test_an_interval_holds_the_truth_at_every_look_at_once():
    truth = 0.01
    held = [
        low <= truth <= high
        for low, high in map(anytime_interval, planted(1000, truth, 5).tolist())
    ]

    assert np.mean(held) >= 0.95


def test_a_difference_that_is_there_is_found_and_early_where_it_is_large():
    large = planted(200, 0.05, 6)
    stopped = [next(n for n in range(2, 21) if anytime_p_value(row[:n]) < 0.05) for row in large]

    assert min(stopped) == 3  # fewer seeds cannot show anything
    assert np.median(stopped) <= 4


def test_the_always_valid_p_value_is_one_over_the_integrated_likelihood_ratio():
    row = [0.3, 0.5, 0.1, 0.45]
    t = stats.ttest_1samp(row, 0).statistic

    def weighed(effect: float) -> float:
        """Density of t under an effect, weighed by the prior."""
        prior = stats.norm.pdf(effect, 0, math.sqrt(EFFECT_VARIANCE))
        return stats.nct.pdf(t, 3, 2 * effect) * prior

    factor = integrate.quad(weighed, -20, 20, limit=400)[0] / stats.t.pdf(t, 3)

    earlier = min(anytime_p_value(row[:n]) for n in (2, 3))
    assert anytime_p_value(row) == pytest.approx(min(1 / factor, earlier), rel=1e-4)


def test_the_always_valid_interval_ends_where_its_p_value_reaches_the_level():
    row = np.array([0.52, 0.49, 0.55, 0.47, 0.51, 0.5])
    low, high = anytime_interval(row)

    for end in (low, high):
        assert anytime_p_value(row - end) == pytest.approx(0.05, rel=1e-6)
    assert anytime_interval(row[:2]) is None
