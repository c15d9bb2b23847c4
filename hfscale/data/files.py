"""Files of any kind that is read here: found, unpacked, and what is wrong in them said in one line with its place."""

import csv
import glob
import io
import json
from collections.abc import Iterator
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
    """The whole of a UTF-8 file, its line ends as they are; raises InputError, as all below."""
    with reading(str(path)), open_bytes(path) as file:
        return file.read().decode("utf-8-sig")


def parse_json(text: str, path: Path, line: int = 1) -> Any:
    """The value of `text`, which begins at this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not JSON ({error.msg} at column {error.colno}); mend or "
                         "remove the line") from None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, path, number)


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the last line and columns of each row of a .csv or .tsv file."""
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    for row in table:
        yield table.line_num, row


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
