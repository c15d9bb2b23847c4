"""Examples of a task: any source -> prompt, target and references, split into train and
validation.
"""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict

from hfscale.arguments import TaskArguments
from hfscale.metrics.code import split_tests
from hfscale.options import did_you_mean
from hfscale.process import InputError, is_main_rank
from hfscale.tasks.conversations import CONVERSATIONS, Message, read_messages
from hfscale.tasks.embedded import embedded_examples
from hfscale.tasks.held_out import hold_out, row_hash
from hfscale.tasks.prompt import TaskPrompt
from hfscale.tasks.sources import Row, as_instruction, read_task_rows, without_frame
from hfscale.tasks.templates import fill_template, item_text, read_column, template_columns

PARTING = re.compile(
    r"\A(?:[ \t]*\n)+|\A (?=\S)|\s+\Z"
)  # empty lines, or one space; indented code stays so
PREDICTION = "{prediction}"  # what in a program stands for the model's answer
# What becomes of examples, in the order in which it happens.
COUNTED = {
    "read": "read",
    "shared": "left out: share their text with a held-out example",
    "unused": "beyond train_examples",
    "empty": "dropped: empty prompt or target",
    "unanswered": "dropped: nothing but the user's turn",
    "long_target": "dropped: target too long",
    "lost_turn": "lost the user's last turn",
    "unframed": '"Below is an instruction ..." taken off',
    "shortened": "prompt shortened",
    "truncated": "target truncated",
    "also_trained": "also among those trained on",
    "used": "trained on, or scored",
}

DROPPED = ("shared", "empty", "unanswered", "long_target")

Counts: TypeAlias = dict[str, Counter]  # split -> what became of examples (see COUNTED) -> how many


def load_task(args: TaskArguments, *, seed: int, counts: Counts | None = None) -> DatasetDict:
    """The examples that `args` describe, as `train` and `validation`, which is held out.

    Columns: `place` (where it stands), `prompt`, `target` (the answer to learn, without EOS),
    `references` (all right answers, the target first), `source` (what a baseline copies); with
    multiple choice `choices` and `answer` (index), with programs `test`, and `program` if they are
    run (its parts, between which the answer stands). Conversations have `messages`; their target is
    the last answer, their prompt is empty until `fit_examples` writes it. Held-out examples also
    have `columns`: those of the prompt, as JSON.

    `seed` draws the examples of a made set, and which ones `train_examples` keeps; what is held out
    never depends on it. `counts` takes, for each split, what became of the rows (see `COUNTED`).

    Raises InputError: a source that cannot be read; with the place, a missing column, an empty
    prompt or target, roles out of order; too few examples.
    """
    if not args.task_source:
        raise InputError("task_source: missing; give embedded:<task>, files or a Hub id")
    if args.validation_examples < 1 or args.train_examples is not None and args.train_examples < 1:
        raise InputError("train_examples, validation_examples: expected at least 1")
    counts = {} if counts is None else counts
    counts |= {"train": Counter(), "validation": Counter()}
    parts = _parts(args, seed, counts)
    templates = _templates(args, [row for rows in parts.values() for row in rows])
    found = {}
    for name, rows in parts.items():
        found[name] = _examples(
            rows, args, templates, counts[name], with_columns=name == "validation"
        )
        if not found[name]:
            raise InputError(
                f"task_source {', '.join(args.task_source)}: none of the {len(rows)} {name} "
                f"examples has a prompt and a target; look at {rows[0][0]}"
            )
    _say_dropped(counts)
    return DatasetDict({name: Dataset.from_list(examples) for name, examples in found.items()})


def baseline_answers(baseline: str, examples: DatasetDict) -> list[str]:
    """What a program without a model answers to the validation examples: `copy_source`,
    `lead_sentence` (of the source) or `most_frequent` (the answer that training saw most often).
    """
    if baseline == "most_frequent":
        [(answer, _)] = Counter(examples["train"]["target"]).most_common(1)
        return [answer] * len(examples["validation"])
    sources = [source.strip() for source in examples["validation"]["source"]]
    return (
        [re.split(r"(?<=[.!?])\s", source)[0] for source in sources]
        if baseline == "lead_sentence"
        else sources
    )


