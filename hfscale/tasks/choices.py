"""Multiple choice: the texts to choose from, as a row has them and as they follow a prompt."""

from collections.abc import Mapping
from typing import Any

from hfscale.data.templates import column_value, value_text
from hfscale.process import InputError


def spaced_choice(prompt: str, choice: str) -> str:
    """The choice as it follows the prompt: after a space, as in lm-eval, unless white space is
    there already.
    """
    needs_no_space = not prompt or prompt[-1].isspace() or choice[:1].isspace()
    return choice if needs_no_space else f" {choice}"


def read_choices(
    place: str, row: Mapping[str, Any], columns: str | list[str], label: str | None
) -> dict[str, Any]:
    """`choices`, the texts that one column lists or several hold, and `answer`, the index of the
    right one.

    `label` is the column with that index (default: `answer`); of several columns of choices also
    the name of the right one (default: the first).

    Raises InputError: with the place, a column that is missing or holds something else.
    """
    names = [columns] if isinstance(columns, str) else columns
    if len(names) == 1:
        texts = _listed_choices(place, row, names[0])
        is_column_of_choices = False
    else:
        texts = [value_text(place, name, column_value(place, row, name)) for name in names]
        is_column_of_choices = label is None or label in names
    if not all(text.strip() for text in texts):
        raise InputError(f"{place}: has the choices {texts!r}; expected texts that are not empty")
    if is_column_of_choices:
        answer = names.index(label) if label else 0
    else:
        value = column_value(place, row, label or "answer")
        answer = _choice_index(place, value, len(texts))
    return {"choices": texts, "answer": answer}


def _listed_choices(place: str, row: Mapping[str, Any], name: str) -> list[str]:
    values = column_value(place, row, name)
    if not isinstance(values, list):
        raise InputError(
            f"{place}: column '{name}' holds {str(values)[:40]!r}; expected a list of choices, or "
            "give the columns that hold one each"
        )
    return [value_text(place, name, value) for value in values]


def _choice_index(place: str, value: Any, num_choices: int) -> int:
    index = value
    if isinstance(value, str) and value.strip().isdecimal():  # a table of text has no numbers
        index = int(value)
    is_whole = isinstance(index, int) and not isinstance(index, bool)
    if not is_whole or not 0 <= index < num_choices:
        raise InputError(
            f"{place}: the answer {index!r} is not an index, from 0, of {num_choices} choices"
        )
    return index
