"""Files -> documents: text as `sample_by` says, web pages, and a column of JSON and of delimited
files.
"""

import codecs
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

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


def read_documents(
    files: list[str], stamps: list, kind: str, unit: str, text_column: str, on_error: str | None
) -> Iterator[dict]:
    """Rows of `text` or `problem` for all documents of files of one kind, one of `KINDS`.

    A document that cannot be read stops, or with `on_error="skip"` is a row that says why; an empty
    one is a row with neither. A file without any text has the problem `NO_TEXT`, which stops
    nothing. `unit` is what a document of a text file is. `stamps` only key the cache, so that a
    changed file is read again.
    """
    for name in files:
        empty = others = 0
        for place, text in _documents(name, kind, unit, text_column):
            if isinstance(text, Broken):
                yield {"text": None, "problem": _problem(f"{name}{place}: {text}", name, on_error)}
            elif text and text.strip():
                yield {"text": text, "problem": None}
            else:
                empty += 1
                continue
            others += 1
        if not others:
            yield {"text": None, "problem": f"{name}: {NO_TEXT}"}
            empty -= 1
        yield from [{"text": None, "problem": None}] * empty


def _problem(said: str, name: str, on_error: str | None) -> str:
    """Raises InputError unless such documents are left out."""
    if suffix_of(Path(name)) not in KINDS:
        said += "; its ending is not known, so it was read as plain text"
    if on_error == "skip":
        return said
    raise InputError(
        said + ("; --on_error skip leaves it out" if on_error else "")
    )  # not every recipe has it


def _documents(
    name: str, kind: str, unit: str, text_column: str
) -> Iterator[tuple[str, str | None]]:
    """Each document, or what is wrong with it (`Broken`), after its place in the file."""
    if kind == "html":
        yield "", _page(name)
    elif kind == "text":
        with reading(name), open_bytes(name) as file:
            for number, data in _pieces(file, unit):
                yield "" if unit == "document" else f":{number}", _plain_text(data, unit)
    else:
        for place, value in read_values(name, kind):
            yield place, _column(value, text_column)


def _page(name: str) -> str:
    with reading(name), open_bytes(name) as file:
        data = file.read()
    try:
        page = decode_page(data)
    except UnicodeDecodeError as error:
        return Broken(reason(error))
    return page_text(page)


def _pieces(file: Any, unit: str) -> Iterator[tuple[int, bytes]]:
    """First line number and bytes of each document; blank ones are none. Only for `document` is a
    whole file in memory.
    """
    if unit == "document":
        yield 1, file.read().removeprefix(codecs.BOM_UTF8)
    elif unit == "line":
        yield from numbered_lines(file)
    else:
        for is_text, group in groupby(
            enumerate(file, 1), lambda numbered: bool(numbered[1].strip())
        ):
            if is_text:
                numbers, lines = zip(*group, strict=True)
                yield (
                    numbers[0],
                    b"".join(lines).removeprefix(codecs.BOM_UTF8 if numbers[0] == 1 else b""),
                )


def _plain_text(data: bytes, unit: str) -> str:
    text = decode_line(data)
    if isinstance(text, Broken):
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if unit == "document" else text.rstrip("\n")


def _column(value: Any, text_column: str) -> str | None:
    """The text of a row; of a JSON list of texts each is one."""
    text = value
    if not isinstance(value, str):
        columns = list(value) if isinstance(value, dict) else []
        if text_column not in columns:
            has = ", ".join(columns) or "none"
            return Broken(f"no column '{text_column}'; it has {has} (choose with --text_column)")
        text = value[text_column]
    if not isinstance(text, str | None):
        return Broken(f"column '{text_column}' holds {type(text).__name__}, not text")
    if text and not text.isascii():
        try:
            text.encode()  # JSON can name half a character
        except UnicodeEncodeError as error:
            return Broken(reason(error))
    return text
