"""Examples of a task: any source -> prompt, target and references, split into train and
validation.
"""

import json
import random
import re
import sys
from collections import Counter
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict

from hfscale.arguments import TaskArguments
from hfscale.data.templates import column_text, template_columns
from hfscale.generation.task_prompt import TaskPrompt
from hfscale.process import InputError, is_main_rank
from hfscale.shown import show_text
from hfscale.tasks.embedded import embedded_examples
from hfscale.tasks.held_out import hold_out, row_hash
from hfscale.tasks.row_to_example import Example, TaskTemplates, make_example, task_templates
from hfscale.tasks.sources import Row, read_task_rows

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
# Of a source without held-out rows of its own at most one of so many is held out.
HELD_OUT_ONE_IN = 10

# split -> what became of examples (see COUNTED) -> how many
Counts: TypeAlias = dict[str, Counter]


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
    _check_names(args)
    counts = {} if counts is None else counts
    counts |= {"train": Counter(), "validation": Counter()}
    splits = _read_splits(args, seed, counts)
    templates = task_templates(args, [row for rows in splits.values() for row in rows])
    examples = DatasetDict()
    for name, rows in splits.items():
        is_held_out = name == "validation"
        kept = _make_all(rows, args, templates, counts[name], with_columns=is_held_out)
        if not kept:
            raise InputError(
                f"{_source_place(args)}: none of the {len(rows)} {name} examples has a prompt and "
                f"a target; look at {rows[0][0]}"
            )
        examples[name] = Dataset.from_list(kept)
    _say_dropped(counts)
    return examples


def _check_names(args: TaskArguments) -> None:
    """Raise InputError for roles that are one, and for a stop string that would stop at once."""
    if args.user_role.strip().lower() == args.assistant_role.strip().lower():
        raise InputError(
            f"user_role {args.user_role}: is the assistant_role, too; each needs its own name"
        )
    if "" in (args.stop_strings or ()):
        raise InputError("stop_strings: an empty string would stop at once; leave it out")


def make_examples(rows: list[Row], args: TaskArguments, counts: Counter) -> Dataset:
    """All of these rows as examples (see `load_task`); none is held out. Raises as `load_task`."""
    examples = _make_all(rows, args, task_templates(args, rows), counts, with_columns=False)
    if not examples:
        first_place = f"; look at {rows[0][0]}" if rows else ""
        raise InputError(
            f"{_source_place(args)}: none of the {len(rows)} examples has a prompt and a "
            f"target{first_place}"
        )
    _say_dropped({"validation": counts})
    return Dataset.from_list(examples)


def _make_all(
    rows: list[Row],
    args: TaskArguments,
    templates: TaskTemplates,
    counts: Counter,
    with_columns: bool,
) -> list[Example]:
    """The rows' examples without those that are left out."""
    examples = []
    for place, row in rows:
        example = make_example(place, row, args, templates, counts)
        if example is None:
            continue
        if with_columns:
            names = templates.prompt.columns if templates.prompt else []
            columns = {name: column_text(place, row, name) for name in names}
            example["columns"] = json.dumps(columns, ensure_ascii=False)
        examples.append(example)
    return examples


def _say_dropped(counts: Counts) -> None:
    empty = sum(count["empty"] for count in counts.values())
    if empty and is_main_rank():
        show_text(
            f"drop_empty: {empty} examples with an empty prompt or target were left out",
            file=sys.stderr,
        )


# ---- the rows of both splits


def _sources(args: TaskArguments) -> list[str]:
    if not args.task_source:
        raise InputError("task_source: missing; give embedded:<task>, files or a Hub id")
    return args.task_source


def _source_place(args: TaskArguments) -> str:
    return f"task_source {', '.join(_sources(args))}"


def _read_splits(args: TaskArguments, seed: int, counts: Counts) -> dict[str, list[Row]]:
    kind, _, name = _sources(args)[0].partition(":")
    if kind == "embedded":
        return _embedded_splits(name, args, seed, counts)
    train, held_out = split_rows(args, counts)
    random.Random(seed).shuffle(train)
    kept = train[: args.train_examples]
    counts["train"]["unused"] = len(train) - len(kept)
    return {"train": kept, "validation": held_out}


def _embedded_splits(
    name: str, args: TaskArguments, seed: int, counts: Counts
) -> dict[str, list[Row]]:
    splits = embedded_examples(
        name,
        train_examples=args.train_examples,
        validation_examples=args.validation_examples,
        seed=seed,
    )
    placed = {}
    for split, rows in splits.items():
        placed[split] = [(f"{split} example {i}", row) for i, row in enumerate(rows)]
        counts[split]["read"] = len(rows)
    return placed


