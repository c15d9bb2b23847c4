"""Minimal pairs: two sentences, of which a model should find the right one likelier, as BLiMP and
BabyLM keep them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfscale.data.files import find_files, kind_of
from hfscale.data.templates import column_text, column_value, value_text
from hfscale.process import InputError
from hfscale.tasks.sources import ROW_KINDS, Row, read_task_rows

# The right sentence and the other one: BLiMP's columns, and those of others.
PAIR_COLUMNS = (("sentence_good", "sentence_bad"), ("good", "bad"))
# BLiMP's: what a pair is about, and the phenomenon that this belongs to.
GROUP_COLUMN = "UID"
TERM_COLUMN = "linguistics_term"


def read_pairs(
    sources: Sequence[str],
    *,
    columns: str | Sequence[str] | None = None,
    group_column: str | None = None,
) -> list[Row]:
    """All pairs of files, folders and globs, each after its place: `choices` (the right sentence
    first), `group` and, where the file has BLiMP's column of that name, `linguistics_term`, else
    None.

    Args:
        columns: the right sentence's and the other one's; None: the first of PAIR_COLUMNS that a
            row has.
        group_column: says which group a pair belongs to; None: UID, or else the name of its file.

    Raises InputError: a source that cannot be read or without a pair; with the place, a row without
    the columns, or with an empty sentence.
    """
    if columns is not None and (isinstance(columns, str) or len(columns) != 2):
        raise InputError(
            f"choices: got {columns}; a minimal pair is in two columns, the right sentence first"
        )
    pairs: list[Row] = []
    for source in sources:
        of_source = [
            _read_pair(place, row, file, columns, group_column)
            for file, (place, row) in _rows_of(source)
        ]
        if not of_source:
            raise InputError(f"minimal_pairs {source}: no pairs in it; give files that hold some")
        pairs += of_source
    return pairs


def _rows_of(source: str) -> Iterator[tuple[Path, Row]]:
    """Each row of a source after its file; what holds no rows in a folder is passed over."""
    files = [file for file in find_files(source) if kind_of(file) in (*ROW_KINDS, "parquet")]
    if not files:
        raise InputError(
            f"minimal_pairs {source}: no file of pairs is there; give a file, a folder or a glob "
            "of .jsonl, .json, .csv, .tsv (also .gz, .zst) or .parquet"
        )
    for file in files:
        for row in read_task_rows([str(file)], "columns"):
            yield file, row


def _read_pair(
    place: str,
    row: Mapping[str, Any],
    file: Path,
    columns: Sequence[str] | None,
    group_column: str | None,
) -> Row:
    names = columns or _pair_columns(place, row)
    sentences = [value_text(place, name, column_value(place, row, name)) for name in names]
    for name, sentence in zip(names, sentences, strict=True):
        if not sentence.strip():
            raise InputError(f"{place}: {name} is empty; mend the pair, or take it out")
    if group_column is not None:
        group = column_text(place, row, group_column)
    else:
        group = str(row.get(GROUP_COLUMN) or file.name.partition(".")[0])
    term = row.get(TERM_COLUMN)
    return place, {
        "choices": sentences,
        "group": group,
        TERM_COLUMN: None if term is None else str(term),
    }


def _pair_columns(place: str, row: Mapping[str, Any]) -> tuple[str, str]:
    for names in PAIR_COLUMNS:
        if not row.keys().isdisjoint(names):  # one that is missing is named when it is read
            return names
    expected = ", or ".join(" and ".join(names) for names in PAIR_COLUMNS)
    raise InputError(
        f"{place}: no minimal pair; expected the columns {expected} (others: --choices RIGHT "
        f"WRONG); it has {', '.join(row)}"
    )
