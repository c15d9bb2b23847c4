"""What a run on a GPU leaves: figures, one JSON file of them and one Markdown table."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfscale.folders import write_atomically

# Digits after the point, else four; whole numbers have none.
DIGITS = {"tokens/s": 0, "TFLOP/s": 1, "%": 1, "GB": 3, "s": 2}
VERDICTS = {True: "yes", False: "NO", None: "open"}
HEADER = "| part | case | figure | value | 95 % interval | wanted | holds |"


@dataclass(frozen=True)
class Figure:
    """One number, or one word, that was measured."""

    case: str
    name: str
    value: float | str
    unit: str = ""
    interval: list[float] | None = None  # 95 %, of rounds
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the value should lie within limits."""
        return self.at_least is not None or self.at_most is not None

    def holds(self) -> bool | None:
        """Whether it lies within its limits; None: the interval allows no verdict."""
        low, high = self.interval or (self.value, self.value)
        least = -float("inf") if self.at_least is None else self.at_least
        most = float("inf") if self.at_most is None else self.at_most
        if least <= low and high <= most:
            return True
        if high < least or low > most or self.value != self.value:  # the last: NaN
            return False
        return None


@dataclass
class Result:
    """What became of a part."""

    part: str
    status: str  # done, not run: ..., cut off: time, failed: ...
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


def write_report(
    folder: Path, results: Sequence[Result], about: dict[str, Any], *, is_trial: bool
) -> None:
    """Write `gpu.json` and `gpu.md` into a folder, each whole or not at all.

    Args:
        about: the machine and the versions, by name.
        is_trial: tiny shapes, or a CPU: the figures are no measurements, so no verdict is given.
    """
    content = {
        "trial": is_trial,
        "about": about,
        "parts": [_as_json(result, is_trial) for result in results],
    }
    write_atomically(folder / "gpu.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / "gpu.md", markdown(results, about, is_trial=is_trial))


def _as_json(result: Result, is_trial: bool) -> dict[str, Any]:
    figures = []
    for figure in result.figures:
        judged = figure.is_asked and not is_trial
        verdict = VERDICTS[figure.holds()].lower() if judged else None
        figures.append(dataclasses.asdict(figure) | {"holds": verdict})
    seconds = round(result.seconds, 1)
    return dataclasses.asdict(result) | {"seconds": seconds, "figures": figures}


def markdown(results: Sequence[Result], about: dict[str, Any], *, is_trial: bool) -> str:
    """The table, under a line about the machine; of a trial also under one that says so."""
    lines = [", ".join(f"{name}: {value}" for name, value in about.items()), ""]
    if is_trial:
        lines += ["**A trial: tiny shapes or a CPU, to see that every part runs.**", ""]
    lines += [HEADER, "|---|---|---|---|---|---|---|"]
    for result in results:
        lines += [_line(result.part, figure, is_trial) for figure in result.figures]
        status = f"{result.status} ({result.seconds:.0f} s)"
        lines.append(f"| {result.part} | | {_cell(status)} | | | | |")
    return "\n".join(lines) + "\n"


def _line(part: str, figure: Figure, is_trial: bool) -> str:
    interval = ""
    if figure.interval:
        interval = " to ".join(_number(value, figure.unit) for value in figure.interval)
    verdict = ""
    if figure.is_asked and not is_trial:
        verdict = VERDICTS[figure.holds()]
    value = f"{_number(figure.value, figure.unit)} {figure.unit}".strip()
    cells = (part, figure.case, figure.name, value, interval, _wanted(figure), verdict)
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _wanted(figure: Figure) -> str:
    words = []
    if figure.at_least is not None:
        words.append(f"at least {figure.at_least:.4g}")
    if figure.at_most is not None:
        words.append(f"at most {figure.at_most:.4g}")
    return ", ".join(words)


def _number(value: float | str, unit: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.{DIGITS.get(unit, 4)}f}"


def _cell(text: str) -> str:
    """On one line, without what ends a cell."""
    return " ".join(text.split()).replace("|", "/")
