"""Prompts from flags or files, as a model was taught to be asked."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfscale.data.files import find_files, read_rows, suffix_of
from hfscale.data.sources import load_documents
from hfscale.generation.task_prompt import TaskPrompt
from hfscale.limited import limited
from hfscale.process import InputError

CHAT_TEMPLATE = "the model's chat template"  # as errors name it
ROWS = (".jsonl", ".json", ".csv", ".tsv")


def read_prompts(
    prompts: Sequence[str] | None, prompt_file: str | None, task: TaskPrompt | None
) -> list[str]:
    """The prompts of flags, or else of a file: in text one per line, in rows the column `prompt`;
    with a task each is filled into its template, for which rows may have the task's columns.

    Raises InputError: a file that cannot be read; with its place, a prompt that does not fit the
    task.
    """
    if prompts is not None:
        return [_fill(text, task) for text in prompts]
    if prompt_file is None:
        raise InputError("prompts: missing; give --prompts or --prompt_file")
    files = find_files(prompt_file)
    if files and all(suffix_of(path) in ROWS for path in files):
        texts = [text for path in files for text in _prompts_of_rows(path, task)]
        if not texts:
            raise InputError(f"prompt_file {prompt_file}: no rows in it")
        return texts
    lines = load_documents(prompt_file, text_column="prompt", sample_by="line")["text"][:]
    return [_fill(text, task) for text in lines]


def _fill(text: str, task: TaskPrompt | None) -> str:
    return task.fill(text) if task else text


def _prompts_of_rows(path: Path, task: TaskPrompt | None) -> Iterator[str]:
    for place, row in read_rows(path):
        has_columns = [*row] != ["prompt"]
        try:
            if task and task.columns and has_columns:
                yield task.fill_row(row)
            else:
                yield _fill(_prompt_column(row), task)
        except InputError as error:
            raise InputError(f"{path}{place}: {error}") from None


def _prompt_column(row: dict[str, Any]) -> str:
    if "prompt" not in row:
        raise InputError(f"no column 'prompt'; it has {', '.join(row) or 'none'}")
    if not isinstance(row["prompt"], str):
        raise InputError(f"the prompt is {row['prompt']!r}, not text")
    return row["prompt"]


def asker(task: TaskPrompt | None, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What makes a whole prompt of what a user typed, as the model was taught to be asked."""
    if task is None:
        return str
    if task.prompt is None:
        return partial(_chat_prompt, tokenizer=tokenizer)
    return task.fill


def _chat_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A user's turn as the tokenizer's chat template writes it, up to where the answer begins."""
    return write_turns([{"role": "user", "content": text}], tokenizer)


def write_turns(messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation as the tokenizer's chat template has it, up to where the next answer begins.

    Raises InputError: the template refuses it, as some refuse a system's turn, or is broken, or
    goes beyond the limits of `hfscale.limited`.
    """
    write = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    roles = ", ".join(message["role"] for message in messages[:3])
    text = limited(write, messages, place=f"{CHAT_TEMPLATE}, for turns of {roles}")
    assert isinstance(text, str)  # it is not tokenized
    return text
