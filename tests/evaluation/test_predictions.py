"""Saved predictions: what is wrong in a file is named with its line."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from hfscale.evaluation.predictions import read_predictions
from hfscale.process import InputError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ('{"prediction": 3, "reference": "a"}', ":1: prediction is 3, expected a text"),
        ('{"prediction": null, "reference": "a"}', ":1: prediction is None, expected a text"),
        ('{"prediction": ["a"], "reference": "a"}', ":1: prediction is .*, expected a text"),
        (
            '{"reference": "a"}',
            ":1: expected JSON with the texts prediction and reference, .* it has reference",
        ),
        ('{"prediction": "a"}', ":1: expected JSON with .* it has prediction"),
        ('{"prediction": "a", "references": null}', ":1: expected JSON with"),
        ('{"prediction": "a", "reference": "b"}\n\n{"prediction": "a"}', ":3: expected JSON with"),
        ('{"prediction": "a", "reference": null}', ":1: reference is None, expected a text"),
        ('{"prediction": "a", "reference": 1}', ":1: reference is 1, expected a text"),
        (
            '{"prediction": "a", "references": "b"}',
            ":1: references is b, expected a list of one or more texts",
        ),
        ('{"prediction": "a", "references": []}', r":1: references is \[\], expected a list"),
        ('{"prediction": "a", "references": ["b", 3]}', ":1: references is .*, expected a list"),
        (
            '{"prediction": "a", "references": {"text": "b"}}',
            ":1: references is .*, expected a list",
        ),
        ('{"prediction": "a", "reference": "b"', ":1: not JSON"),
        ('{"prediction": "a", "reference": "b"}\n[1]', ":2: holds"),
        ('{"prediction": "a", "reference": "b"}\n3', ":2: holds"),
        (
            '{"prediction": "\\ud800", "reference": "b"}',
            r":1: \\ud800 is half a character; mend or remove the row",
        ),
        ("", "no rows in it; expected JSON with"),
        ("\n \n", "no rows in it; expected JSON with"),
        ("prediction,reference\na,b", ":1: not JSON"),
    ],
)
def test_malformed_predictions_are_named_with_file_and_line(rows, match):
    Path("p.jsonl").write_text(rows + "\n")
    with pytest.raises(
        InputError, match=r"p\.jsonl" + (match if match[0] == ":" else f": {match}")
    ) as error:
        read_predictions("p.jsonl", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            b'{"prediction": "a", "reference": "b"}\n{"prediction": "\xff", "reference": "b"}\n',
            r"p\.jsonl:2: .*UTF-8",
        ),
        (b"\x1f\x8b\x08\x00broken", r"p\.jsonl"),
        (b"\0\0\0", r"p\.jsonl"),
    ],
)
def test_bytes_that_are_no_text(data, match):
    Path("p.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=match) as error:
        read_predictions("p.jsonl", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["missing.jsonl", "folder", "p.jsonl.gz"])
def test_files_that_cannot_be_read(path):
    Path("folder").mkdir()
    Path("p.jsonl.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=path):
        read_predictions(path, None)


def test_predictions_in_other_forms_and_with_a_tasks_references():
    write(
        "p.jsonl",
        [{"prediction": "a", "reference": "b"}, {"prediction": "", "references": ["c", "d"]}],
    )
    assert read_predictions("p.jsonl", None) == (
        ["a", ""],
        [["b"], ["c", "d"]],
        ["p.jsonl:1", "p.jsonl:2"],
    )
    Path("p.csv").write_text("prediction,reference\na,b\n")
    assert read_predictions("p.csv", None) == (["a"], [["b"]], ["p.csv:2"])
    examples = Dataset.from_dict({"references": [[f"{i}", "x"] for i in range(60)]})
    write("bare.jsonl", [{"prediction": str(i)} for i in range(60)])
    predictions, references, _ = read_predictions("bare.jsonl", examples)
    assert references == examples["references"][:] and predictions[59] == "59"
    write("bare.jsonl", [{"prediction": "x"}] * 59)
    with pytest.raises(InputError, match="bare.jsonl: 59 lines for 60 examples of the task"):
        read_predictions("bare.jsonl", examples)
