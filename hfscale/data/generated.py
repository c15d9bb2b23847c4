"""Documents that a function of the user's own gives: `--source my_file.py:documents`."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset, IterableDataset

from hfscale.data.caches import generated
from hfscale.data.files import Broken
from hfscale.data.readers import (
    READ_FEATURES,
    column_text,
    empty_row,
    text_row,
    unreadable_row,
)
from hfscale.process import InputError
from hfscale.user_code import describe_exception, file_of, load_function


def load_generated(
    name: str, *, text_column: str, on_error: str | None, streaming: bool
) -> Dataset | IterableDataset:
    """Rows, as those of `read_documents`, of the documents that the function gives.

    A function can read anything, so no cache can tell from its file whether it would give the same
    again. It is called at each start, and what it gave keys the cache: text that is the same is
    tokenized once, changed text is noticed. A stream calls it while it is read.

    Raises InputError: see `load_function`; what the function raises; without `on_error="skip"`, a
    value that is no text; documents that differ from one call to the next.
    """
    arguments: dict[str, Any] = {"name": name, "text_column": text_column, "on_error": on_error}
    if streaming:
        load_function(f"source {name}", name)  # what is wrong with the file shows at once
        return IterableDataset.from_generator(
            _read_generated, gen_kwargs=arguments, features=READ_FEATURES
        )
    digest = hashlib.sha256()
    for row in _read_generated(**arguments):
        digest.update(repr(row).encode())
    arguments["digest_of_first_call"] = digest.hexdigest()
    return generated(_read_generated_again, arguments, READ_FEATURES)


def _read_generated(name: str, text_column: str, on_error: str | None) -> Iterator[dict[str, Any]]:
    for number, document in enumerate(_call(name), 1):
        text = _text_of(document, text_column)
        if isinstance(text, Broken):
            yield unreadable_row(f"{name}: document {number}: {text}", on_error)
        elif text and text.strip():
            yield text_row(text)
        else:
            yield empty_row()


def _read_generated_again(
    name: str, text_column: str, on_error: str | None, digest_of_first_call: str
) -> Iterator[dict[str, Any]]:
    """The same rows; the ranks of a launch would train on different texts if they were others."""
    digest = hashlib.sha256()
    for row in _read_generated(name, text_column, on_error):
        digest.update(repr(row).encode())
        yield row
    if digest.hexdigest() != digest_of_first_call:
        raise InputError(
            f"source {name}: gives other documents each time it is called; seed what it draws, "
            "or write its texts to a file"
        )


def _call(name: str) -> Iterator[Any]:
    """What the function yields, one by one; what it raises becomes one line."""
    place = f"source {name}"
    function = load_function(place, name)
    try:
        documents = function()
        if isinstance(documents, str | bytes | dict) or not isinstance(documents, Iterable):
            raise InputError(
                f"{place}: returned {type(documents).__name__}, expected a generator of texts, or "
                "of dicts with a column of text"
            )
        yield from documents
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"{place}: {describe_exception(error, file_of(name))}") from None


def _text_of(document: Any, text_column: str) -> str | None:
    """The text, or what is wrong with what was given in its place (`Broken`)."""
    if isinstance(document, str | dict):
        return column_text(document, text_column)
    return Broken(
        f"got {type(document).__name__}, expected text, or a dict with the column '{text_column}'"
    )