def split_rows(args: TaskArguments, counts: Counts | None = None) -> tuple[list[Row], list[Row]]:
    """The rows of files to train on, and those that are held out; neither depends on a seed. Raises
    as `load_task`.
    """
    if counts is None:
        counts = {"train": Counter(), "validation": Counter()}
    if args.task_validation_source:
        return _rows_of_two_sources(args, args.task_validation_source, counts)
    return _rows_of_one_source(args, counts)


def _rows_of_two_sources(
    args: TaskArguments, validation_source: list[str], counts: Counts
) -> tuple[list[Row], list[Row]]:
    """Of the second source the rows with the smallest hashes are held out."""
    train = _read_some(_sources(args), args.task_format, counts["train"])
    validation = _read_some(validation_source, args.task_format, counts["validation"])
    ranked = sorted(validation, key=row_hash)
    held_out = ranked[: args.validation_examples]
    counts["validation"]["unused"] = len(ranked) - len(held_out)
    train_hashes = {row_hash(row) for row in train}
    counts["validation"]["also_trained"] = sum(row_hash(row) in train_hashes for row in held_out)
    return train, held_out


def _read_some(sources: list[str], task_format: str, count: Counter) -> list[Row]:
    rows = read_task_rows(sources, task_format)
    count["read"] = len(rows)
    if not rows:
        raise InputError(f"task_source {', '.join(sources)}: no examples in it")
    return rows


def _rows_of_one_source(args: TaskArguments, counts: Counts) -> tuple[list[Row], list[Row]]:
    """A part of the rows is held out, see `hold_out`."""
    rows = read_task_rows(_sources(args), args.task_format)
    limit = min(args.validation_examples, len(rows) // HELD_OUT_ONE_IN)
    if limit < 1:
        raise InputError(
            f"{_source_place(args)}: {len(rows)} examples are too few to hold a tenth of them out; "
            "give more, or --task_validation_source"
        )
    columns = {name for _, row in rows for name in row}
    split = hold_out(rows, limit, template_columns(args.prompt or "", columns))
    if not split.train:
        raise InputError(
            f"{_source_place(args)}: its {len(rows)} examples are all equal or share one text, so "
            "that none can be held out and be new; give other ones, or --task_validation_source"
        )
    counts["train"].update(read=len(split.train) + split.left_out, shared=split.left_out)
    counts["validation"]["read"] = len(split.held_out)
    return split.train, split.held_out


# ---- what is known of examples


def baseline_answers(baseline: str, examples: DatasetDict) -> list[str]:
    """What a program without a model answers to the validation examples: `copy_source`,
    `lead_sentence` (of the source) or `most_frequent` (the answer that training saw most often).
    """
    if baseline == "most_frequent":
        [(answer, _)] = Counter(examples["train"]["target"]).most_common(1)
        return [answer] * len(examples["validation"])
    sources = [source.strip() for source in examples["validation"]["source"]]
    if baseline == "lead_sentence":
        return [re.split(r"(?<=[.!?])\s", source)[0] for source in sources]
    return sources


def task_prompt(args: TaskArguments, examples: DatasetDict) -> TaskPrompt:
    """How a model that learned these examples is asked."""
    stop_strings = args.stop_strings or []
    if "messages" in examples["train"].column_names:
        return TaskPrompt(None, [], stop_strings, args.max_new_tokens)
    template = args.prompt or ""
    if args.choices:
        template = template.rstrip(" ") or template  # as the prompts are
    columns = list(json.loads(examples["validation"]["columns"][0]))
    return TaskPrompt(template, columns, stop_strings, args.max_new_tokens)


def count_dropped(counts: Counts) -> dict[str, int]:
    """How many examples are neither trained on nor scored, by reason."""
    return {name: sum(count[name] for count in counts.values()) for name in DROPPED}


def example_texts(examples: DatasetDict) -> DatasetDict:
    """A column `text` with all that is said in an example: to train a tokenizer on, and to know the
    examples by.
    """
    return DatasetDict(
        {
            name: split.map(_whole_text, remove_columns=split.column_names)
            for name, split in examples.items()
        }
    )


def _whole_text(example: dict[str, Any]) -> dict[str, str]:
    if "messages" not in example:
        return {"text": example["prompt"] + example["target"]}
    return {"text": "\n".join(turn["content"] for turn in example["messages"])}
