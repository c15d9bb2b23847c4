"""Line charts of a page, as what its template draws: shares of the plot, ticks, and words that say
the same to those who do not see it. Text and lines keep their size on every screen, and the colours
are the page's, so that a chart is right on a phone and in the dark.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from hfscale.report.tables import number

MOST_TICKS = 7
SHOWN_POINTS = 200  # of a line in the table below its chart; a longer one is thinned out there
MARKED_POINTS = 60  # a line of more has no dots
ROOM = 0.04  # above and below the lines, as a share of the plot
MOST_DECIMALS = 5  # of a number on an axis
SHORT = {1e9: "G", 1e6: "M", 1e3: "k"}


class Line(NamedTuple):
    """What is drawn: (step, value) in the order of the steps, and the tokens seen by then."""

    name: str
    points: Sequence[tuple[float, float]]
    tokens: Sequence[float | None] = ()


class Tick(NamedTuple):
    """A mark at a share of the axis, 0 to 100."""

    at: float
    text: str


class Drawn(NamedTuple):
    """One line in the plot's own units, 0 to 1000 to the right and down."""

    name: str
    path: str
    dots: list[tuple[float, float, float, float]]  # x, y, step, value
    table: Sequence[tuple[float, float]]


class Chart(NamedTuple):
    """A chart as the template takes it."""

    title: str
    lines: list[Drawn]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    token_ticks: list[Tick]
    says: str  # all of it in a sentence
    unit: str
    is_small: bool


def draw(title: str, lines: Sequence[Line], *, unit: str = "", is_small: bool = False) -> Chart:
    """The lines in one plot. Values that are not finite are left out; a line may have one point."""
    finite = [_finite(line) for line in lines]
    steps = [step for line in finite for step, _ in line.points]
    values = [value for line in finite for _, value in line.points]
    x_range = _range(steps)
    y_range = _with_room(_range(values))
    return Chart(
        title=title,
        lines=[_drawn(line, x_range, y_range) for line in finite],
        x_ticks=ticks(*x_range, whole=True),
        y_ticks=ticks(*y_range),
        token_ticks=_token_ticks(finite, x_range),
        says=f"{title}: " + "; ".join(_in_words(line) for line in finite),
        unit=unit,
        is_small=is_small,
    )


def _finite(line: Line) -> Line:
    points = [point for point in line.points if math.isfinite(point[1])]
    return line._replace(points=points)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest, and never nothing between them."""
    if not values:
        return 0.0, 1.0
    least = min(values)
    largest = max(values)
    if least == largest:
        half = abs(least) / 2 or 0.5
        return least - half, largest + half
    return least, largest


def _with_room(ends: tuple[float, float]) -> tuple[float, float]:
    least, largest = ends
    room = ROOM * (largest - least)
    return least - room, largest + room


def _drawn(line: Line, x_range: tuple[float, float], y_range: tuple[float, float]) -> Drawn:
    places = [
        (1000 * _share(step, x_range), 1000 - 1000 * _share(value, y_range))
        for step, value in line.points
    ]
    dots = [(x, y, *point) for (x, y), point in zip(places, line.points, strict=True)]
    every = math.ceil(len(line.points) / SHOWN_POINTS) or 1
    return Drawn(
        name=line.name,
        path="M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places) if places else "",
        dots=dots if len(dots) <= MARKED_POINTS else [],
        table=line.points[::every],
    )


def _share(value: float, ends: tuple[float, float]) -> float:
    least, largest = ends
    return (value - least) / (largest - least)


def ticks(least: float, largest: float, *, whole: bool = False) -> list[Tick]:
    """Up to MOST_TICKS round numbers, multiples of 1, 2 or 5 times a power of ten, and where they
    stand between the two ends; `whole`: of what is counted.
    """
    apart = _round_up((largest - least) / MOST_TICKS)
    if whole:
        apart = max(1.0, apart)
    first = math.ceil(least / apart - 1e-9)
    last = math.floor(largest / apart + 1e-9)
    decimals = max(0, -math.floor(math.log10(apart) + 1e-9))
    return [
        Tick(100 * _share(i * apart, (least, largest)), short(i * apart, decimals))
        for i in range(first, last + 1)
    ]


def _round_up(size: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= size * (1 - 1e-9))


def short(value: float, decimals: int = 0) -> str:
    """A number as an axis has room for it: 300k, 2M, 0.05, 5e-05."""
    for size, letter in SHORT.items():
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.{decimals}f}" if decimals <= MOST_DECIMALS else f"{value:.2g}"


def _token_ticks(lines: Sequence[Line], x_range: tuple[float, float]) -> list[Tick]:
    """Ticks in tokens above the plot: none where a line does not know its tokens, or where two
    lines have not the same at the same step.
    """
    known: dict[float, float] = {}
    for line in lines:
        if len(line.tokens) != len(line.points):
            return []
        for (step, _), tokens in zip(line.points, line.tokens, strict=True):
            if tokens is None or known.setdefault(step, tokens) != tokens:
                return []
    if len(known) < 2:
        return []
    steps = sorted(known)
    low, high = known[steps[0]], known[steps[-1]]
    if high <= low:
        return []
    return [
        Tick(100 * _share(_step_at(tick.at, known, steps), x_range), tick.text)
        for tick in ticks(low, high, whole=True)
    ]


def _step_at(share: float, known: dict[float, float], steps: Sequence[float]) -> float:
    """At which step so many tokens had been seen, `share` in per cent of the way from the first to
    the last known number of them.
    """
    low, high = known[steps[0]], known[steps[-1]]
    tokens = low + share / 100 * (high - low)
    for before, after in zip(steps, steps[1:], strict=False):
        if tokens <= known[after] and known[after] > known[before]:
            part = (tokens - known[before]) / (known[after] - known[before])
            return before + part * (after - before)
    return steps[-1]


def _in_words(line: Line) -> str:
    """From where to where it goes."""
    if not line.points:
        return f"{line.name}: nothing finite was logged"
    (first_step, first), (last_step, last) = line.points[0], line.points[-1]
    if first_step == last_step:
        return f"{line.name} is {number(first)} at step {number(first_step)}"
    return (
        f"{line.name} goes from {number(first)} at step {number(first_step)} to {number(last)} at "
        f"step {number(last_step)}"
    )