def spaced_choice(prompt: str, choice: str) -> str:
    """The choice as it follows the prompt: after a space, as in lm-eval, unless white space is
    there already.
    """
    return choice if not prompt or prompt[-1].isspace() or choice[:1].isspace() else f" {choice}"


def task_prompt(args: TaskArguments, examples: DatasetDict) -> TaskPrompt:
    """How a model that learned these examples is asked."""
    if "messages" in examples["train"].column_names:
        return TaskPrompt(None, [], args.stop_strings or [], args.max_new_tokens)
    template = args.prompt or ""
    if args.choices:
        template = template.rstrip(" ") or template  # as the prompts are
    columns = list(json.loads(examples["validation"]["columns"][0]))
    return TaskPrompt(template, columns, args.stop_strings or [], args.max_new_tokens)


def count_dropped(counts: Counts) -> dict[str, int]:
    """How many examples are neither trained on nor scored, by reason."""
    return {name: sum(count[name] for count in counts.values()) for name in DROPPED}


def example_texts(examples: DatasetDict) -> DatasetDict:
    """A column `text` with all that is said in an example: to train a tokenizer on, and to know the
    examples by.
    """

    def text(row: dict) -> dict:
        return {
            "text": "\n".join(turn["content"] for turn in row["messages"])
            if "messages" in row
            else row["prompt"] + row["target"]
        }

    return DatasetDict(
        {name: part.map(text, remove_columns=part.column_names) for name, part in examples.items()}
    )


def _say_dropped(counts: Counts) -> None:
    empty = sum(count["empty"] for count in counts.values())
    if empty and is_main_rank():
        print(
            f"drop_empty: {empty} examples with an empty prompt or target were left out",
            file=sys.stderr,
        )


# ---- rows of both parts


def _parts(args: TaskArguments, seed: int, counts: Counts) -> dict[str, list[Row]]:
    kind, _, name = args.task_source[0].partition(":")
    if kind == "embedded":
        made = embedded_examples(
            name,
            train_examples=args.train_examples,
            seed=seed,
            validation_examples=args.validation_examples,
        )
        parts = {
            part: [(f"{part} example {i}", row) for i, row in enumerate(rows)]
            for part, rows in made.items()
        }
        for part, rows in parts.items():
            counts[part]["read"] = len(rows)
        return parts
    train, held_out = split_rows(args, counts)
    random.Random(seed).shuffle(train)
    kept = train[: args.train_examples]
    counts["train"]["unused"] = len(train) - len(kept)
    return {"train": kept, "validation": held_out}


def split_rows(args: TaskArguments, counts: Counts | None = None) -> tuple[list[Row], list[Row]]:
    """The rows of files to train on, and those that are held out; neither depends on a seed. Raises
    as `load_task`.
    """
    counts = {"train": Counter(), "validation": Counter()} if counts is None else counts
    return _given(args, counts) if args.task_validation_source else _split(args, counts)


def make_examples(rows: list[Row], args: TaskArguments, counts: Counter) -> Dataset:
    """All of these rows as examples (see `load_task`); none is held out. Raises as `load_task`."""
    examples = _examples(rows, args, _templates(args, rows), counts, with_columns=False)
    if not examples:
        about = f"; look at {rows[0][0]}" if rows else ""
        raise InputError(
            f"task_source {', '.join(args.task_source)}: none of the {len(rows)} examples has a "
            f"prompt and a target{about}"
        )
    _say_dropped({"validation": counts})
    return Dataset.from_list(examples)


