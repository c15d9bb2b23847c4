"""Bootstrap intervals on cases with a known answer."""

import numpy as np
import pytest

from hfscale.evaluation.intervals import bootstrap_sums, percentile_interval
from hfscale.evaluation.metrics import metric_values


def test_sums_are_of_whole_rows_drawn_with_replacement():
    columns = np.array([[1.0, 40.0], [2.0, 10.0], [4.0, 20.0]])
    sums = bootstrap_sums(columns, resamples=500, seed=3)
    assert sums.shape == (500, 2)
    reachable = {tuple(columns[[a, b, c]].sum(axis=0)) for a in range(3) for b in range(3) for c in range(3)}
    assert set(map(tuple, sums)) == reachable  # all of them, and the columns of an item stay together


def test_same_seed_same_draws_so_systems_are_paired():
    first = bootstrap_sums(np.arange(50.0)[:, None], seed=1)
    second = bootstrap_sums(np.arange(50.0)[:, None] + 1, seed=1)
    assert (second - first == 50).all()
    assert (bootstrap_sums(np.arange(50.0)[:, None], seed=2) != first).any()


def test_percentile_interval_of_known_values():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx([25.0, 975.0])
    assert percentile_interval(np.arange(1001.0), level=0.9) == pytest.approx([50.0, 950.0])


def test_interval_is_as_wide_as_the_normal_theory_says():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=(400, 1))
    low, high = percentile_interval(bootstrap_sums(values, resamples=4000)[:, 0] / 400)
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)


@pytest.mark.slow
def test_95_percent_intervals_hold_the_truth_in_95_percent_of_samples():
    """1,000 samples from a known distribution: a mean (7 of 10 answers are right) and a ratio of sums (2 nats per
    token, in documents of very unequal length)."""
    generator, held = np.random.default_rng(0), np.zeros(2)
    for draw in range(1000):
        right = generator.random(200) < 0.7
        tokens = 1 + generator.lognormal(4, 0.8, 200).round()
        nll = tokens * generator.normal(2, 0.5, 200)
        sums = bootstrap_sums(np.column_stack([right, np.ones(200), nll, tokens, tokens, tokens]), seed=draw)
        values = (metric_values("exact_match", sums[:, :2])["exact_match"],
                  metric_values("perplexity", sums[:, 2:])["perplexity"])
        intervals = np.array([percentile_interval(value) for value in values])
        held += (intervals[:, 0] <= [70, np.exp(2)]) & ([70, np.exp(2)] <= intervals[:, 1])
    assert (held >= 930).all() and (held <= 970).all()
