"""Files -> documents: text as `sample_by` says, web pages, and a column of JSON and of delimited
files.
"""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Features, Value

from hfscale.data.files import (
    KINDS,
    Broken,
    decode_line,
    numbered_lines,
    open_bytes,
    read_values,
    reading,
    reason,
    suffix_of,
)
from hfscale.data.web_pages import decode_page, page_text
from hfscale.process import InputError

NO_TEXT = "no text in it"
# A row holds one of the two, and one of an empty document none.
READ_FEATURES = Features({"text": Value("string"), "problem": Value("string")})


def read_documents(
    files: list[str], stamps: list, kind: str, unit: str, text_column: str, on_error: str | None
) -> Iterator[dict[str, Any]]:
    """Rows of `text` or `problem` for all documents of files of one kind, one of `KINDS`.

    A document that cannot be read stops, or with `on_error="skip"` is a row that says why; an empty
    one is a row with neither. A file without any text has the problem `NO_TEXT`, which stops
    nothing. `unit` is what a document of a text file is. `stamps` only key the cache, so that a
    changed file is read again.
    """
    for name in files:
        num_empty = 0
        is_without_text = True
        for place, text in _documents(name, kind, unit, text_column):
            if isinstance(text, Broken):
                yield unreadable_row(f"{name}{place}: {text}{_about_ending(name)}", on_error)
            elif text and text.strip():
                yield text_row(text)
            else:
                num_empty += 1
                continue
            is_without_text = False
        if is_without_text:
            yield {"text": None, "problem": f"{name}: {NO_TEXT}"}
            num_empty -= 1  # that row counts as one of the empty documents
        for _ in range(num_empty):
            yield empty_row()


def text_row(text: str) -> dict[str, Any]:
    """The row of a document that was read."""
    return {"text": text, "problem": None}


def empty_row() -> dict[str, Any]:
    """The row of a document without a visible character."""
    return {"text": None, "problem": None}


def unreadable_row(problem: str, on_error: str | None) -> dict[str, Any]:
    """The row of a document that cannot be read; raises InputError unless such ones are left
    out.
    """
    if on_error == "skip":
        return {"text": None, "problem": problem}
    # Without a value the recipe has no --on_error.
    hint = "; --on_error skip leaves it out" if on_error else ""
    raise InputError(problem + hint)


def _about_ending(name: str) -> str:
    if suffix_of(Path(name)) in KINDS:
        return ""
    return "; its ending is not known, so it was read as plain text"


def _documents(
    name: str, kind: str, unit: str, text_column: str
) -> Iterator[tuple[str, str | None]]:
    """Each document, or what is wrong with it (`Broken`), after its place in the file."""
    if kind == "html":
        yield "", _page(name)
    elif kind == "text":
        with reading(name), open_bytes(name) as file:
            for number, data in _pieces(file, unit):
                place = "" if unit == "document" else f":{number}"
                yield place, _plain_text(data, unit)
    else:
        for place, value in read_values(name, kind):
            yield place, column_text(value, text_column)


def _page(name: str) -> str:
    with reading(name), open_bytes(name) as file:
        data = file.read()
    try:
        page = decode_page(data)
    except UnicodeDecodeError as error:
        return Broken(reason(error))
    return page_text(page)


def _pieces(file: io.BufferedReader, unit: str) -> Iterator[tuple[int, bytes]]:
    """First line number and bytes of each document; blank ones are none. Only for `document` is a
    whole file in memory.
    """
    if unit == "document":
        yield 1, file.read().removeprefix(codecs.BOM_UTF8)
    elif unit == "line":
        yield from numbered_lines(file)
    else:
        yield from _paragraphs(file)


def _paragraphs(file: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Runs of lines that are not blank, each with the number of its first line."""
    lines: list[bytes] = []
    first_number = 1
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            if not lines:
                first_number = number
            lines.append(line)
        elif lines:
            yield first_number, b"".join(lines)
            lines = []
    if lines:
        yield first_number, b"".join(lines)


def _plain_text(data: bytes, unit: str) -> str:
    text = decode_line(data)
    if isinstance(text, Broken):
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if unit == "document" else text.rstrip("\n")


def column_text(value: Any, text_column: str) -> str | None:
    """The text of a row, or what is wrong with it (`Broken`); of a JSON list of texts each is
    one.
    """
    text = value
    if not isinstance(value, str):
        columns = list(value) if isinstance(value, dict) else []
        if text_column not in columns:
            names = ", ".join(map(str, columns)) or "none"
            return Broken(f"no column '{text_column}'; it has {names} (choose with --text_column)")
        text = value[text_column]
    if not isinstance(text, str | None):
        return Broken(f"column '{text_column}' holds {type(text).__name__}, not text")
    if text and not text.isascii():
        try:
            text.encode()  # JSON can name half a character
        except UnicodeEncodeError as error:
            return Broken(reason(error))
    return text