def _given(args: TaskArguments, counts: Counts) -> tuple[list[Row], list[Row]]:
    """Two sources; the second one's rows with the smallest hashes are held out."""
    parts = {
        "train": read_task_rows(args.task_source, args.task_format),
        "validation": read_task_rows(args.task_validation_source, args.task_format),
    }
    for name, argument in (
        ("train", args.task_source),
        ("validation", args.task_validation_source),
    ):
        counts[name]["read"] = len(parts[name])
        if not parts[name]:
            raise InputError(f"task_source {', '.join(argument)}: no examples in it")
    ranked = sorted(parts["validation"], key=row_hash)
    held_out = ranked[: args.validation_examples]
    counts["validation"]["unused"] = len(ranked) - len(held_out)
    trained_on = set(map(row_hash, parts["train"]))
    counts["validation"]["also_trained"] = sum(row_hash(row) in trained_on for row in held_out)
    return parts["train"], held_out


def _split(args: TaskArguments, counts: Counts) -> tuple[list[Row], list[Row]]:
    """At most a tenth of the rows is held out, see `hold_out`."""
    rows, place = (
        read_task_rows(args.task_source, args.task_format),
        f"task_source {', '.join(args.task_source)}",
    )
    limit = min(args.validation_examples, len(rows) // 10)
    if limit < 1:
        raise InputError(
            f"{place}: {len(rows)} examples are too few to hold a tenth of them out; give more, or "
            "--task_validation_source"
        )
    columns = {name for _, row in rows for name in row}
    split = hold_out(rows, limit, template_columns(args.prompt or "", columns))
    if not split.train:
        raise InputError(
            f"{place}: its {len(rows)} examples are all equal or share one text, so that none can "
            "be held out and be new; give other ones, or --task_validation_source"
        )
    counts["train"].update(read=len(split.train) + split.left_out, shared=split.left_out)
    counts["validation"]["read"] = len(split.held_out)
    return split.train, split.held_out


# ---- a row becomes an example


@dataclass(frozen=True)
class _Template:
    """A template and the columns that it takes."""

    text: str
    columns: list[str]

    def fill(self, place: str, row: dict[str, Any], joint: str = " ") -> str:
        """The text for a row; a column that lists texts gives all of them with `joint` between."""
        return fill_template(
            self.text, {name: _joined(place, row, name, joint) for name in self.columns}
        )

    def fill_each(self, place: str, row: dict[str, Any]) -> list[str]:
        """As `fill`, but one text for each that a column lists."""
        values = {name: _read(place, row, name) for name in self.columns}
        sizes = {name: len(value) for name, value in values.items() if isinstance(value, list)}
        if not sizes:
            return [self.fill(place, row)]
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{size} in '{name}'" for name, size in sizes.items())
            raise InputError(
                f"{place}: the target's columns list {shown}; expected as many in each"
            )
        each = [
            {name: value[i] if name in sizes else value for name, value in values.items()}
            for i in range(max(sizes.values()))
        ]
        return [
            fill_template(
                self.text, {name: _as_text(place, name, value) for name, value in items.items()}
            )
            for items in each
        ]


def _templates(args: TaskArguments, rows: list[Row]) -> dict[str, _Template]:
    """Those that are given; what stands in braces is a column if any row has it."""
    columns = {name for _, row in rows for name in row}
    given = {"test": args.test_code}
    if args.task_format != "chat":
        given |= {
            "prompt": args.prompt,
            "target": args.target,
            "baseline_input": args.baseline_input,
        }
    if "pass_at_k" in args.metrics:
        given["program"], given["tests"] = split_tests(
            args.test_program, tests_apart=args.tests_apart
        )
    return {
        name: _Template(text, template_columns(text, columns))
        for name, text in given.items()
        if text is not None
    }


def _read(place: str, row: dict[str, Any], name: str) -> Any:
    try:
        return read_column(row, name)
    except KeyError:
        raise InputError(
            f"{place}: no column '{name}'; it has {', '.join(row)}{did_you_mean(name, row)}"
        ) from None


def _joined(place: str, row: dict[str, Any], name: str, joint: str = " ") -> str:
    """The text of a column; of a list all its items with `joint` between."""
    value = _read(place, row, name)
    items = value if isinstance(value, list) else [value]
    return joint.join(_as_text(place, name, item) for item in items)


def _as_text(place: str, name: str, value: Any) -> str:
    try:
        return item_text(value)
    except TypeError as error:
        raise InputError(f"{place}: column '{name}' {error}") from None


def _examples(
    rows: Iterable[Row],
    args: TaskArguments,
    templates: dict[str, _Template],
    counts: Counter,
    with_columns: bool,
) -> list[dict[str, Any]]:
    found = []
    for place, row in rows:
        example = _example(place, row, args, templates, counts)
        if example is None:
            continue
        if with_columns:
            names = templates["prompt"].columns if "prompt" in templates else []
            example["columns"] = json.dumps(
                {name: _joined(place, row, name) for name in names}, ensure_ascii=False
            )
        found.append(example)
    return found


def _example(
    place: str,
    row: dict[str, Any],
    args: TaskArguments,
    templates: dict[str, _Template],
    counts: Counter,
) -> dict[str, Any] | None:
    """None: it is left out, and counted."""
    if args.task_format == "chat":
        example = _conversation(place, row, args, counts)
    elif args.prompt is None and args.target is None and args.choices is None:
        example = _question_and_answer(place, row, args.task_format, counts)
    else:
        example = _from_templates(place, row, args, templates)
    if example is None or _is_empty(place, example, args, counts):
        return None
    if "program" in templates:
        example["program"], example["program_tests"] = _program(place, row, example, templates)
    return {"place": place, **example}


def _is_empty(place: str, example: dict[str, Any], args: TaskArguments, counts: Counter) -> bool:
    """Whether there is nothing to ask or to answer, which has to be allowed. Choices may go without
    a prompt.
    """
    asked = example["messages"][-2]["content"] if "messages" in example else example["prompt"]
    needed = (
        {"target": example["target"]}
        if args.choices
        else {"prompt": asked, "target": example["target"]}
    )
    empty = [name for name, text in needed.items() if not text.strip()]
    if empty and not args.drop_empty:
        raise InputError(
            f"{place}: the {empty[0]} is empty; mend it, or leave such examples out with "
            "--drop_empty"
        )
    counts["empty"] += bool(empty)
    return bool(empty)


def _conversation(
    place: str, row: dict[str, Any], args: TaskArguments, counts: Counter
) -> dict[str, Any] | None:
    """The turns up to the last answer; what the user says after it has none."""
    messages = read_messages(place, row, args)
    if not messages:
        counts["empty"] += 1
        return None
    if messages[-1]["role"] == "assistant":
        return _talk(messages, [messages[-1]["content"]])
    answered = messages[:-1]
    if not answered or answered[-1]["role"] != "assistant":
        counts["unanswered"] += 1
        return None
    counts["lost_turn"] += 1
    return _talk(answered, [answered[-1]["content"]])


def _talk(messages: list[Message], references: list[str]) -> dict[str, Any]:
    """An example whose prompt the chat template writes."""
    return {
        "prompt": "",
        "source": messages[-2]["content"],
        "target": messages[-1]["content"],
        "references": references,
        "messages": messages,
    }


def _asked(question: str, references: list[str], system: str = "") -> dict[str, Any]:
    """A conversation of one question and its answer, without the white space that parts them in a
    plain prompt.
    """
    first = [{"role": "system", "content": system}] if system else []
    references = [PARTING.sub("", text) for text in references]
    answer = references[0] if references else ""
    return _talk(
        [
            *first,
            {"role": "user", "content": PARTING.sub("", question)},
            {"role": "assistant", "content": answer},
        ],
        references,
    )


def _question_and_answer(
    place: str, row: dict[str, Any], task_format: str, counts: Counter
) -> dict[str, Any]:
    """Without templates the columns have the usual names, and the chat template says how they are
    written: it comes in the place of a frame that the file has around its instructions.
    """
    found = row if task_format == "instructions" else as_instruction(row)
    if found is None:
        raise _templates_missing(place, row)
    response = found["response"]
    answers = response if isinstance(response, list) else [response]
    question = without_frame(found["prompt"])
    counts["unframed"] += question != found["prompt"]
    return _asked(
        question,
        [_as_text(place, "response", answer) for answer in answers],
        found.get("system", ""),
    )


def _templates_missing(place: str, row: dict[str, Any]) -> InputError:
    if not set(CONVERSATIONS).isdisjoint(row):
        return InputError(
            f"prompt, target: missing; {place} has {', '.join(row)}: read conversations with "
            "--task_format chat, or give templates in which {name} stands for a column"
        )
    return InputError(
        "prompt, target: missing; give templates in which {name} stands for a column, or, for "
        f"columns such as prompt and response, only a --chat_template; {place} has {', '.join(row)}"
    )


def _from_templates(
    place: str, row: dict[str, Any], args: TaskArguments, templates: dict[str, _Template]
) -> dict[str, Any]:
    if (
        "prompt" not in templates
        and not args.choices
        or "target" not in templates
        and not args.choices
    ):
        raise _templates_missing(place, row)
    prompt = templates["prompt"].fill(place, row) if "prompt" in templates else ""
    source = (
        templates["baseline_input"].fill(place, row) if "baseline_input" in templates else prompt
    )
    references = templates["target"].fill_each(place, row) if "target" in templates else []
    more: dict[str, Any] = {}
    if args.choices:
        prompt = prompt.rstrip(" ") or prompt
        more = _choices(place, row, args)
        references = references or [spaced_choice(prompt, more["choices"][more["answer"]])]
    if "test" in templates:
        more["test"] = templates["test"].fill(place, row, joint="\n")
    if args.chat_template is None:
        target = references[0] if references else ""
        return {
            "prompt": prompt,
            "source": source,
            "target": target,
            "references": references,
            **more,
        }
    if args.choices:
        raise InputError(
            "chat_template: choices are scored after a plain prompt; leave one of the two out"
        )
    return _asked(prompt, references) | {"source": source} | more


def _choices(place: str, row: dict[str, Any], args: TaskArguments) -> dict[str, Any]:
    """The texts to choose from, which one column lists or several hold, and the index of the right
    one.
    """
    columns = [args.choices] if isinstance(args.choices, str) else args.choices
    values = [_read(place, row, name) for name in columns]
    is_list = len(columns) == 1
    if is_list and not isinstance(values[0], list):
        raise InputError(
            f"{place}: column '{columns[0]}' holds {str(values[0])[:40]!r}; expected a list of "
            "choices, or give the columns that hold one each"
        )
    named = (
        [(columns[0], text) for text in values[0]] if is_list else zip(columns, values, strict=True)
    )
    texts = [_as_text(place, name, text) for name, text in named]
    if not all(text.strip() for text in texts):
        raise InputError(f"{place}: has the choices {texts!r}; expected texts that are not empty")
    if not is_list and args.label in (None, *columns):
        answer = columns.index(args.label) if args.label else 0
    else:
        answer = _choice_index(place, _read(place, row, args.label or "answer"), len(texts))
    return {"choices": texts, "answer": answer}


def _choice_index(place: str, answer: Any, choices: int) -> int:
    if isinstance(answer, str) and answer.strip().isdecimal():  # a table of text has no numbers
        answer = int(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < choices:
        raise InputError(
            f"{place}: the answer {answer!r} is not an index, from 0, of {choices} choices"
        )
    return answer


def _program(
    place: str, row: dict[str, Any], example: dict[str, Any], templates: dict[str, _Template]
) -> tuple[list[str], str]:
    """What pass_at_k runs, cut where the model's answer stands, and its tests. {test} is the
    template of that name if one is given; other names are columns as they were read, then the whole
    prompt and the target.
    """
    known = {
        "prompt": example["source"] if "messages" in example else example["prompt"],
        "target": example["target"],
    }
    values = {}
    for name in [*templates["program"].columns, *templates["tests"].columns]:
        if name == "test" and "test" in example:
            values[name] = example["test"]
        elif name in known and name not in row:
            values[name] = known[name]
        elif name != "prediction":
            values[name] = _joined(place, row, name, joint="\n")
    parts = [fill_template(part, values) for part in templates["program"].text.split(PREDICTION)]
    return parts, fill_template(templates["tests"].text, values)
