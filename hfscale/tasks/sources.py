"""Files of tasks -> rows with named columns, each after its place: tables, parallel text, SQuAD,
instructions.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

from datasets import load_dataset

from hfscale.data.files import find_files, kind_of, read_rows, read_text, reading
from hfscale.data.sources import load_saved
from hfscale.process import InputError

Row: TypeAlias = tuple[str, dict[str, Any]]  # where it stands, for errors, and its columns

ROW_KINDS = ("jsonl", "json", "csv", "tsv")  # of `files.KINDS`
UNANSWERABLE = (
    "no answer"  # what a model should say to a SQuAD v2 question that its text does not answer
)
# Columns of files of questions and answers, in any case, as public data sets name them.
QUESTIONS = ("prompt", "instruction", "question", "query", "input", "inputs")
ANSWERS = ("response", "output", "completion", "answer", "answers", "target", "targets", "reply")
CONTEXTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
# The text that Alpaca, and data sets after it, put around an instruction for models without a chat
# template.
FRAME = re.compile(
    r"Below is an instruction that describes a task.*?### Instruction:\n(.*?)"
    r"(?:\n\n### Input:\n(.*?))?\n\n### Response:\s*",
    re.DOTALL,
)


def read_task_rows(sources: list[str], task_format: str) -> list[Row]:
    """All rows of the sources in the columns of the format (see `TaskArguments.task_format`).

    Raises InputError: a source that cannot be read; with the place, a row that has not the form.
    """
    if task_format == "parallel":
        return list(_parallel(sources))
    rows = itertools.chain.from_iterable(map(_records, sources))
    if task_format == "squad":
        return list(_squad(rows))
    if task_format == "instructions":
        return list(_instructions(rows))
    return list(rows)


def as_instruction(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """`prompt` and `response` of a row whose columns are named as usual for questions and answers
    (see `QUESTIONS`, ...), where there is one `context` (which ends the prompt) and `system`; None:
    they are not.
    """
    names = {name.strip().lower(): name for name in reversed(row)}
    texts = [name for name in QUESTIONS if isinstance(row.get(names.get(name)), str)]
    answer = next((names[name] for name in ANSWERS if name in names), None)
    if not texts or answer is None:
        return None
    asked = next((name for name in texts if row[names[name]].strip()), texts[0])
    others = [row[names[name]] for name in CONTEXTS if name in names and name != asked]
    context = next((text for text in others if isinstance(text, str) and text.strip()), "")
    system = next((row[names[name]] for name in SYSTEMS if name in names), None)
    question = row[names[asked]]
    response = row[answer]
    if isinstance(response, Mapping) and "text" in response:  # SQuAD's, as data sets store it
        response = response["text"]
    found = {"prompt": f"{question}\n\n{context}" if context else question, "response": response}
    if context:
        found["context"] = context
    if isinstance(system, str) and system.strip():
        found["system"] = system
    return found


def without_frame(prompt: str) -> str:
    """The instruction, and its input after an empty line, without `FRAME` around them."""
    found = FRAME.fullmatch(prompt)
    return "\n\n".join(filter(None, found.groups())) if found else prompt


def _records(source: str) -> Iterator[Row]:
    """Rows of tables and of JSON, or of what `datasets` loads."""
    files = find_files(source) if source else []
    for path in files:
        kind = kind_of(path)
        if kind in ROW_KINDS:
            yield from ((f"{path}{place}", row) for place, row in read_rows(path))
        elif kind == "parquet":
            yield from _numbered(
                str(path), partial(load_dataset, "parquet", data_files=str(path), split="train")
            )
        else:
            raise InputError(
                f"task_source {path}: a task is read from .jsonl, .json, .csv, .tsv (also .gz, "
                ".zst), .parquet, a saved data set or a Hub id, and with --task_format parallel "
                "from two text files"
            )
    if not files:
        yield from _numbered(source, partial(load_saved, source, None, "train"))


def _numbered(source: str, load: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[Row]:
    with reading(f"task_source {source}"):
        yield from ((f"{source}: row {i}", row) for i, row in enumerate(load()))


def _parallel(sources: list[str]) -> Iterator[Row]:
    files = [file for source in sources for file in find_files(source)]
    if len(files) != 2:
        raise InputError(
            f"task_source {' '.join(sources)}: {len(files)} files; parallel text is two, the "
            "source first"
        )
    sides = [
        [line.rstrip("\r") for line in read_text(path).removesuffix("\n").split("\n")]
        for path in files
    ]
    if len(sides[0]) != len(sides[1]):
        raise InputError(
            f"task_source: {files[0]} has {len(sides[0])} lines and {files[1]} {len(sides[1])}; "
            "parallel files have the same number, line by line"
        )
    for i, (source, target) in enumerate(zip(*sides, strict=True), 1):
        yield f"{files[0]} and {files[1]}, line {i}", {"source": source, "target": target}


def _squad(rows: Iterable[Row]) -> Iterator[Row]:
    """Version 1 and 2: `answers` are all the different ones given, or `UNANSWERABLE`."""
    for place, record in rows:
        try:
            for paragraph in (p for article in record["data"] for p in article["paragraphs"]):
                for qa in paragraph["qas"]:
                    answers = list(dict.fromkeys(answer["text"] for answer in qa["answers"])) or [
                        UNANSWERABLE
                    ]
                    yield (
                        f"{place}: question {qa.get('id', qa['question'])}",
                        {
                            "context": paragraph["context"],
                            "question": qa["question"],
                            "answers": answers,
                        },
                    )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{place}: not SQuAD: {error} is missing or of another kind; expected data > "
                "paragraphs > context, qas > question, answers > text"
            ) from None


def _instructions(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of `as_instruction`; a row can hold several in `instances`."""
    for place, row in rows:
        parts = row.get("instances")
        for part in parts if isinstance(parts, list) and parts else [row]:
            found = as_instruction(row | part) if isinstance(part, dict) else None
            if found is None:
                raise InputError(
                    f"{place}: not an instruction; expected prompt and response, instruction, "
                    f"input and output, or question and answer; it has {', '.join(row)}"
                )
            yield place, found
