"""Files of any kind that is read here: found, unpacked, and what is wrong in them said in one line
with its place.
"""

import codecs
import csv
import errno
import glob
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfscale.data.verified import check_source_folder
from hfscale.process import InputError

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".html": "html",
    ".htm": "html",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
ARCHIVES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
SHOWN_NAMES = 3
SHOWN_CHARACTERS = 200  # of what a reader's error says
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def suffix_of(path: Path) -> str:
    """What tells the kind of file, in lower case, without .gz, .zst or .bz2."""
    packed = path.suffix.lower() in ARCHIVES
    return (path.with_suffix("") if packed else path).suffix.lower()


def kind_of(path: Path) -> str:
    """One of the values of `KINDS`; files of unknown endings are text."""
    return KINDS.get(suffix_of(path), "text")


def known_endings() -> str:
    """The endings that are read, for messages."""
    return f"{', '.join(KINDS)} (or with {', '.join(ARCHIVES)})"


def find_files(name: str) -> list[Path]:
    """By kind, then by name; none if nothing is there or the folder is a data set made by
    `save_to_disk`. Raises InputError: a folder that a recipe wrote is damaged.
    """
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        check_source_folder(f"source {name}", path)
        is_saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
        if is_saved:
            return []
        files = [file for file in path.rglob("*") if file.is_file() and suffix_of(file) in KINDS]
        if not files:
            raise InputError(f"source {name}: no file in this folder ends in {known_endings()}")
    else:
        matches = map(Path, glob.glob(name, recursive=True))
        files = [match for match in matches if match.is_file()]
    kinds = list(KINDS.values())
    return sorted(files, key=lambda file: (kinds.index(kind_of(file)), file))


def about_endings(name: str, files: Iterable[Path]) -> list[str]:
    """What to say of files whose ending is not known: those of a folder are left out, others are
    read as text.
    """
    unknown = [file for file in files if suffix_of(file) not in KINDS]
    lines = []
    for fate, paths in (("read as plain text", unknown), ("left out", _left_out(Path(name)))):
        if paths:
            names = _some_names(paths)
            lines.append(f"source {name}: {names}: the ending is none of {known_endings()}; {fate}")
    return lines


def _left_out(folder: Path) -> list[Path]:
    """Files in a folder that are not read, but for hidden ones; of a path that is none: nothing."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and suffix_of(path) not in KINDS
    ]


def _some_names(paths: list[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:SHOWN_NAMES])
    return shown if len(paths) <= SHOWN_NAMES else f"{shown} and {len(paths) - SHOWN_NAMES:,} more"


def open_bytes(path: str | Path) -> io.BufferedReader:
    """A file to read from, unpacked if it is an archive; a cut archive raises OSError, it is not a
    short file.
    """
    compression = ARCHIVES.get(Path(path).suffix.lower())
    return io.BufferedReader(pa.input_stream(str(path), compression=compression))


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, its line ends as they are; raises InputError if that cannot be
    read.
    """
    with reading(str(path)), open_bytes(path) as file:
        return file.read().decode("utf-8-sig")


