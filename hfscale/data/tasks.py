"""Examples of a task: any source -> prompt, target and references, split into train and validation."""

import hashlib
import itertools
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict

from hfscale.config import InputError, TaskArguments, is_main_rank
from hfscale.data.corpus import load_saved
from hfscale.data.embedded_tasks import embedded_examples
from hfscale.data.files import find_files, read_rows, read_text, reading, suffix_of

UNANSWERABLE = "no answer"  # what a model should say to a SQuAD v2 question that its text does not answer
FIELD = re.compile(r"\{([\w.]+)\}")
CONVERSATIONS = ("messages", "conversations", "turns")  # columns with lists of turns
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
Row: TypeAlias = tuple[str, dict[str, Any]]  # where it stands, for errors, and its columns


def load_task(args: TaskArguments, *, seed: int) -> DatasetDict:
    """The examples that `args` describe, as `train` and `validation`, which is held out.

    Columns: `prompt`, `target` (the answer to learn, without EOS), `references` (all right answers, the target
    first), `source` (what a baseline copies); with multiple choice `choices` and `answer` (index), with programs
    `test`. Conversations have `messages`; their target is the last answer, their prompt is empty until `fit_examples`
    writes it. `seed` draws the examples of a made set, and which ones `train_examples` keeps; what is held out never
    depends on it.

    Raises InputError: a source that cannot be read; with the place, a missing column, an empty prompt or target, roles
    out of order; too few examples.
    """
    if not args.task_source:
        raise InputError("task_source: missing; give embedded:<task>, files or a Hub id")
    if args.validation_examples < 1 or args.train_examples is not None and args.train_examples < 1:
        raise InputError("train_examples, validation_examples: expected at least 1")
    kind, _, name = args.task_source[0].partition(":")
    if kind == "embedded":
        parts: dict[str, Iterable] = embedded_examples(name, train_examples=args.train_examples, seed=seed,
                                                       validation_examples=args.validation_examples)
        parts = {part: [(f"{part} example {i}", row) for i, row in enumerate(rows)] for part, rows in parts.items()}
    else:
        parts = _split(args, seed)
    found = {name: [_example(place, row, args) for place, row in rows] for name, rows in parts.items()}
    kept = {name: list(filter(None, examples)) for name, examples in found.items()}
    if (dropped := sum(map(len, found.values())) - sum(map(len, kept.values()))) and is_main_rank():
        print(f"drop_empty: {dropped} examples with an empty prompt or target were left out", file=sys.stderr)
    return DatasetDict({name: Dataset.from_list(examples) for name, examples in kept.items()})


def baseline_answers(baseline: str, examples: DatasetDict) -> list[str]:
    """What a program without a model answers to the validation examples: `copy_source`, `lead_sentence` (of the
    source) or `most_frequent` (the answer that training saw most often)."""
    if baseline == "most_frequent":
        [(answer, _)] = Counter(examples["train"]["target"]).most_common(1)
        return [answer] * len(examples["validation"])
    sources = [source.strip() for source in examples["validation"]["source"]]
    return [re.split(r"(?<=[.!?])\s", source)[0] for source in sources] if baseline == "lead_sentence" else sources


def spaced_choice(prompt: str, choice: str) -> str:
    """The choice as it follows the prompt: after a space, as in lm-eval, unless white space is there already."""
    return choice if not prompt or prompt[-1].isspace() or choice[:1].isspace() else f" {choice}"


def example_texts(examples: DatasetDict) -> DatasetDict:
    """A column `text` with all that is said in an example: to train a tokenizer on, and to know the examples by."""
    def text(row: dict) -> dict:
        return {"text": "\n".join(turn["content"] for turn in row["messages"]) if "messages" in row else
                row["prompt"] + row["target"]}

    return DatasetDict({name: part.map(text, remove_columns=part.column_names) for name, part in examples.items()})


