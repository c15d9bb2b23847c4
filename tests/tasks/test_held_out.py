"""Which rows are held out: none shares its context with one to train on, in any format."""

import json
import random

import pytest

from hfscale.arguments import TaskArguments
from hfscale.process import InputError
from hfscale.tasks.examples import load_task
from hfscale.tasks.held_out import hold_out, row_hash

CONTEXTS = [
    f"In the town of number {i} the mayor is called Rowan {i} and the river is the Elm {i}."
    for i in range(20)
]
QUESTIONS = ("Who is the mayor?", "Which river is it?", "Which town is it?")


def squad(contexts: list[str]) -> dict:
    paragraphs = [
        {
            "context": text,
            "qas": [
                {
                    "id": f"{i}-{j}",
                    "question": question,
                    "answers": [{"text": f"{i}", "answer_start": 0}],
                }
                for j, question in enumerate(QUESTIONS)
            ],
        }
        for i, text in enumerate(contexts)
    ]
    return {"data": [{"title": "t", "paragraphs": paragraphs}]}


def rows(*columns: str, contexts: list[str] = CONTEXTS) -> list[dict]:
    """A row for each context and question, under these names; the answer is a's."""
    names = columns or ("context", "question")
    return [
        dict(zip(names, (text, question), strict=True), a=f"{i}-{j}")
        for i, text in enumerate(contexts)
        for j, question in enumerate(QUESTIONS)
    ]


