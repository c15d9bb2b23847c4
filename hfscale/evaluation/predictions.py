"""Saved predictions and their references, with what is wrong in them named by file and line."""

from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset

from hfscale.data.files import read_rows
from hfscale.process import InputError

EXPECTED = "the texts prediction and reference, or references (a list), unless a task gives these"
SHOWN_CHARACTERS = 40  # of a wrong value


def read_predictions(
    path: str, examples: Dataset | None
) -> tuple[list[str], list[list[str]], list[str]]:
    """Predictions, references and places (file and line) of a file of saved answers. Its rows have
    `prediction` and `references`, or `reference`; else those of the examples count, in order.

    Raises InputError: not such a file; with the line, what is wrong in it; another number of rows
    than of examples.
    """
    rows = [(f"{path}{line}", row) for line, row in read_rows(Path(path))]
    if not rows:
        raise InputError(f"predictions {path}: no rows in it; expected JSON with {EXPECTED}")
    if examples is not None and len(examples) != len(rows):
        raise InputError(
            f"predictions {path}: {len(rows)} lines for {len(examples)} examples of the task; give "
            "one line per example, in their order"
        )
    given = [None] * len(rows) if examples is None else examples["references"][:]
    predictions = [_prediction(place, row) for place, row in rows]
    references = [
        _references(place, row) or golds or _missing(place, row)
        for (place, row), golds in zip(rows, given, strict=True)
    ]
    return predictions, references, [place for place, _ in rows]


def _prediction(place: str, row: dict[str, Any]) -> str:
    if "prediction" not in row:
        _missing(place, row)
    if not isinstance(row["prediction"], str):
        shown = str(row["prediction"])[:SHOWN_CHARACTERS]
        raise InputError(
            f"predictions {place}: prediction is {shown}, expected a text (an empty one for no "
            "answer)"
        )
    return row["prediction"]


def _references(place: str, row: dict[str, Any]) -> list[str] | None:
    """None: the row has none of its own."""
    if row.get("references") is not None:
        golds, value, expected = row["references"], row["references"], "a list of one or more texts"
    elif "reference" in row:
        golds, value, expected = [row["reference"]], row["reference"], "a text"
    else:
        return None
    if not isinstance(golds, list) or not golds or not all(isinstance(gold, str) for gold in golds):
        name = "references" if golds is value else "reference"
        shown = str(value)[:SHOWN_CHARACTERS]
        raise InputError(f"predictions {place}: {name} is {shown}, expected {expected}")
    return golds


def _missing(place: str, row: dict[str, Any]) -> NoReturn:
    names = ", ".join(row) or "none"
    raise InputError(f"predictions {place}: expected JSON with {EXPECTED}; it has {names}")
