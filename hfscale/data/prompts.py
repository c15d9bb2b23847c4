"""Prompts from flags or files, as a model was taught to be asked."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hfscale.config import InputError
from hfscale.data.corpus import load_documents
from hfscale.data.files import find_files, read_rows, suffix_of
from hfscale.task_prompt import TaskPrompt

ROWS = (".jsonl", ".json", ".csv", ".tsv")


def read_prompts(
    prompts: Sequence[str] | None, prompt_file: str | None, task: TaskPrompt | None
) -> list[str]:
    """The prompts of flags, or else of a file: in text one per line, in rows the column `prompt`; with a task each is
    filled into its template, for which rows may have the task's columns.

    Raises InputError: a file that cannot be read; with its place, a prompt that does not fit the task.
    """
    if prompts is not None:
        return [task.fill(text) if task else text for text in prompts]
    if task and task.columns and suffix_of(Path(prompt_file)) in ROWS and find_files(prompt_file):
        return list(_filled_rows(prompt_file, task))
    texts = load_documents(prompt_file, text_column="prompt", sample_by="line")["text"][:]
    return [task.fill(text) if task else text for text in texts]


def _filled_rows(prompt_file: str, task: TaskPrompt) -> Iterator[str]:
    for path in find_files(prompt_file):
        for place, row in read_rows(path):
            try:
                yield task.fill(row["prompt"]) if [*row] == ["prompt"] else task.fill_row(row)
            except InputError as error:
                raise InputError(f"{path}{place}: {error}") from None


def asker(task: TaskPrompt | None, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What makes a whole prompt of what a user typed, as the model was taught to be asked."""
    if task is None:
        return str
    return partial(_chat_prompt, tokenizer=tokenizer) if task.prompt is None else task.fill


def _chat_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A user's turn as the tokenizer's chat template writes it, up to where the answer begins."""
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
