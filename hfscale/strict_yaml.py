"""YAML and JSON as people write them, read within limits: what would read for minutes, fill the
memory or be taken in two ways is an error of one line.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hfscale.process import InputError

LARGEST_BYTES = 500_000  # read in seconds; the largest file that comes with hfscale has 8,000
DEEPEST = 50  # lists and mappings within each other
TOO_DEEP = f"more than {DEEPEST} lists or mappings within each other; write it flatter"


class RefusedError(ValueError):
    """What can be read but is refused; one line that says why and what to do. `line` is where, from
    1; None: not known.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


class StrictLoader(yaml.SafeLoader):
    """Reads YAML without tags for Python, without aliases, not deeper than `DEEPEST`, and with each
    name once in a mapping.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Of upstream: the node that comes next."""
        line = self.peek_event().start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            raise RefusedError("an alias (*) is not read; write the value out", line)
        if self._depth > DEEPEST:
            raise RefusedError(TOO_DEEP, line)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Of upstream: names and values, as nodes."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        names = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in names:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise RefusedError(f"{key.value} is set twice; keep one of the lines", line)
            seen.add(key.value)
        return node


def parse_yaml(text: str) -> tuple[StrictLoader, Any]:
    """The loader, and the root node of the text; None: it holds none.

    Raises:
        RefusedError: it is beyond the limits, or names something twice.
        yaml.YAMLError: it is no YAML.
    """
    if len(text) > LARGEST_BYTES:
        raise RefusedError(
            f"{len(text):,} characters, of which at most {LARGEST_BYTES:,} are read; name files of "
            "data instead of writing data there"
        )
    loader = StrictLoader(text)
    return loader, loader.get_single_node()


def load_yaml(text: str) -> Any:
    """The value that the text stands for. Raises as `parse_yaml`."""
    loader, node = parse_yaml(text)
    return None if node is None else loader.construct_document(node)


def read_yaml(path: Path) -> Any:
    """The value in a file; raises InputError: it cannot be read."""
    with naming(path):
        return load_yaml(read_limited(path))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes what is wrong with a file of YAML an InputError that names the file, and the line where
    it is known.
    """
    try:
        yield
    except RefusedError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise InputError(f"{place}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not readable as YAML: {reason}") from None


def read_limited(path: Path) -> str:
    """The text of a file of settings; raises RefusedError where it is too large to be one."""
    size_bytes = path.stat().st_size
    if size_bytes > LARGEST_BYTES:
        raise RefusedError(
            f"{size_bytes:,} bytes, of which at most {LARGEST_BYTES:,} are read; name files of "
            "data instead of writing data there"
        )
    return path.read_text("utf-8")


def load_json(text: str) -> Any:
    """The value that the text stands for.

    Raises:
        RefusedError: it names something twice, is too deep, or holds NaN or Infinity.
        json.JSONDecodeError: it is no JSON.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number)
    except RecursionError:
        raise RefusedError(TOO_DEEP) from None
    check_numbers(value)
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise RefusedError(f"{name} is set twice; keep one of the two")
        values[name] = value
    return values


def _no_number(word: str) -> None:
    raise RefusedError(f"{word} is no number of JSON; write a finite one")


def check_numbers(value: Any, depth: int = 0) -> None:
    """Raise RefusedError for a number in lists and mappings that is not finite, or for more than
    `DEEPEST` of them within each other.
    """
    if depth > DEEPEST:
        raise RefusedError(TOO_DEEP)
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{value} is no number that a record can hold; write a finite one")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            check_numbers(item, depth + 1)
