"""Templates in which {name} stands for a column of a row: which names they hold, and the text they
become.

Functions that take a `place` (where a row stands, for people) raise InputError beginning with it.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hfscale.options import did_you_mean
from hfscale.process import InputError

# Only innermost braces are looked at, so that code and JSON in a template stay as they are.
IN_BRACES = re.compile(r"\{([^{}\n]+)\}")
PLAIN_NAME = re.compile(r"[\w.]*\w[\w.]*")
WORDS = re.compile(r"[\w.][\w .\-/()#%&+?']*")
FORMAT_SPEC = re.compile(r"([^:!\s]+)[:!]\S*")  # {price:.2f}, which Python would understand


def template_columns(template: str, columns: Iterable[str]) -> list[str]:
    """The names in braces that stand for columns, each once, in order.

    A name of letters, digits, "_" and "." always does. Any other text in braces (spaces, hyphens,
    signs) does where there is such a column, or one with nearly that name; else it is text, as in
    `{"label": 1}`.
    """
    known = set(columns)
    names = dict.fromkeys(IN_BRACES.findall(template))
    return [name for name in names if PLAIN_NAME.fullmatch(name) or _names_column(name, known)]


def _names_column(name: str, columns: set[str]) -> bool:
    if any(head in columns for head, _ in _paths(name)):
        return True
    spec = FORMAT_SPEC.fullmatch(name)
    if spec and spec[1] in columns:
        return True
    is_near = difflib.get_close_matches(name.strip(), columns, 1)
    return bool(WORDS.fullmatch(name.strip()) and is_near)


def _paths(name: str) -> list[tuple[str, str]]:
    """A name as (column, path inside it), the longest column first: columns can have dots in their
    names.
    """
    dots = [i for i, character in enumerate(name) if character == "."]
    return [(name, ""), *((name[:dot], name[dot + 1 :]) for dot in reversed(dots))]


def read_column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of what `name` calls inside it: `review.text`, `answers.0`; of a
    list of records, `answers.text` is the list of their texts.

    Raises KeyError: there is none.
    """
    for head, rest in _paths(name):
        if head in row:
            return _inside(row[head], rest) if rest else row[head]
    raise KeyError(name)


def _inside(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return read_column(value, path)
    if not isinstance(value, list):
        raise KeyError(path)
    head, _, rest = path.partition(".")
    if not head.isdecimal():
        return [_inside(item, path) for item in value]
    if int(head) >= len(value):
        raise KeyError(path)
    return _inside(value[int(head)], rest) if rest else value[int(head)]


def fill_template(template: str, values: Mapping[str, str] | Callable[[str], str | None]) -> str:
    """The template with the text of each column in the place of {name}; other braces stay as they
    are.
    """
    read = values if callable(values) else values.get

    def replaced(match: re.Match) -> str:
        text = read(match[1])
        return match[0] if text is None else text

    return IN_BRACES.sub(replaced, template)


def as_text(value: Any, joint: str = " ") -> str:
    """A value of a column as it stands in a text: none is empty, of a list all items with `joint`
    between.

    Raises TypeError: it holds named values, or lists of lists, which are no text.
    """
    if isinstance(value, list):
        return joint.join(map(item_text, value))
    return item_text(value)


def item_text(value: Any) -> str:
    """One value that is no list, as text. Raises TypeError as `as_text`."""
    if isinstance(value, Mapping):
        raise TypeError(
            f"holds named values ({', '.join(map(str, value))}); name one of them after a dot"
        )
    if isinstance(value, list | bytes):
        raise TypeError(f"holds a {type(value).__name__} where text is expected")
    return "" if value is None else str(value)


# ---- templates filled from a row


@dataclass(frozen=True)
class Template:
    """A template and the columns that it takes."""

    text: str
    columns: list[str]

    def fill(self, place: str, row: Mapping[str, Any], joint: str = " ") -> str:
        """The text for a row; a column that lists texts gives all of them with `joint` between."""
        values = {name: column_text(place, row, name, joint) for name in self.columns}
        return fill_template(self.text, values)

    def fill_each(self, place: str, row: Mapping[str, Any]) -> list[str]:
        """As `fill`, but one text for each item of the columns that are lists."""
        values = {name: column_value(place, row, name) for name in self.columns}
        sizes = {name: len(value) for name, value in values.items() if isinstance(value, list)}
        if not sizes:
            return [self.fill(place, row)]
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{size} in '{name}'" for name, size in sizes.items())
            raise InputError(
                f"{place}: the target's columns list {shown}; expected as many in each"
            )
        texts = []
        for i in range(max(sizes.values())):
            items = {
                name: value_text(place, name, value[i] if name in sizes else value)
                for name, value in values.items()
            }
            texts.append(fill_template(self.text, items))
        return texts


def column_value(place: str, row: Mapping[str, Any], name: str) -> Any:
    """What `read_column` reads. Raises InputError: there is no such column."""
    try:
        return read_column(row, name)
    except KeyError:
        columns = ", ".join(row)
        raise InputError(
            f"{place}: no column '{name}'; it has {columns}{did_you_mean(name, row)}"
        ) from None


def column_text(place: str, row: Mapping[str, Any], name: str, joint: str = " ") -> str:
    """The text of a column; of a list all its items with `joint` between.

    Raises InputError: there is no such column, or it is no text.
    """
    value = column_value(place, row, name)
    items = value if isinstance(value, list) else [value]
    return joint.join(value_text(place, name, item) for item in items)


def value_text(place: str, name: str, value: Any) -> str:
    """One value of a column as text. Raises InputError: it is none."""
    try:
        return item_text(value)
    except TypeError as error:
        raise InputError(f"{place}: column '{name}' {error}") from None
