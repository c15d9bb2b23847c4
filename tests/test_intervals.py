"""Bootstrap intervals on cases with a known answer."""

import numpy as np
import pytest

from hfscale.evaluation.intervals import bootstrap_sums, compare, estimate, percentile_interval
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


def ratio(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"score": sums[..., 0] / sums[..., 1], "loss": sums[..., 0] / sums[..., 1]}


def test_estimate_is_the_value_of_the_sums_with_its_interval():
    columns = np.array([[10.0, 10], [300, 100]])
    found = estimate(columns, ratio, resamples=2000)
    assert found["score"] == pytest.approx(310 / 110)
    assert found["score_ci95"] == pytest.approx([1, 3])  # two items: a quarter of the resamples is each one twice
    assert estimate(columns[:1], ratio)["score_ci95"] is None


def test_comparison_by_hand():
    """Differences of 1 for three items of four, 0 for one: a resample's mean is 0 if it draws that one alone."""
    first = np.array([[5.0, 1], [1, 1], [9, 1], [2, 1]])
    second = first + [[1, 0], [1, 0], [1, 0], [0, 0]]
    found = compare(first, second, ratio, resamples=4000)["score"]
    assert found["difference"] == pytest.approx(0.75)
    assert found["difference_ci95"] == pytest.approx([0.25, 1.0])
    assert found["p_value"] == pytest.approx(2 * (1 / 4) ** 4, abs=0.005)
    assert found["better"] == "second"


def test_paired_items_show_what_unpaired_intervals_hide():
    draws = np.random.default_rng(0)
    first = np.stack([draws.normal(0, 10, 200), np.ones(200)], axis=1)
    second = first + np.stack([draws.normal(0.3, 1, 200), np.zeros(200)], axis=1)
    found = compare(first, second, ratio)
    assert found["score"]["better"] == "second" and found["loss"]["better"] == "first"  # a loss should fall
    reverse = compare(second, first, ratio)
    assert reverse["score"]["better"] == "first" and reverse["score"]["difference"] == -found["score"]["difference"]
    low, high = estimate(first, ratio)["score_ci95"]
    assert low < estimate(second, ratio)["score"] < high
    assert compare(first, first, ratio)["score"] == {
        "difference": 0, "difference_ci95": [0, 0], "p_value": 1, "better": None}


def test_equal_systems_are_seldom_called_different():
    """5 % of 400 comparisons of systems without a difference, give or take three standard errors."""
    draws, called = np.random.default_rng(1), 0
    for i in range(400):
        noise = draws.normal(0, 1, (2, 60))
        pair = [np.stack([values, np.ones(60)], axis=1) for values in noise]
        called += compare(*pair, ratio, resamples=300, seed=i)["score"]["better"] is not None
    assert 0.017 < called / 400 < 0.083


def test_items_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="3 and 2 items"):
        compare(np.ones((3, 2)), np.ones((2, 2)), ratio)
