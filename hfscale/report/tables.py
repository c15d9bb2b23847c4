"""Numbers as people read them, and records as tables on the terminal."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from hfscale.shown import printable, show_text

INTERVALS = ("_ci95", "_ci90")
FLOOR = "_floor"  # <name>_floor: the least p-value that the random draws behind <name> can give
WHOLE_LIMIT = 1e15  # whole numbers from here on are written as powers of ten
FRACTION_LIMIT = 1e6  # and others
MOST_DECIMALS = 6  # of a number that stands in one format with others
MOST_DIGITS = 8  # of it, before and after the point
ZERO_DECIMALS = 12  # what is smaller is left of a zero after rounding errors
LONG_NAMES = 0.4  # of the terminal's width: longer ones stand above a table that must be cut
PROSE_CHARACTERS = 30  # longer cells of several words may be broken between words


def number(value: Any, digits: int = 4) -> str:
    """A number with thousands apart and so many significant digits; None is "none", other values
    are text.
    """
    if value is None:
        return "none"
    if not _is_number(value):
        return str(value)
    value = round(value, ZERO_DECIMALS)
    if float(value).is_integer():
        return f"{value:,.0f}" if abs(value) < WHOLE_LIMIT else f"{value:.{digits - 1}e}"
    if 1000 <= abs(value) < FRACTION_LIMIT:
        return f"{value:,.{max(1, digits - 4)}f}"
    return f"{value:.{digits}g}"


def in_one_format(values: Sequence[Any], digits: int = 4) -> list[str]:
    """The values of one column: all numbers with the same decimals, so many that the smallest has
    `digits` significant digits, or all but zeros as powers of ten where the sizes are too far apart
    for that. What is no number is as in `number`.
    """
    numbers = [float(value) for value in values if _is_finite(value)]
    form = _format_of(numbers, digits)
    return [
        _formatted(value, form) if _is_finite(value) else number(value, digits) for value in values
    ]


def _formatted(value: float, form: str) -> str:
    """A zero, which has no power of ten, is 0 among these, and never -0."""
    rounded = round(value, ZERO_DECIMALS) + 0.0
    if rounded == 0 and form.endswith("e"):
        return "0"
    return format(rounded, form)


def _format_of(numbers: Sequence[float], digits: int) -> str:
    """A format in which each of the numbers can be read."""
    powers = f".{digits - 1}e"
    sizes = [abs(value) for value in numbers if abs(value) > 10**-ZERO_DECIMALS] or [1.0]
    least = min(sizes)
    largest = max(sizes)
    if all(size.is_integer() for size in sizes):
        return ",.0f" if largest < WHOLE_LIMIT else powers
    before_point = max(1, math.floor(math.log10(largest)) + 1)
    wanted = digits - 1 - math.floor(math.log10(least))
    decimals = max(1, min(wanted, MOST_DECIMALS, MOST_DIGITS - before_point))
    keeps_one_digit = least < 10 ** (1 - decimals)  # the least, or none
    if largest >= FRACTION_LIMIT or keeps_one_digit:
        return powers
    return f",.{decimals}f"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def p_value(value: float, floor: float | None = None) -> str:
    """Two significant digits; "< 0.002" for a value at `floor`, the least that a test by random
    draws can give.
    """
    tolerance = 1e-9  # both are counts divided by a count
    if floor is None or value > floor * (1 + tolerance):
        return number(value, 2)
    power = 10.0 ** math.floor(math.log10(floor))
    first_digit_rounded_up = math.ceil(floor / power - tolerance)
    return f"< {number(first_digit_rounded_up * power)}"


def duration(seconds: float) -> str:
    """A time in the two units that say it: 0.8 s, 4 min 10 s, 3 h 5 min, 2 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for (unit, size), (next_unit, next_size) in zip(units, units[1:], strict=False):
        if seconds >= size:
            rest = int(seconds % size // next_size)
            return f"{int(seconds // size)} {unit} {rest} {next_unit}"
    raise AssertionError("a minute or more is one of the units")


def size_of(num_bytes: float) -> str:
    """Bytes as 4.4 MB, 12 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def cell(record: dict[str, Any], name: str, digits: int = 4, joint: str = " ") -> str:
    """The value of that name, `joint` and its interval; "" where the record has none."""
    if f"{name}{FLOOR}" in record:
        return p_value(record[name], record[f"{name}{FLOOR}"])
    return _joined([number(value, digits) for value in _value_and_ends(record, name)], joint)


def _column(records: Sequence[dict[str, Any]], name: str, digits: int, joint: str) -> list[str]:
    """The cells of that name (see `cell`), their numbers in one format."""
    if any(f"{name}{FLOOR}" in record for record in records):
        return [cell(record, name) for record in records]
    cells = [_value_and_ends(record, name) for record in records]
    texts = iter(in_one_format([value for values in cells for value in values], digits))
    return [_joined([next(texts) for _ in values], joint) for values in cells]


def _value_and_ends(record: dict[str, Any], name: str) -> list[Any]:
    """The value, and the two ends of its interval if there is one."""
    for ending in INTERVALS:
        if record.get(name + ending):
            return [_as_text(record.get(name, "")), *record[name + ending]]
    return [_as_text(record.get(name, ""))]


def _joined(texts: Sequence[str], joint: str) -> str:
    value, *ends = texts
    return f"{value}{joint}[{', '.join(ends)}]" if ends else value


def _as_text(value: Any) -> Any:
    """A mapping as lines; anything else as it is."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {inner}" for key, inner in value.items())
    return value


