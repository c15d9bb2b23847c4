"""Prompt and response under their usual names, in every form."""

import pytest

from hfscale.tasks.sources import as_instruction, without_frame

FRAME = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately "
    "completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "response": "r"}, {"prompt": "q", "response": "r"}),
        ({"prompt": "q", "completion": "r"}, {"prompt": "q", "response": "r"}),
        (
            {"instruction": "q", "input": "x", "output": "r"},
            {"prompt": "q\n\nx", "response": "r", "context": "x"},
        ),
        ({"instruction": "q", "input": "", "output": "r"}, {"prompt": "q", "response": "r"}),
        (
            {"instruction": "q", "context": "x", "response": "r", "category": "c"},
            {"prompt": "q\n\nx", "response": "r", "context": "x"},
        ),
        ({"question": "q", "answer": "r"}, {"prompt": "q", "response": "r"}),
        ({"Question": "q", "Answer": "r"}, {"prompt": "q", "response": "r"}),
        (
            {
                "question": "q",
                "context": "x",
                "answers": {"text": ["r", "s"], "answer_start": [1, 2]},
            },
            {"prompt": "q\n\nx", "response": ["r", "s"], "context": "x"},
        ),
        (
            {"system_prompt": "s", "question": "q", "response": "r"},
            {"prompt": "q", "response": "r", "system": "s"},
        ),
        ({"input": "q", "output": "r"}, {"prompt": "q", "response": "r"}),
        ({"inputs": "q", "targets": "r"}, {"prompt": "q", "response": "r"}),
        ({"query": "q", "reply": 3}, {"prompt": "q", "response": 3}),
        ({"prompt": "", "instruction": "q", "output": "r"}, {"prompt": "q", "response": "r"}),
        ({"prompt": "q"}, None),
        ({"q": "q", "a": "r"}, None),
        ({"prompt": ["q"], "response": "r"}, None),
        ({}, None),
    ],
)
def test_usual_columns(row, expected):
    assert as_instruction(row) == expected


def test_a_frame_around_an_instruction_is_taken_off():
    """As in Alpaca, which wrote its prompts for models without a chat template."""
    assert (
        without_frame(FRAME.format(more="", instruction="What is it?\n\nSay.", input=""))
        == "What is it?\n\nSay."
    )
    more = ", paired with an input that provides further context"
    framed = FRAME.format(more=more, instruction="Add.", input="### Input:\n1, 2\n\n")
    assert without_frame(framed) == "Add.\n\n1, 2"
    for text in ("Add.", f"{framed}More", f"More {framed}"):
        assert without_frame(text) == text
