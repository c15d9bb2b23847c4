"""A chart's geometry: what is drawn lies where the numbers are."""

import math
import re

import pytest

from hfscale.report.charts import SHOWN_POINTS, Line, draw, short, ticks


def values_of(marks):
    return [(round(mark.at, 6), mark.text) for mark in marks]


@pytest.mark.parametrize(
    ("ends", "whole", "expected"),
    [
        ((0, 60), False, [(0, "0"), (100 / 6, "10"), (100 / 3, "20"), (50, "30")]),
        ((0, 3), True, [(0, "0"), (100 / 3, "1"), (200 / 3, "2"), (100, "3")]),
        ((1, 2), True, [(0, "1"), (100, "2")]),
        ((5.9, 6.1), False, [(0, "5.90"), (25, "5.95"), (50, "6.00"), (75, "6.05"), (100, "6.10")]),
        ((0, 3e-4), False, [(0, "0.00000"), (100 / 6, "0.00005"), (100 / 3, "0.00010")]),
        ((0, 2e6), True, [(0, "0"), (25, "500k"), (50, "1M"), (75, "1.5M"), (100, "2M")]),
    ],
)
def test_ticks_are_round_numbers_at_their_places(ends, whole, expected):
    marks = values_of(ticks(*ends, whole=whole))
    assert marks[: len(expected)] == [(round(at, 6), text) for at, text in expected]
    assert 2 <= len(marks) <= 8


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0, 0, "0"), (1500, 0, "1.5k"), (2e9, 0, "2G"), (0.25, 2, "0.25"), (1.5e-6, 7, "1.5e-06")],
)
def test_numbers_of_an_axis_are_short(value, decimals, text):
    assert short(value, decimals) == text


def test_points_lie_where_the_numbers_are():
    points = [(0, 7.0), (10, 5.0), (40, 6.0)]
    chart = draw("loss", [Line("training", points)])
    (line,) = chart.lines
    places = [tuple(map(float, pair.split())) for pair in re.split("[ML]", line.path)[1:]]
    assert [x for x, _ in places] == [0, 250, 1000]
    (_, first), (_, second), (_, third) = places
    assert second > third > first  # downwards on the page
    assert math.isclose((second - third) / (second - first), 0.5, abs_tol=1e-4)
    assert [dot[2:] for dot in line.dots] == points == list(line.table)
    assert chart.says == "loss: training goes from 7 at step 0 to 6 at step 40"


def test_few_points_many_points_and_none():
    (one,) = draw("loss", [Line("a", [(50, 6.5)])]).lines
    assert one.dots == [(500.0, 500.0, 50, 6.5)]
    many = [(step, 1 / step) for step in range(1, 10 * SHOWN_POINTS)]
    (line,) = draw("loss", [Line("a", many)]).lines
    assert line.path.count("L") == len(many) - 1 and not line.dots
    assert len(line.table) <= SHOWN_POINTS
    empty = draw("loss", [Line("a", [(1, math.nan), (2, math.inf)])])
    assert empty.lines[0].path == "" and "nothing finite was logged" in empty.says


def test_tokens_stand_above_the_steps_at_which_they_had_been_seen():
    lines = [
        Line("training", [(10, 6.0), (20, 5.0), (30, 4.0)], [1000, 2000, 4000]),  # a batch grows
        Line("held out", [(0, 7.0), (30, 4.5)], [0, 4000]),
    ]
    assert values_of(draw("loss", lines).token_ticks) == [
        (0, "0"),
        (round(100 / 3, 6), "1k"),
        (round(200 / 3, 6), "2k"),
        (round(250 / 3, 6), "3k"),
        (100, "4k"),
    ]
    for unknown in ([None, 4000], [0, 5000], []):  # not known, another number at the same step
        assert draw("loss", [lines[0], lines[1]._replace(tokens=unknown)]).token_ticks == []