def show_table(heads: Sequence[str], rows: Iterable[Sequence[RenderableType]], **kwargs) -> None:
    """Print rows under their heads; `kwargs` are those of `rich.table.Table`, such as `title`.

    No name or number is ever broken: columns that the terminal has no room for follow in a further
    table, beside the first column once more, whose cells are numbered and named above if they are
    long. Only cells of prose are broken, between words.
    """
    console_width = Console().width
    table_rows = [[_plain(cell) for cell in row] for row in rows]
    title = _plain(kwargs.pop("title", None))
    caption = _plain(kwargs.pop("caption", None))
    heads = [printable(head) for head in heads]
    least, natural = _widths_of(heads, table_rows)
    groups = _groups(least, console_width)
    if len(groups) > 1 and least[0] > console_width * LONG_NAMES:
        _number_names(table_rows)
        least, natural = _widths_of(heads, table_rows)
        groups = _groups(least, console_width)
    for group in groups:
        room = max(console_width, _table_width([least[i] for i in group]))
        fitted = _fit([(least[i], natural[i]) for i in group], room)
        columns = [
            Column(Text(heads[i]), width=width) for i, width in zip(group, fitted, strict=True)
        ]
        table = Table(
            *columns,
            title=title if group is groups[0] else None,
            caption=caption if group is groups[-1] else None,
            **kwargs,
        )
        for row in table_rows:
            table.add_row(*(row[i] for i in group))
        Console(width=room).print(table)


def _number_names(rows: Sequence[list[RenderableType]]) -> None:
    """Print the names in the first column with numbers, which stand in the column from here on."""
    for i, row in enumerate(rows, 1):
        show_text(f"{i}: {row[0]}")
        row[0] = str(i)


def _widths_of(
    heads: Sequence[str], rows: Sequence[Sequence[RenderableType]]
) -> tuple[list[int], list[int]]:
    """The least and the natural width of each column."""
    columns = [[_widths(text) for text in column] for column in zip(heads, *rows, strict=True)]
    least = [max(least for least, _ in column) for column in columns]
    natural = [max(natural for _, natural in column) for column in columns]
    return least, natural


def _plain(text: Any) -> Any:
    """Square brackets in a name are no markup, and what a terminal obeys is left out."""
    return Text(printable(text)) if isinstance(text, str) else text


def _widths(text: RenderableType) -> tuple[int, int]:
    """Least and natural width of a cell, in places of the terminal."""
    shown = text.plain if isinstance(text, Text) else str(text)
    lines = shown.splitlines() or [""]
    natural = max(map(cell_len, lines))
    if natural <= PROSE_CHARACTERS:
        return natural, natural
    longest_word = max((cell_len(word) for line in lines for word in line.split()), default=0)
    return longest_word, natural


def _table_width(widths: Sequence[int]) -> int:
    """With a blank on either side of each cell, and borders."""
    return sum(widths) + 3 * len(widths) + 1


def _groups(least: Sequence[int], console_width: int) -> list[list[int]]:
    """Indexes of the columns of each table: the first column, and as many others as there is room
    for.
    """
    groups = [[0]]
    for i in range(1, len(least)):
        with_next = _table_width([least[j] for j in (*groups[-1], i)])
        if with_next > console_width and len(groups[-1]) > 1:
            groups.append([0])
        groups[-1].append(i)
    return groups


def _fit(ranges: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Widths from least to natural ones: the widest column gives way first."""
    least = [least for least, _ in ranges]
    widths = [natural for _, natural in ranges]
    while _table_width(widths) > room:
        can_give_way = [i for i in range(len(widths)) if widths[i] > least[i]]
        if not can_give_way:
            break
        widest = max(can_give_way, key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def show_records(
    records: Sequence[dict[str, Any]], *, joint: str = " ", digits: int = 4, **kwargs
) -> None:
    """Print a row per record and a column per name, each column in one format, intervals
    (`<name>_ci95`, `_ci90`) after `joint` and the value. A p-value at its `<name>_floor` is shown
    as below it.
    """
    names = dict.fromkeys(
        name for record in records for name in record if not name.endswith((*INTERVALS, FLOOR))
    )
    columns = [_column(records, name, digits, joint) for name in names]
    show_table(list(names), zip(*columns, strict=True), **kwargs)
