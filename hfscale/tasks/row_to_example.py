"""A row of any source becomes an example: what is asked, what is answered, and what is run.

An example is a dictionary; `load_task` says which names it has.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from hfscale.arguments import TaskArguments
from hfscale.data.templates import (
    Template,
    column_text,
    fill_template,
    template_columns,
    value_text,
)
from hfscale.metrics.code import split_tests
from hfscale.process import InputError
from hfscale.tasks.choices import read_choices, spaced_choice
from hfscale.tasks.conversations import CONVERSATIONS, Message, read_messages
from hfscale.tasks.sources import Row, as_instruction, without_frame

Example: TypeAlias = dict[str, Any]

# White space that parts prompt and target in a plain text, and that a chat template has no need of:
# empty lines at the start, or one space; indented code keeps what its first line has.
PARTING = re.compile(r"\A(?:[ \t]*\n)+|\A (?=\S)|\s+\Z")
PREDICTION = "{prediction}"  # what in a program stands for the model's answer


@dataclass(frozen=True)
class TaskTemplates:
    """The templates of a task; None: it has none of this kind."""

    prompt: Template | None = None
    target: Template | None = None
    baseline_input: Template | None = None
    test_code: Template | None = None
    program: Template | None = None  # what pass_at_k runs
    program_tests: Template | None = None  # what it runs after that, in a process of its own


def task_templates(args: TaskArguments, rows: Iterable[Row]) -> TaskTemplates:
    """Those that `args` have; what stands in braces is a column if any row has it."""
    columns = {name for _, row in rows for name in row}
    texts: dict[str, str | None] = {"test_code": args.test_code}
    if args.task_format != "chat":  # else the chat template writes prompt and target
        texts |= {
            "prompt": args.prompt,
            "target": args.target,
            "baseline_input": args.baseline_input,
        }
    if "pass_at_k" in args.metrics:
        program, tests = split_tests(args.test_program, tests_apart=args.tests_apart)
        texts |= {"program": program, "program_tests": tests}
    templates = {
        name: Template(text, template_columns(text, columns))
        for name, text in texts.items()
        if text is not None
    }
    return TaskTemplates(**templates)


def make_example(
    place: str,
    row: dict[str, Any],
    args: TaskArguments,
    templates: TaskTemplates,
    counts: Counter,
) -> Example | None:
    """The example that a row makes; None: it is left out, and counted under its reason.

    Raises InputError: with the place, what the row lacks, or has of a wrong kind.
    """
    if args.task_format == "chat":
        example = _from_conversation(place, row, args, counts)
    elif args.prompt is None and args.target is None and args.choices is None:
        example = _from_usual_columns(place, row, args.task_format, counts)
    else:
        example = _from_templates(place, row, args, templates)
    if example is None or _is_empty(place, example, args, counts):
        return None
    if templates.program and templates.program_tests:
        example |= _program(place, row, example, templates.program, templates.program_tests)
    return {"place": place, **example}


def _is_empty(place: str, example: Example, args: TaskArguments, counts: Counter) -> bool:
    """Whether there is nothing to ask or to answer, which has to be allowed. Choices may go without
    a prompt.
    """
    needed = {}
    if not args.choices:
        is_chat = "messages" in example
        needed["prompt"] = example["messages"][-2]["content"] if is_chat else example["prompt"]
    needed["target"] = example["target"]
    empty = [name for name, text in needed.items() if not text.strip()]
    if empty and not args.drop_empty:
        raise InputError(
            f"{place}: the {empty[0]} is empty; mend it, or leave such examples out with "
            "--drop_empty"
        )
    is_empty = bool(empty)
    counts["empty"] += is_empty  # a 0 in the record says that it was looked for
    return is_empty


# ---- conversations


def _from_conversation(
    place: str, row: dict[str, Any], args: TaskArguments, counts: Counter
) -> Example | None:
    """The turns up to the last answer; what the user says after it has none."""
    messages = read_messages(place, row, args)
    if not messages:
        counts["empty"] += 1
        return None
    if messages[-1]["role"] != "assistant":
        messages = messages[:-1]
        if not messages or messages[-1]["role"] != "assistant":
            counts["unanswered"] += 1
            return None
        counts["lost_turn"] += 1
    return _chat_example(messages, [messages[-1]["content"]])


def _chat_example(messages: list[Message], references: list[str]) -> Example:
    """An example whose prompt the chat template will write."""
    return {
        "prompt": "",
        "source": messages[-2]["content"],
        "target": messages[-1]["content"],
        "references": references,
        "messages": messages,
    }


def _one_question(question: str, references: list[str], system: str = "") -> Example:
    """A conversation of one question and its answer, without the white space that parts them in a
    plain prompt.
    """
    references = [PARTING.sub("", text) for text in references]
    messages = [
        {"role": "user", "content": PARTING.sub("", question)},
        {"role": "assistant", "content": references[0] if references else ""},
    ]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return _chat_example(messages, references)


def _from_usual_columns(
    place: str, row: dict[str, Any], task_format: str, counts: Counter
) -> Example:
    """Without templates the columns have the usual names, and the chat template says how they are
    written: it comes in the place of a frame that the file has around its instructions.
    """
    instruction = row if task_format == "instructions" else as_instruction(row)
    if instruction is None:
        raise _templates_missing(place, row)
    response = instruction["response"]
    answers = response if isinstance(response, list) else [response]
    references = [value_text(place, "response", answer) for answer in answers]
    question = without_frame(instruction["prompt"])
    counts["unframed"] += question != instruction["prompt"]
    return _one_question(question, references, instruction.get("system", ""))


# ---- templates


def _from_templates(
    place: str, row: dict[str, Any], args: TaskArguments, templates: TaskTemplates
) -> Example:
    """Choices may go without a prompt, and bring their own target."""
    if not args.choices and (templates.prompt is None or templates.target is None):
        raise _templates_missing(place, row)
    prompt = templates.prompt.fill(place, row) if templates.prompt else ""
    source = prompt
    if templates.baseline_input:
        source = templates.baseline_input.fill(place, row)
    references = templates.target.fill_each(place, row) if templates.target else []
    extra: Example = {}
    if args.choices:
        # The space before a choice belongs to the choice.
        prompt = prompt.rstrip(" ") or prompt
        extra |= read_choices(place, row, args.choices, args.label)
        if not references:
            references = [spaced_choice(prompt, extra["choices"][extra["answer"]])]
    if templates.test_code:
        extra["test"] = templates.test_code.fill(place, row, joint="\n")
    if args.chat_template is not None:
        if args.choices:
            raise InputError(
                "chat_template: choices are scored after a plain prompt; leave one of the two out"
            )
        return _one_question(prompt, references) | {"source": source} | extra
    return {
        "prompt": prompt,
        "source": source,
        "target": references[0] if references else "",
        "references": references,
        **extra,
    }


def _templates_missing(place: str, row: dict[str, Any]) -> InputError:
    columns = ", ".join(row)
    if not set(CONVERSATIONS).isdisjoint(row):
        return InputError(
            f"prompt, target: missing; {place} has {columns}: read conversations with "
            "--task_format chat, or give templates in which {name} stands for a column"
        )
    return InputError(
        "prompt, target: missing; give templates in which {name} stands for a column, or, for "
        f"columns such as prompt and response, only a --chat_template; {place} has {columns}"
    )


def _program(
    place: str, row: dict[str, Any], example: Example, program: Template, tests: Template
) -> Example:
    """What pass_at_k runs: `program`, cut where the model's answer stands, and `program_tests`.

    {test} is the filled `test_code` if there is one; other names are columns as they were read,
    then the whole prompt and the target.
    """
    filled = {
        "prompt": example["source"] if "messages" in example else example["prompt"],
        "target": example["target"],
    }
    values = {}
    for name in [*program.columns, *tests.columns]:
        if name == "test" and "test" in example:
            values[name] = example["test"]
        elif name in filled and name not in row:
            values[name] = filled[name]
        elif name != "prediction":
            values[name] = column_text(place, row, name, joint="\n")
    around_prediction = program.text.split(PREDICTION)
    return {
        "program": [fill_template(text, values) for text in around_prediction],
        "program_tests": fill_template(tests.text, values),
    }
