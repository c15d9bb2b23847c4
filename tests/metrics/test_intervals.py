"""Bootstrap intervals on cases with a known answer."""

import itertools

import numpy as np
import pytest

from hfscale.metrics.intervals import (
    NO_DIFFERENCE,
    NO_SPREAD,
    ONE_ITEM,
    bootstrap_sums,
    compare_paired,
    drawn_floor,
    estimate,
    interval_notes,
    paired_note,
    percentile_interval,
    sign_flip_floor,
    sign_flip_p,
    swap_test,
)
from hfscale.metrics.texts import metric_values


def test_sums_are_of_whole_rows_drawn_with_replacement():
    columns = np.array([[1.0, 40.0], [2.0, 10.0], [4.0, 20.0]])
    sums = bootstrap_sums(columns, resamples=500, seed=3)
    assert sums.shape == (500, 2)
    reachable = {
        tuple(columns[[a, b, c]].sum(axis=0)) for a in range(3) for b in range(3) for c in range(3)
    }
    assert (
        set(map(tuple, sums)) == reachable
    )  # all of them, and the columns of an item stay together


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
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


@pytest.mark.slow(seconds=17)
def test_95_percent_intervals_hold_the_truth_in_95_percent_of_samples():
    """400 samples from a known distribution: a mean (7 of 10 answers are right) and a ratio of
    sums (2 nats per token, in documents of very unequal length).
    """
    generator, held = np.random.default_rng(0), np.zeros(2)
    for draw in range(400):
        right = generator.random(200) < 0.7
        tokens = 1 + generator.lognormal(4, 0.8, 200).round()
        nll = tokens * generator.normal(2, 0.5, 200)
        sums = bootstrap_sums(
            np.column_stack([right, np.ones(200), nll, tokens, tokens, tokens]),
            resamples=400,
            seed=draw,
        )
        values = (
            metric_values("exact_match", sums[:, :2])["exact_match"],
            metric_values("perplexity", sums[:, 2:])["perplexity"],
        )
        intervals = np.array([percentile_interval(value) for value in values])
        held += (intervals[:, 0] <= [70, np.exp(2)]) & ([70, np.exp(2)] <= intervals[:, 1])
    assert (held >= 370).all() and (held <= 390).all()


def ratio(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"score": sums[..., 0] / sums[..., 1], "loss": sums[..., 0] / sums[..., 1]}


def test_estimate_is_the_value_of_the_sums_with_its_interval():
    columns = np.array([[10.0, 10], [300, 100]])
    found = estimate(columns, ratio, resamples=2000)
    assert found["score"] == pytest.approx(310 / 110)
    assert found["score_ci95"] == pytest.approx(
        [1, 3]
    )  # two items: a quarter of the resamples is each one twice
    assert estimate(columns[:1], ratio)["score_ci95"] is None


def test_comparison_by_hand():
    """Differences of 1 for three items of four, 0 for one: a resample's mean is 0 if it draws that
    one alone.
    """
    first = np.array([[5.0, 1], [1, 1], [9, 1], [2, 1]])
    second = first + [[1, 0], [1, 0], [1, 0], [0, 0]]
    found = compare_paired(first, second, ratio, resamples=4000)["score"]
    assert found["difference"] == pytest.approx(0.75)
    assert found["difference_ci95"] == pytest.approx([0.25, 1.0])
    assert (
        found["p_value"] == 2 / 2**3
    )  # of the signs of three differences, two in eight are all alike
    assert found["better"] is None  # although the interval does not hold 0


def test_paired_items_show_what_unpaired_intervals_hide():
    draws = np.random.default_rng(0)
    first = np.stack([draws.normal(0, 10, 200), np.ones(200)], axis=1)
    second = first + np.stack([draws.normal(0.3, 1, 200), np.zeros(200)], axis=1)
    found = compare_paired(first, second, ratio)
    assert (
        found["score"]["better"] == "second" and found["loss"]["better"] == "first"
    )  # a loss should fall
    reverse = compare_paired(second, first, ratio)
    assert (
        reverse["score"]["better"] == "first"
        and reverse["score"]["difference"] == -found["score"]["difference"]
    )
    low, high = estimate(first, ratio)["score_ci95"]
    assert low < estimate(second, ratio)["score"] < high
    assert compare_paired(first, first, ratio)["score"] == {
        "difference": 0,
        "difference_ci95": [0, 0],
        "p_value": 1,
        "better": None,
    }


def test_equal_systems_are_seldom_called_different():
    """5 % of 400 comparisons of systems without a difference, give or take three standard
    errors.
    """
    draws, called = np.random.default_rng(1), 0
    for i in range(400):
        noise = draws.normal(0, 1, (2, 60))
        pair = [np.stack([values, np.ones(60)], axis=1) for values in noise]
        called += compare_paired(*pair, ratio, resamples=300, seed=i)["score"]["better"] is not None
    assert 0.017 < called / 400 < 0.083


def test_items_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="3 and 2 items"):
        compare_paired(np.ones((3, 2)), np.ones((2, 2)), ratio)


# ---- the paired test