def split(
    tmp_path, data: list | dict, counts: dict | None = None, **settings
) -> tuple[list[str], list[str]]:
    """The contexts (a number in the prompts) on both sides."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data))
    args = TaskArguments(task_source=[str(path)], **{"target": "{a}", **settings})
    parts = load_task(args, seed=0, counts=counts)
    return tuple(part["prompt"][:] for part in (parts["train"], parts["validation"]))


def number(prompt: str) -> str:
    return prompt.partition("number ")[2].partition(" ")[0]


def test_squad_is_held_out_by_paragraph(tmp_path):
    train, held_out = split(
        tmp_path,
        squad(CONTEXTS),
        task_format="squad",
        prompt="{question} {context}",
        target="{answers}",
    )
    assert (len(train), len(held_out)) == (54, 6)
    assert (
        not {*map(number, train)} & {*map(number, held_out)} and len({*map(number, held_out)}) == 2
    )


@pytest.mark.parametrize(
    "names",
    [
        ("context", "question"),
        ("Passage", "q"),
        ("document", "question"),
        ("article", "question"),
        ("premise", "hypothesis"),
        ("notes of a town", "q"),
        ("background", "q"),
    ],
)
def test_any_shared_context_of_a_prompt_stays_on_one_side(tmp_path, names):
    """Those with a usual name, and any long text of the prompt that repeats."""
    first, second = names
    train, held_out = split(tmp_path, rows(*names), prompt=f"{{{second}}}\n{{{first}}}\n")
    assert (len(train), len(held_out)) == (54, 6)
    assert not {*map(number, train)} & {*map(number, held_out)}


def test_a_context_that_is_not_in_the_prompt_counts_too_and_so_do_short_ones(tmp_path):
    data = rows(contexts=[f"number {i} " for i in range(20)])
    train, held_out = split(tmp_path, data, prompt="{a}: {question}")
    assert not {prompt.partition("-")[0] for prompt in train} & {
        prompt.partition("-")[0] for prompt in held_out
    }
    assert len(held_out) == 6


def test_values_inside_records_and_lists_are_contexts(tmp_path):
    data = [
        {"q": row["question"], "a": row["a"], "page": {"lines": row["context"].split(" and ")}}
        for row in rows()
    ]
    train, held_out = split(tmp_path, data, prompt="{q} {page.lines}")
    assert not {*map(number, train)} & {*map(number, held_out)}


def test_questions_that_repeat_tie_no_contexts_together(tmp_path):
    """Long ones, asked about many pages: all would be one group, too large to be held out."""
    questions = [f"{question} Answer in as few words as you can find." for question in QUESTIONS]
    for name in ("context", "page"):
        data = [
            {name: text, "q": question, "a": "x"} for text in CONTEXTS for question in questions
        ]
        train, held_out = split(tmp_path, data, prompt=f"{{q}} {{{name}}}")
        assert (len(train), len(held_out)) == (54, 6)
        assert not {*map(number, train)} & {*map(number, held_out)}


def test_what_most_rows_say_is_no_context(tmp_path):
    """Otherwise all would be one group."""
    data = [
        {
            "instruction": "Say in one word which of the two towns is the larger one.",
            "input": "none",
            "a": f"{i}",
        }
        for i in range(100)
    ]
    for name in ("input", "context"):
        renamed = [
            {name if key == "input" else key: value for key, value in row.items()} for row in data
        ]
        train, held_out = split(tmp_path, renamed, prompt=f"{{instruction}} {{{name}}}")
        assert (len(train), len(held_out)) == (90, 10)


def test_categories_are_no_contexts(tmp_path):
    """Long labels of a large file: each would put a tenth of it on one side."""
    labels = [f"Credit reporting, credit repair and other reports, kind {i}" for i in range(10)]
    data = [{"label": labels[i % 10], "text": f"complaint {i}", "a": "x"} for i in range(1000)]
    train, held_out = split(tmp_path, data, prompt="{label}: {text}", validation_examples=500)
    assert len(held_out) == 100 and len({prompt.split(":")[0] for prompt in held_out}) == 10
    assert len({prompt.split(":")[0] for prompt in train}) == 10


def test_conversations_that_begin_alike_stay_together(tmp_path):
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": f"turn {i} of a conversation about {{}}"}
        for i in range(6)
    ]
    system = {"role": "system", "content": "Be kind."}
    data = [
        {
            "messages": [
                system,
                *(
                    {**turn, "content": turn["content"].format(f"town {town}")}
                    for turn in turns[:size]
                ),
            ]
        }
        for town in range(20)
        for size in (2, 4, 6)
    ]
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(data))
    parts = load_task(TaskArguments(task_source=[str(path)], task_format="chat"), seed=0)
    towns = [
        {row["messages"][1]["content"] for row in parts[name]} for name in ("train", "validation")
    ]
    assert len(parts["validation"]) == 6 and not towns[0] & towns[1]


def test_rows_without_a_context_are_those_with_the_smallest_hashes():
    data = [(f"row {i}", {"q": f"question {i}", "a": "x"}) for i in range(200)]
    random.Random(0).shuffle(data)
    parts = hold_out(data, 20, ["q"])
    ranked = sorted(data, key=row_hash)
    assert parts.held_out == ranked[:20] and parts.left_out == 0
    assert parts.train == [row for row in data if row not in ranked[:20]]


def test_a_group_that_does_not_fit_goes_to_training_if_another_fits():
    sizes = {"a": 30, "b": 3, "c": 40, "d": 27}
    data = [
        (f"{name}{i}", {"context": name, "q": i})
        for name, size in sizes.items()
        for i in range(size)
    ]
    parts = hold_out(data, 10, [])
    assert {row["context"] for _, row in parts.held_out} == {"b"} and len(parts.held_out) == 3
    assert (len(parts.train), parts.left_out) == (97, 0)


def test_where_no_group_fits_the_rest_of_the_smallest_is_left_out_and_counted(tmp_path):
    counts = {}
    contexts = [f"number {i} " for i in range(4)]
    data = [{"context": contexts[i % 4], "q": str(i), "a": "x"} for i in range(20)]
    train, held_out = split(tmp_path, data, counts, prompt="{context}{q}")
    assert (len(train), len(held_out)) == (15, 2)
    assert (
        counts["train"]["read"] + counts["validation"]["read"] == 20
        and counts["train"]["shared"] == 3
    )
    assert not {*map(number, train)} & {*map(number, held_out)}


def test_chains_of_shared_texts_are_one_group():
    """A row that has the context of one and the document of another ties both."""
    data = [
        (f"{i}", {"context": f"c{i // 2}", "document": f"d{(i + 1) // 2}", "q": i})
        for i in range(6)
    ]
    data += [(f"x{i}", {"context": f"x{i}", "q": i}) for i in range(20)]
    parts = hold_out(data, 5, [])
    tied = [row["q"] for place, row in parts.held_out if not place.startswith("x")]
    assert tied in ([], list(range(6))) and len(parts.held_out) == 5


def test_the_right_reason_is_named(tmp_path):
    with pytest.raises(
        InputError,
        match="its 50 examples are all equal or share one text, so that none can be held",
    ):
        split(tmp_path, [{"q": "x", "a": "y"}] * 50, prompt="{q}")
    with pytest.raises(InputError, match="9 examples are too few to hold a tenth of them out"):
        split(tmp_path, [{"q": "x", "a": "y"}] * 9, prompt="{q}")
    with pytest.raises(InputError, match="0 examples are too few"):
        split(tmp_path, [], prompt="{q}")


def test_held_out_examples_that_are_trained_on_are_counted(tmp_path):
    (tmp_path / "own.jsonl").write_text(
        "\n".join(json.dumps({"q": str(i), "a": "x"}) for i in range(6))
    )
    (tmp_path / "other.jsonl").write_text(
        "\n".join(json.dumps({"q": str(i), "a": "x"}) for i in range(4, 9))
    )
    counts = {}
    load_task(
        TaskArguments(
            task_source=[str(tmp_path / "own.jsonl")],
            prompt="{q}",
            target="{a}",
            task_validation_source=[str(tmp_path / "other.jsonl")],
        ),
        seed=0,
        counts=counts,
    )
    assert (counts["validation"]["read"], counts["validation"]["also_trained"]) == (5, 2)
