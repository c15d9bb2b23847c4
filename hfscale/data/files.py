"""Files of any kind that is read here: found, unpacked, and what is wrong in them said in one line with its place."""

import csv
import glob
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfscale.config import InputError

BUILDERS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet",
            ".arrow": "arrow"}
ARCHIVES = (".gz", ".zst")


def suffix_of(path: Path) -> str:
    """What tells the kind of file, without .gz or .zst."""
    return path.with_suffix("").suffix if path.suffix in ARCHIVES else path.suffix


def builder_of(path: Path) -> str:
    """Files of unknown kinds are text."""
    return BUILDERS.get(suffix_of(path), "text")


def find_files(name: str) -> list[Path]:
    """By kind, then by name; none if nothing is there or the folder is a data set made by `save_to_disk`."""
    path = Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        files = [Path(found) for found in glob.glob(name, recursive=True) if Path(found).is_file()]
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return []
    else:
        files = [found for found in path.rglob("*") if found.is_file() and suffix_of(found) in BUILDERS]
        if not files:
            raise InputError(f"source {name}: no file in this folder ends in {', '.join(BUILDERS)} (or with .gz, "
                             ".zst)")
    kinds = list(BUILDERS.values())
    return sorted(files, key=lambda file: (kinds.index(builder_of(file)), file))


def open_bytes(path: str | Path) -> io.BufferedReader:
    """A file to read from, unpacked if it is a .gz or .zst; a cut archive raises OSError, it is not a short file."""
    return io.BufferedReader(pa.input_stream(str(path)))


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, its line ends as they are; raises InputError if that cannot be read."""
    with reading(str(path)), open_bytes(path) as file:
        return file.read().decode("utf-8-sig")


def read_rows(path: Path, kind: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with named columns, each after its place in the file: ":12" is line 12, ": record 3" one of a list.

    `kind` is .jsonl, .json (a list of rows, or one), .csv or .tsv; default: the file's ending.

    Raises InputError: a file that cannot be read; with the line, wrong JSON or a row without named columns.
    """
    text, kind = read_text(path), kind or suffix_of(path)
    if kind in (".csv", ".tsv"):
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter="," if kind == ".csv" else "\t")
        rows = ((f":{table.line_num}", row) for row in table)
    elif kind == ".json":
        value = _parse_json(text, path, 1)
        rows = ((f": record {i}", row) for i, row in enumerate(value if isinstance(value, list) else [value]))
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = ((f":{number}", _parse_json(line, path, number)) for number, line in lines if line.strip())
    for place, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{path}{place}: holds {str(row)[:40]!r}, not named columns; a row is a JSON object")
        yield place, row


def read_checked_rows(place: str, path: str, fits: Callable[[dict], Any], expected: str) -> list[dict[str, Any]]:
    """All rows of a file of JSON lines, at least one; raises InputError also, with what is `expected`, for a row that
    does not fit."""
    rows = []
    for line, row in read_rows(Path(path), ".jsonl"):
        if not fits(row):
            raise InputError(f"{place} {path}{line}: expected JSON with {expected}; it has {', '.join(row) or 'none'}")
        rows.append(row)
    if not rows:
        raise InputError(f"{place} {path}: no rows in it; expected JSON with {expected}")
    return rows


def _parse_json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not JSON ({error.msg} at column {error.colno}); mend or "
                         "remove the line") from None


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Whatever a reader raises (they share no base class) becomes one line that names the place."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        empty = isinstance(cause, StopIteration) or "corresponds to no data" in str(cause)
        raise InputError(f"{place}: {'no rows in it' if empty else reason(cause)}") from None


def reason(error: Exception) -> str:
    """What a reader's error says, and where it helps what to do about it."""
    if isinstance(error, UnicodeDecodeError):
        return (f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}); convert it first, for "
                "example: iconv -f cp1252 -t utf-8")
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at character {error.pos})"
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return said if isinstance(error, InputError) else f"cannot be read: {said}"
