"""The summary: a row for each fault and kind of run, a column for each outcome."""

import collections
from collections.abc import Iterable

HEAD = ("fault", "recipe", "engine", "what")


def table(rows: Iterable[dict]) -> str:
    """Counts of outcomes, as text; `!` stands before those that must not be."""
    rows = list(rows)
    counts: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
    for row in rows:
        name = row["result"] if row["good"] else f"!{row['result']}"
        counts[tuple(row[column] for column in HEAD)][name] += 1
    outcomes = sorted({name for counter in counts.values() for name in counter})
    lines = [[*HEAD, "tried", *outcomes]]
    for key in sorted(counts):
        counter = counts[key]
        shown = [str(counter[name] or ".") for name in outcomes]
        lines.append([*key, str(counter.total()), *shown])
    total = collections.Counter()
    for counter in counts.values():
        total += counter
    lines.append(["all", "", "", "", str(total.total()), *[str(total[name]) for name in outcomes]])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join(rows)
