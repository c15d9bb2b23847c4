"""Every expression that cleaning looks for text with does what the examples beside it say."""

import importlib
import re

import pytest
import regex

MODULES = (
    "hfscale.cleaning.personal_data",
    "hfscale.cleaning.repair",
    "hfscale.data.web_pages",
    "hfscale.data.words",
)
EXPRESSIONS = [
    (module, name)
    for module in MODULES
    for name, value in vars(importlib.import_module(module)).items()
    if isinstance(value, re.Pattern | regex.Pattern)
]


@pytest.mark.parametrize(("module", "name"), EXPRESSIONS)
def test_an_expression_takes_what_its_examples_mark_and_nothing_else(module, name):
    expression = getattr(importlib.import_module(module), name)
    examples = getattr(importlib.import_module(module), f"{name}_EXAMPLES")
    for example in examples:
        text = example.replace("«", "").replace("»", "")
        assert mark(expression, text) == example
    assert any("«" in example for example in examples), "something that it takes"
    assert any("«" not in example for example in examples), "something that it must leave"


def mark(expression, text):
    """The text with «marks» around what the expression takes."""
    if isinstance(expression.pattern, bytes):
        return expression.sub("«\\g<0>»".encode(), text.encode()).decode()
    return expression.sub(r"«\g<0>»", text)