def read_rows(path: Path, kind: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with named columns, each after its place in the file: ":12" is line 12, ": record 3" one
    of a list.

    `kind` is .jsonl, .json (a list of rows, one row, or JSON lines), .csv or .tsv; default: the
    file's ending. Values of .csv and .tsv are the texts that stand there, none is taken for a
    number or for nothing.

    Raises InputError: a file that cannot be read; with the line, wrong JSON, a row without named
    columns or with another number of fields than the header.
    """
    for place, row in read_values(path, KINDS.get(kind or suffix_of(path), "jsonl")):
        if isinstance(row, Broken):
            raise InputError(f"{path}{place}: {row}")
        if not isinstance(row, dict):
            raise InputError(
                f"{path}{place}: holds {str(row)[:40]!r}, not named columns; a row is a JSON object"
            )
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # JSON can name half a character
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise InputError(
                f"{path}{place}: {half} is half a character; mend or remove the row"
            ) from None
        yield place, row


class Broken(str):
    """In place of a value: what is wrong where it stands. What comes after it can be read."""


def read_values(path: str | Path, kind: str) -> Iterator[tuple[str, Any]]:
    """What a file of the kind jsonl, json, csv or tsv holds, each value after its place; see
    `read_rows`.

    Raises InputError: what makes the rest of the file unreadable too.
    """
    with reading(str(path)), open_bytes(path) as file:
        if kind in DELIMITERS:
            yield from _delimited_rows(path, file, DELIMITERS[kind])
        elif kind == "json" and not _has_lines_of_json(path):
            yield from _json_records(path, file)
        else:
            yield from _json_lines(file)


def _json_lines(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(file):
        value: Any = decode_line(line.rstrip(b"\r\n"))
        if not isinstance(value, Broken):
            value, _ = _parse_json(value)
        yield f":{number}", value


def _json_records(path: str | Path, file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    text = file.read().decode("utf-8-sig")
    if not text.strip():
        return
    value, line = _parse_json(text)
    if isinstance(value, Broken):
        raise InputError(f"{path}:{line}: {value}")
    values = value if isinstance(value, list) else [value]
    for number, record in enumerate(values):
        yield f": record {number}", record


def _parse_json(text: str) -> tuple[Any, int]:
    """The value, or what is wrong with it, and in which line of the text."""
    try:
        return json.loads(text), 1
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg} at column {error.colno}); mend or remove the line"
        return Broken(problem), error.lineno
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 10,000 deep
        return Broken(f"not JSON that can be read ({' '.join(str(error).split())[:80]})"), 1


def _has_lines_of_json(path: str | Path) -> bool:
    """Whether a .json file holds JSON lines: the first of several is an object by itself."""
    with open_bytes(path) as file:
        lines = [line for _, line in islice(numbered_lines(file), 2)]
    if len(lines) < 2 or not lines[0].lstrip().startswith(b"{"):
        return False
    value, _ = _parse_json(lines[0].decode(errors="replace"))
    return not isinstance(value, Broken)


def numbered_lines(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank with their numbers, without a byte order mark."""
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def decode_line(line: bytes) -> str:
    """The line as text, or what is wrong in it."""
    if b"\0" in line:
        return Broken(f"binary data (a NUL byte at offset {line.index(0)}); give text files")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return Broken(reason(error))


def _delimited_rows(
    path: str | Path, file: Iterable[bytes], delimiter: str
) -> Iterator[tuple[str, Any]]:
    """Rows under their header, each with the line where it begins; a row that does not fit it is
    `Broken`.

    Raises InputError: with the line, bytes that are no UTF-8, a wrong header, a quote that is never
    closed.
    """
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of 128 kB
    table = csv.reader(_csv_lines(path, file), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        place = f":{table.line_num + 1}"
        try:
            row = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, _quote_problem(f"{path}{place}", error)
            continue
        if row and header:
            yield place, _named(row, header, delimiter)
        elif row:
            header = row
            _check_header(f"{path}{place}", header)


def _quote_problem(place: str, error: csv.Error) -> Broken:
    """What is wrong in a row; raises InputError if nothing after it can be read."""
    problem = str(error)
    if "unexpected end of data" in problem:
        raise InputError(
            f"{place}: a quote is never closed, which swallows the rest of the file; close it, or "
            'write "" for a quote inside quotes'
        ) from None
    if "expected after" in problem:
        problem = "text goes on after its closing quote"
    return Broken(f'{problem}; write a text that holds a quote as "...""..."')


def _csv_lines(path: str | Path, file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        text = decode_line(line)
        if isinstance(text, Broken):
            raise InputError(f"{path}:{number}: {text}")
        yield from io.StringIO(text, newline="")  # old files end lines with \r alone


def _named(row: list[str], header: list[str], delimiter: str) -> dict[str, str] | Broken:
    if len(row) == len(header):
        return dict(zip(header, row, strict=True))
    name = "tab" if delimiter == "\t" else "comma"
    fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
    return Broken(
        f"{fields}, but the header has {len(header)} ({', '.join(header)[:60]}); write a text that "
        f"holds a {name} in quotes"
    )


def _check_header(place: str, header: list[str]) -> None:
    for name in header:
        if name and header.count(name) > 1:
            raise InputError(f"{place}: the header names the column '{name}' twice; rename one")


def read_checked_rows(
    place: str, path: str, fits: Callable[[dict], Any], expected: str
) -> list[dict[str, Any]]:
    """All rows of a file of JSON lines, at least one; raises InputError also, with what is
    `expected`, for a row that does not fit.
    """
    rows = []
    for line, row in read_rows(Path(path), ".jsonl"):
        if not fits(row):
            raise InputError(
                f"{place} {path}{line}: expected JSON with {expected}; it has "
                f"{', '.join(row) or 'none'}"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{place} {path}: no rows in it; expected JSON with {expected}")
    return rows


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Whatever a reader raises (they share no base class) becomes one line that names the place."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        check_cache(cause)
        # So say an empty stream, and the builders of `datasets` for empty files.
        is_empty = isinstance(cause, StopIteration) or "corresponds to no data" in str(cause)
        problem = "no rows in it" if is_empty else reason(cause)
        raise InputError(f"{place}: {problem}") from None


def check_cache(error: BaseException) -> None:
    """Raises InputError if it was not the source that failed, but writing what was read into the
    cache.
    """
    from datasets import config

    cache = Path(config.HF_DATASETS_CACHE)
    if not isinstance(error, OSError):
        return
    if error.errno in FULL_DISK or _is_at(cache, error.filename):
        problem = _in_one_line(error.strerror or str(error))
        raise InputError(
            f"HF_HOME: the cache of data sets, {cache}, cannot be written: {problem}; free some "
            "space, or set HF_HOME to a folder on another disk"
        ) from None


def _is_at(folder: Path, name: Any) -> bool:
    """Whether a file name is that of the folder, of something in it, or of a folder above it."""
    if not isinstance(name, str | Path):
        return False
    return folder.is_relative_to(name) or Path(name).is_relative_to(folder)


def reason(error: BaseException) -> str:
    """What a reader's error says, and where it helps what to do about it."""
    if isinstance(error, UnicodeDecodeError):
        return (
            f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}); convert "
            "it first, for example: iconv -f cp1252 -t utf-8"
        )
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at character {error.pos})"
    problem = _in_one_line(str(error)) or type(error).__name__
    return problem if isinstance(error, InputError) else f"cannot be read: {problem}"


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:SHOWN_CHARACTERS]
