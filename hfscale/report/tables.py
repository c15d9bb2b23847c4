"""Numbers as people read them, and records as tables on the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Column, Table

INTERVALS = ("_ci95", "_ci90")


def number(value: Any, digits: int = 4) -> str:
    """A number with thousands apart and so many significant digits; None is "none", other values are text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    value = round(value, 12)  # what is left of a zero after rounding errors
    if isinstance(value, int) or value.is_integer() and abs(value) < 1e12:
        return f"{value:,.0f}"
    return f"{value:,.{max(1, digits - 4)}f}" if 1000 <= abs(value) < 1e6 else f"{value:.{digits}g}"


def cell(record: dict[str, Any], name: str, digits: int = 4, joint: str = " ") -> str:
    """The value of that name, `joint` and its interval; "" where the record has none."""
    value = record.get(name, "")
    if isinstance(value, dict):
        return "\n".join(f"{key}: {part}" for key, part in value.items())
    interval = record.get(f"{name}_ci95") or record.get(f"{name}_ci90")
    shown = f"{joint}[{number(interval[0], digits)}, {number(interval[1], digits)}]" if interval else ""
    return number(value, digits) + shown


def show_table(heads: Sequence[str], rows: Iterable[Sequence[RenderableType]], **kwargs) -> None:
    """Print rows under their heads; `kwargs` are those of `rich.table.Table`, such as `title`."""
    table = Table(*(Column(head, overflow="fold") for head in heads), **kwargs)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_records(records: Sequence[dict[str, Any]], *, joint: str = " ", **kwargs) -> None:
    """Print a row per record and a column per name, intervals (`<name>_ci95`, `_ci90`) after `joint` and the value."""
    names = dict.fromkeys(name for record in records for name in record if not name.endswith(INTERVALS))
    show_table(list(names), ([cell(record, name, joint=joint) for name in names] for record in records), **kwargs)