def by_brute_force(first: np.ndarray, second: np.ndarray, values) -> float:
    """Over all ways to swap the two results of each item."""

    def difference(swaps) -> float:
        chosen = np.array(swaps)[:, None]
        one, other = np.where(chosen, second, first), np.where(chosen, first, second)
        return values(other.sum(axis=0)) - values(one.sum(axis=0))

    observed = abs(difference([False] * len(first)))
    ways = itertools.product([False, True], repeat=len(first))
    return np.mean([abs(difference(swaps)) >= observed - 1e-9 for swaps in ways])


@pytest.mark.parametrize("items", [1, 2, 3, 7, 10])
@pytest.mark.parametrize(
    "value",
    [
        lambda sums: sums[..., 0] / sums[..., 1],
        lambda sums: np.exp(sums[..., 0] / sums[..., 1]),
        lambda sums: np.sqrt(sums[..., 0] * sums[..., 1]),
    ],
    ids=["mean", "perplexity", "not linear"],
)
def test_few_items_are_tested_exactly(items, value):
    draws = np.random.default_rng(items)
    first, second = draws.gamma(2.0, size=(2, items, 2))
    found = swap_test(first, second, lambda sums: {"v": value(sums)}, seed=5)["v"]
    assert found == by_brute_force(first, second, value)


@pytest.mark.parametrize("items", range(1, 31))
def test_a_p_value_is_never_below_what_so_many_items_can_show(items):
    """All items better by the same much: nothing can be clearer."""
    first = np.stack([np.zeros(items), np.ones(items)], axis=1)
    found = compare_paired(first, first + [[1, 0]], ratio)["score"]
    assert found["p_value"] >= 2 / 2**items
    assert found["p_value"] == 2 / 2**items if items <= 12 else found["p_value"] < 0.01
    assert found["better"] == ("second" if items >= 6 else None)  # 2 / 2**5 is 0.06


def test_many_items_are_tested_by_draws_that_approach_the_exact_value():
    draws = np.random.default_rng(3)
    signs = draws.normal(0.5, 1.0, 12)
    exact = sign_flip_p(signs)
    padded = np.concatenate([signs, np.full(3, 1e-9)])  # 15 that differ: no longer exact
    assert 0.02 < exact < 0.5
    assert sign_flip_p(padded, draws=40_000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(padded, seed=1) == sign_flip_p(padded, seed=1) != sign_flip_p(padded, seed=2)


def test_items_that_do_not_differ_change_no_p_value():
    draws = np.random.default_rng(4)
    first, second = draws.normal(size=(2, 5, 1))
    alike = draws.normal(size=(300, 1))

    def values(sums):
        return {"total": sums[..., 0]}

    alone = swap_test(first, second, values)
    assert (
        swap_test(np.concatenate([first, alike]), np.concatenate([second, alike]), values) == alone
    )
    assert 0.06 < alone["total"] < 1


def test_two_systems_can_be_exchanged():
    draws = np.random.default_rng(6)
    first, second = draws.gamma(2.0, size=(2, 40, 2))
    for n in (8, 40):
        one, other = (
            swap_test(*pair, ratio) for pair in ((first[:n], second[:n]), (second[:n], first[:n]))
        )
        assert one == other


def test_the_floor_of_a_p_value_that_is_drawn():
    first = np.stack([np.zeros(100), np.ones(100)], axis=1)
    for items in (1, 12, 40, 100):
        rows = first[:items]
        p_value = compare_paired(rows, rows + [[1, 0]], ratio)["score"]["p_value"]
        floor = drawn_floor(rows, rows + [[1, 0]])
        assert floor is None if items <= 12 else floor == p_value == 2 / 1002
    changed = first.copy()
    changed[:5, 0] += 1
    assert (
        drawn_floor(first, changed) is None
        and compare_paired(first, changed, ratio)["score"]["p_value"] == 2 / 2**5
    )
    assert sign_flip_floor(np.ones(40)) == sign_flip_p(np.ones(40)) == 2 / 10_002
    assert sign_flip_floor(np.ones(12)) is None


def test_notes_say_why_nothing_can_be_shown():
    rows = np.stack([np.ones(40), np.ones(40)], axis=1)
    alike = estimate(rows, ratio)
    assert alike["score_ci95"] == [1, 1] and interval_notes(alike) == dict.fromkeys(
        ("score_ci95", "loss_ci95"), NO_SPREAD
    )
    assert interval_notes(estimate(rows[:1], ratio))["score_ci95"] == ONE_ITEM
    uneven = np.outer(
        np.random.default_rng(0).gamma(2.0, size=40), [0.1, 0.3]
    )  # all a third, but for rounding
    assert np.ptp(estimate(uneven, ratio)["score_ci95"]) > 0
    assert interval_notes(estimate(uneven, ratio))["score_ci95"] == NO_SPREAD
    mixed = np.stack([np.arange(40) % 2, np.ones(40)], axis=1)
    assert interval_notes(estimate(mixed, ratio)) == {}
    assert paired_note(rows, rows) == NO_DIFFERENCE
    changed = rows.copy()
    changed[:3] += 1
    assert paired_note(rows, changed) == (
        "only 3 of 40 items differ, so the p-value is at least 0.25: too few to show a difference"
    )
    assert paired_note(rows, rows + 1) == "" and paired_note(rows[:2], rows[:2] + 1).startswith(
        "only 2 of 2"
    )
