"""Texts to measure with: real books where `HFSCALE_DATA` names the folder of the public data sets,
else Python's own documentation.
"""

import gzip
import json
import os
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path

DATA = os.environ.get("HFSCALE_DATA", "")
BOOKS = Path(DATA) / "books_large_a" / "books_large_a.jsonl.gz"
SMALL_BOOKS = Path(DATA) / "books_a"


def books_are_there() -> bool:
    """Whether the books can be read."""
    return bool(DATA) and BOOKS.is_file()


def books() -> Iterator[str]:
    """Whole books, 20 MB of them."""
    with gzip.open(BOOKS, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def long_text(num_characters: int) -> str:
    """So much text, repeated where there is less of it."""
    pieces = []
    missing = num_characters
    for document in cycle(documents()):
        pieces.append(document[:missing])
        missing -= len(pieces[-1])
        if missing <= 0:
            return "\n".join(pieces)[:num_characters]
    raise AssertionError("there is text")


@cache
def documents() -> list[str]:
    """Books, or pages of Python's documentation."""
    if books_are_there():
        return list(books())
    import datasets

    from hfscale.data.sources import load_documents

    datasets.disable_progress_bars()
    return load_documents("embedded:python-docs")["text"][:]


def pieces_of(text: str, num_characters: int) -> list[str]:
    """The text cut into documents of so many characters."""
    starts = range(0, len(text), num_characters)
    return [text[start : start + num_characters] for start in starts]
