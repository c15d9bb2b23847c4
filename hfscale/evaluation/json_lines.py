"""Files of JSON lines that users give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfscale.config import InputError


def read_json(line: str) -> Any:
    """The line's value; None where it is not JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def read_rows(place: str, path: str | None, fits: Callable[[dict], Any], expected: str) -> list[dict]:
    """The objects of a file, one per line.

    Raises InputError, which says what is `expected`: the file cannot be read, or a line is no object that `fits`.
    """
    try:
        lines = Path(path or "").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place} {path}: cannot be read ({error}); expected lines of JSON with {expected}") from None
    rows = [row if isinstance(row, dict) else {} for row in map(read_json, lines)]
    for number, row in enumerate(rows, 1):
        if not fits(row):
            raise InputError(f"{place} {path}:{number}: expected JSON with {expected}; it has "
                             f"{', '.join(row) or 'none'}")
    return rows
