"""Files of tasks -> rows with named columns, each after its place: tables, parallel text, SQuAD,
instructions.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from hfscale.data.files import find_files, kind_of, read_rows, read_text, reading
from hfscale.data.sources import load_saved, load_tables
from hfscale.process import InputError

Row: TypeAlias = tuple[str, dict[str, Any]]  # where it stands, for errors, and its columns

ROW_KINDS = ("jsonl", "json", "csv", "tsv")  # of `files.KINDS`
# What a model should say to a SQuAD v2 question that its text does not answer.
UNANSWERABLE = "no answer"
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
    values: dict[str, Any] = {}
    for name, value in row.items():
        values.setdefault(name.strip().lower(), value)  # of equal names the first column counts
    questions = [name for name in QUESTIONS if isinstance(values.get(name), str)]
    answers = [name for name in ANSWERS if name in values]
    if not questions or not answers:
        return None
    # Some rows leave their question empty and have it in another of these columns.
    question_name = next((name for name in questions if _has_text(values[name])), questions[0])
    question = values[question_name]
    response = values[answers[0]]
    if isinstance(response, Mapping) and "text" in response:  # SQuAD's, as data sets store it
        response = response["text"]
    instruction = {"prompt": question, "response": response}
    contexts = [name for name in CONTEXTS if name in values and name != question_name]
    context = next((values[name] for name in contexts if _has_text(values[name])), None)
    if context is not None:
        instruction["prompt"] = f"{question}\n\n{context}"
        instruction["context"] = context
    system = next((values[name] for name in SYSTEMS if name in values), None)
    if _has_text(system):
        instruction["system"] = system
    return instruction


def _has_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def without_frame(prompt: str) -> str:
    """The instruction, and its input after an empty line, without `FRAME` around them."""
    framed = FRAME.fullmatch(prompt)
    if framed is None:
        return prompt
    return "\n\n".join(filter(None, framed.groups()))


def _records(source: str) -> Iterator[Row]:
    """Rows of tables and of JSON, or of what `datasets` loads."""
    files = find_files(source) if source else []
    for path in files:
        kind = kind_of(path)
        if kind in ROW_KINDS:
            yield from ((f"{path}{place}", row) for place, row in read_rows(path))
        elif kind == "parquet":
            load_parquet = partial(load_tables, "parquet", [str(path)])
            yield from _numbered(str(path), load_parquet)
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
    source_file, target_file = files
    source_lines = _lines(source_file)
    target_lines = _lines(target_file)
    if len(source_lines) != len(target_lines):
        raise InputError(
            f"task_source: {source_file} has {len(source_lines)} lines and {target_file} "
            f"{len(target_lines)}; parallel files have the same number, line by line"
        )
    for number, (source, target) in enumerate(zip(source_lines, target_lines, strict=True), 1):
        place = f"{source_file} and {target_file}, line {number}"
        yield place, {"source": source, "target": target}


def _lines(path: Path) -> list[str]:
    """Lines end with "\\n" or "\\r\\n" alone: other ends, which `splitlines` knows, are text."""
    text = read_text(path).removesuffix("\n")
    return [line.rstrip("\r") for line in text.split("\n")]


def _squad(rows: Iterable[Row]) -> Iterator[Row]:
    """Version 1 and 2: `answers` are all the different ones given, or `UNANSWERABLE`."""
    for place, record in rows:
        try:
            for article in record["data"]:
                for paragraph in article["paragraphs"]:
                    yield from _squad_questions(place, paragraph)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{place}: not SQuAD: {error} is missing or of another kind; expected data > "
                "paragraphs > context, qas > question, answers > text"
            ) from None


def _squad_questions(place: str, paragraph: dict[str, Any]) -> Iterator[Row]:
    for question in paragraph["qas"]:
        answers = dict.fromkeys(answer["text"] for answer in question["answers"])
        columns = {
            "context": paragraph["context"],
            "question": question["question"],
            "answers": list(answers) or [UNANSWERABLE],
        }
        yield f"{place}: question {question.get('id', question['question'])}", columns


def _instructions(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of `as_instruction`; a row can hold several in `instances`."""
    for place, row in rows:
        instances = row.get("instances")
        if not isinstance(instances, list) or not instances:
            instances = [row]
        for instance in instances:
            is_row = isinstance(instance, dict)
            instruction = as_instruction(row | instance) if is_row else None
            if instruction is None:
                raise InputError(
                    f"{place}: not an instruction; expected prompt and response, instruction, "
                    f"input and output, or question and answer; it has {', '.join(row)}"
                )
            yield place, instruction