def _split(args: TaskArguments, seed: int) -> dict[str, list[Row]]:
    """Rows with the smallest hashes are held out: always the same ones, and never a copy of one that is trained on."""
    rows, source = list(_read(args.task_source, args)), args.task_validation_source
    ranked = sorted(_read(source, args) if source else rows, key=_hash)
    held_out = ranked[:min(args.validation_examples, len(ranked) if source else len(ranked) // 10)]
    train = rows if source or not held_out else [row for row in rows if _hash(row) > _hash(held_out[-1])]
    if not held_out or not train:
        raise InputError(f"task_source {', '.join(args.task_source)}: {len(rows)} examples are too few to hold a "
                         "tenth of them out; give more, or --task_validation_source")
    random.Random(seed).shuffle(train)
    return {"train": train[:args.train_examples], "validation": held_out}


def _hash(row: Row) -> str:
    return hashlib.sha256(json.dumps(row[1], sort_keys=True, default=str).encode()).hexdigest()


def _read(sources: list[str], args: TaskArguments) -> Iterator[Row]:
    if args.task_format == "parallel":
        return _parallel(sources)
    rows = itertools.chain.from_iterable(map(_records, sources))
    return {"squad": _squad, "instructions": _instructions}.get(args.task_format, iter)(rows)


def _records(source: str) -> Iterator[Row]:
    """Rows of JSON lines, of JSON (a list, or one object), of CSV, or of what `datasets` loads."""
    files = find_files(source) if source else []
    for path in files:
        if suffix_of(path) not in (".jsonl", ".json", ".csv"):
            raise InputError(f"task_source {path}: a task is read from .jsonl, .json, .csv (also .gz, .zst), a saved "
                             "data set or a Hub id, and with --task_format parallel from two text files")
        yield from ((f"{path}{place}", row) for place, row in read_rows(path))
    if not files:
        with reading(f"task_source {source}"):
            yield from ((f"{source}: row {i}", row) for i, row in enumerate(load_saved(source, None, "train")))


def _parallel(sources: list[str]) -> Iterator[Row]:
    files = [file for source in sources for file in find_files(source)]
    if len(files) != 2:
        raise InputError(f"task_source {' '.join(sources)}: {len(files)} files; parallel text is two, "
                         "the source first")
    sides = [[line.rstrip("\r") for line in read_text(path).removesuffix("\n").split("\n")] for path in files]
    if len(sides[0]) != len(sides[1]):
        raise InputError(f"task_source: {files[0]} has {len(sides[0])} lines and {files[1]} {len(sides[1])}; parallel "
                         "files have the same number, line by line")
    for i, (source, target) in enumerate(zip(*sides, strict=True), 1):
        yield f"{files[0]} and {files[1]}, line {i}", {"source": source, "target": target}


def _squad(rows: Iterable[Row]) -> Iterator[Row]:
    """Version 1 and 2: `answers` are all the different ones given, or `UNANSWERABLE`."""
    for place, record in rows:
        try:
            for paragraph in (p for article in record["data"] for p in article["paragraphs"]):
                for qa in paragraph["qas"]:
                    answers = list(dict.fromkeys(answer["text"] for answer in qa["answers"])) or [UNANSWERABLE]
                    yield f"{place}: question {qa.get('id', qa['question'])}", {
                        "context": paragraph["context"], "question": qa["question"], "answers": answers}
        except (KeyError, TypeError) as error:
            raise InputError(f"{place}: not SQuAD: {error} is missing or of another kind; expected data > paragraphs "
                             "> context, qas > question, answers > text") from None


def _instructions(rows: Iterable[Row]) -> Iterator[Row]:
    """prompt and response, or instruction, input (may be empty or missing) and output, also in `instances`."""
    for place, row in rows:
        for part in row.get("instances") or [row]:
            asked = row.get("prompt") or row.get("instruction")
            answer = next((part[name] for name in ("response", "output", "completion") if name in part), None)
            if not isinstance(asked, str) or answer is None:
                raise InputError(f"{place}: not an instruction; expected prompt and response, or instruction, input "
                                 f"and output; it has {', '.join(row)}")
            more = part.get("input") or part.get("context")
            yield place, {"prompt": f"{asked}\n\n{more}" if more else asked, "response": answer}


def _example(place: str, row: dict[str, Any], args: TaskArguments) -> dict[str, Any] | None:
    if args.task_format == "chat":
        messages = _messages(place, row, args.assistant_role)
        question, answer = (message["content"] for message in messages[-2:])
        return {"prompt": "", "target": answer, "references": [answer], "source": question, "messages": messages}
    if args.prompt is None or args.target is None and args.choices is None:
        raise InputError("prompt, target: missing; give templates in which {name} stands for a column; "
                         f"{place} has {', '.join(row)}")
    [prompt], [source] = (_fill(template, row, place) for template in (args.prompt, args.copied or args.prompt))
    references, more = _fill(args.target, row, place, each=True) if args.target else [], {}
    if args.choices:
        choices, answer = (_column(name, row, place) for name in (args.choices, args.answer or "answer"))
        if not (isinstance(answer, int) and 0 <= answer < len(choices)):
            raise InputError(f"{place}: the answer {answer!r} is not an index, from 0, of {len(choices)} choices")
        prompt = prompt.rstrip(" ") or prompt
        references = references if args.target else [spaced_choice(prompt, choices[answer])]
        more = {"choices": choices, "answer": answer}
    target = references[0] if references else ""
    for name, text in (("prompt", prompt), ("target", target)):
        if not text.strip():
            if args.drop_empty:
                return None
            raise InputError(f"{place}: the {name} is empty; mend it, or leave such examples out with --drop_empty")
    if args.test:
        [more["test"]] = _fill(args.test, row, place, joint="\n")
    return {"prompt": prompt, "source": source, "target": target, "references": references, **more}


def _column(name: str, row: dict[str, Any], place: str) -> Any:
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{place}: no column '{name}'; it has {', '.join(row)}")
        value = value[part]
    return "" if value is None else value


def _fill(template: str, row: dict[str, Any], place: str, *, each: bool = False, joint: str = " ") -> list[str]:
    """The template with columns in place of {name} or {name.inner}. Of a column that lists texts: all of them with
    `joint` between, or, with `each`, one result for each text."""
    values = {name: _column(name, row, place) for name in FIELD.findall(template)}
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    if not each or not lists:
        values |= {name: joint.join(map(str, texts)) for name, texts in lists.items()}
        return [FIELD.sub(lambda match: str(values[match[1]]), template)]
    one_of_each = [values | dict(zip(lists, texts, strict=True)) for texts in zip(*lists.values(), strict=True)]
    return [FIELD.sub(lambda match, chosen=chosen: str(chosen[match[1]]), template) for chosen in one_of_each]


def _messages(place: str, row: dict[str, Any], assistant_role: str) -> list[dict[str, str]]:
    """Turns as role and content: perhaps a system's first, then user and assistant in turn, the assistant last."""
    name = next((name for name in CONVERSATIONS if name in row), None)
    if name is None:
        raise InputError(f"{place}: no column {', '.join(CONVERSATIONS)}; it has {', '.join(row)}")
    messages = []
    for turn in row[name]:
        try:
            role, content = turn if isinstance(turn, list) else (
                next(turn[key] for key in keys if key in turn) for keys in (ROLE_KEYS, CONTENT_KEYS))
            if not content.strip():
                raise ValueError
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):  # no such keys: StopIteration inside
            raise InputError(f"{place}: turn {len(messages)} is {str(turn)[:60]!r}; expected a role and a text that "
                             "is not empty") from None
        role = str(role).lower()
        known = {assistant_role.lower(): "assistant", "human": "user", "gpt": "assistant"}
        messages.append({"role": known.get(role, role), "content": content})
    roles = [message["role"] for message in messages]
    expected = (["system"] if roles[:1] == ["system"] else []) + ["user", "assistant"] * len(roles)
    if roles != expected[:len(roles)] or roles[-1:] != ["assistant"]:
        raise InputError(f"{place}: the roles are {', '.join(roles) or 'none'}; expected system or nothing, then user "
                         "and assistant in turn, the assistant last (--assistant_role names it)")
    return messages
