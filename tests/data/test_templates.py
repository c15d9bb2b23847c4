"""Templates: which braces stand for columns of any name, what is read from a row, and what text it
becomes.
"""

import pytest

from hfscale.data.templates import as_text, fill_template, read_column, template_columns


@pytest.mark.parametrize(
    "template, columns, names",
    [
        ("{q} and {q} {a.b}", ["q", "a"], ["q", "a.b"]),
        (
            "{Question Text}: {label-id} {No.}",
            ["Question Text", "label-id", "No."],
            ["Question Text", "label-id", "No."],
        ),
        ("{0} {größe} {質問}", ["0", "größe", "質問"], ["0", "größe", "質問"]),
        (
            "{unknown}",
            ["q"],
            ["unknown"],
        ),  # a plain name always is one: what reads the row says that it is missing
        (
            "{Question text}",
            ["Question Text"],
            ["Question text"],
        ),  # nearly one: not text without a word
        ("{price:.2f} {price!r}", ["price"], ["price:.2f", "price!r"]),
        ('{}, {...}, {return x;}, {"label": 1}, {a: {q}}', ["q", "label"], ["q"]),
        ('{"answer": "{a}"}', ["a"], ["a"]),
    ],
)
def test_braces_stand_for_columns_or_for_themselves(template, columns, names):
    assert template_columns(template, columns) == names


@pytest.mark.parametrize(
    "name, value",
    [
        ("a", 1),
        ("a.b", "dotted"),
        ("c.d", 2),
        ("c.e.f", [3]),
        ("l.0", "x"),
        ("l.1", "y"),
        ("r.text", ["s", "t"]),
        ("r.1.text", "t"),
        ("c d", 4),
        ("m.n.o", 5),
        ("none", None),
    ],
)
def test_reads_columns_and_what_is_inside_them(name, value):
    row = {
        "a": 1,
        "a.b": "dotted",
        "c": {"d": 2, "e": {"f": [3]}},
        "l": ["x", "y"],
        "c d": 4,
        "none": None,
        "r": [{"text": "s"}, {"text": "t"}],
        "m.n": {"o": 5},
    }
    assert read_column(row, name) == value


@pytest.mark.parametrize("name", ["b", "a.x", "c.x", "c.d.x", "l.2", "l.x", "r.x", ""])
def test_what_is_not_there_is_a_key_error(name):
    row = {"a": 1, "c": {"d": 2}, "l": ["x", "y"], "r": [{"text": "s"}]}
    with pytest.raises(KeyError):
        read_column(row, name)


def test_values_become_text():
    assert [as_text(value) for value in ("x", 1, 2.5, True, None, ["a", 1, None], [])] == [
        "x",
        "1",
        "2.5",
        "True",
        "",
        "a 1 ",
        "",
    ]
    assert as_text(["a", "b"], joint="\n") == "a\nb"
    with pytest.raises(TypeError, match=r"named values \(text, start\)"):
        as_text({"text": "x", "start": 1})
    with pytest.raises(TypeError, match="holds a list where text"):
        as_text([["x"]])


def test_only_the_given_columns_are_filled_and_their_text_is_left_alone():
    assert fill_template('{"q": "{q}"} {x} {}', {"q": "{x} {q}"}) == '{"q": "{x} {q}"} {x} {}'
