"""How a model that learned a task is asked: its prompt's template and where an answer ends, kept in
its folder.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfscale.data.templates import IN_BRACES, as_text, fill_template, read_column
from hfscale.folders import write_json
from hfscale.process import InputError

TASK_FILE = "task.json"


@dataclass(frozen=True)
class TaskPrompt:
    """What `task.json` holds. `prompt` is None where the tokenizer's chat template writes the
    prompts.
    """

    prompt: str | None  # template; each of `columns` stands in it as {name}
    columns: list[str]
    stop_strings: list[str]  # an answer ends before any of these
    max_new_tokens: int  # the longest answer, in tokens

    def fill(self, text: str) -> str:
        """The whole prompt for what a user typed: the text of the only column, a JSON object with
        all columns, or a prompt that has the template's form already.

        Raises InputError: several columns, and the text is neither of the last two.
        """
        if self.prompt is None or _is_filled(self.prompt, self.columns, text):
            return text
        if not self.columns:
            return text or self.prompt
        row = _json_object(text)
        if row is None and len(self.columns) == 1:
            row = {self.columns[0]: text}
        if row is None:
            raise InputError(
                f"the prompt {text[:40]!r}: this model was taught with {self.example()}; give a "
                "JSON object with these columns"
            )
        return self.fill_row(row)

    def fill_row(self, row: dict[str, Any]) -> str:
        """The prompt for a row with all columns; empty where a chat template writes prompts.

        Raises InputError: a column is missing, or is no text.
        """
        values = {}
        for name in self.columns:
            try:
                values[name] = as_text(read_column(row, name))
            except KeyError:
                raise InputError(
                    f"the prompt has no '{name}', only {', '.join(row)}; this model was taught "
                    f"with {self.example()}"
                ) from None
            except TypeError as error:
                raise InputError(f"the prompt: '{name}' {error}") from None
        return fill_template(self.prompt or "", values)

    def typed(self, row: dict[str, str]) -> str:
        """What a user types to ask about a row: the text of the only column, where `fill` takes it
        for that, else the row as JSON.
        """
        if len(row) == 1:
            [text] = row.values()
            if self.fill(text) == self.fill_row(row):
                return text
        return json.dumps(row, ensure_ascii=False) if row else ""

    def example(self) -> str:
        """A row of the form that `fill` reads, as JSON."""
        return json.dumps(dict.fromkeys(self.columns, "..."), ensure_ascii=False)


def _is_filled(template: str, columns: list[str], text: str) -> bool:
    """Whether the text has what stands in the template around its columns, and that is not
    nothing.
    """
    around_columns = IN_BRACES.sub(lambda match: "" if match[1] in columns else match[0], template)
    if not around_columns:
        return False
    any_column = "|".join(re.escape(f"{{{name}}}") for name in columns)
    pieces = re.split(any_column, template)
    filled = "(.+)".join(map(re.escape, pieces))
    return re.fullmatch(filled, text, re.DOTALL) is not None


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def save_task_prompt(
    folder: str | Path,
    *,
    prompt: str | None,
    columns: Iterable[str],
    stop_strings: Iterable[str] | None,
    max_new_tokens: int,
) -> None:
    """Write `task.json` into a model's folder: the arguments are the fields of `TaskPrompt`."""
    task = TaskPrompt(prompt, list(columns), list(stop_strings or []), max_new_tokens)
    write_json(Path(folder, TASK_FILE), asdict(task))


def load_task_prompt(name: str) -> TaskPrompt | None:
    """What lies in a folder (of a checkpoint: in the run's folder above it) or under a Hub id;
    None: it was taught no task.

    Raises InputError: a file with other content.
    """
    path = _find_task_file(name)
    if path is None:
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        task = TaskPrompt(**values)
        kinds = {"prompt": str | None, "columns": list, "stop_strings": list, "max_new_tokens": int}
        wrong_fields = [name for name, kind in kinds.items() if not isinstance(values[name], kind)]
    except (OSError, ValueError, TypeError, KeyError):
        wrong_fields = ["form"]
    if wrong_fields:
        raise InputError(
            f"{path}: its {wrong_fields[0]} is not what finetune_task writes; put the file back, "
            "or remove it to write prompts out yourself"
        )
    return task


def _find_task_file(name: str) -> Path | None:
    if os.path.isdir(name):  # Path's own raises for a name that is too long
        folder = Path(name)
        files = [folder / TASK_FILE]
        if folder.absolute().name.startswith("checkpoint-"):
            files.append(folder.absolute().parent / TASK_FILE)
        return next((file for file in files if file.is_file()), None)
    from transformers.utils import cached_file

    try:
        file = cached_file(
            name,
            TASK_FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except Exception:  # not even the form of a Hub id: what loads the model says so
        return None
    return Path(file) if file else None
