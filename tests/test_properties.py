"""What holds for any input: drawn by hypothesis, the same examples in each run."""

import csv
import io
import json
import random
import string
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfscale.config import read_flags
from hfscale.data.files import KINDS, read_rows
from hfscale.data.layouts import IGNORED, best_fit
from hfscale.data.packing import pack_documents
from hfscale.data.readers import read_documents
from hfscale.data.tokenizer import train_bpe
from hfscale.metrics.code import run_program
from hfscale.options import convert, convert_text
from hfscale.process import InputError
from hfscale.strict_yaml import RefusedError, load_yaml

SAME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=40)
LINE = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1, max_size=40
).filter(str.strip)
NUMBERS = st.integers(-(10**12), 10**12) | st.just(10**400)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)

# ---- arguments


@SAME
@given(NUMBERS)
def test_whole_numbers_come_back(value):
    assert convert_text([str(value)], int) == value == convert(value, int)
    assert type(convert_text([str(value)], int | None)) is int
    if abs(value) <= 10**12:
        assert convert_text([str(value)], float) == float(value)
    for wrong in ("x", f"{value}.5", f"{value}x", f"[{value}]", "true"):
        with pytest.raises(ValueError):
            convert_text([wrong], int)


@SAME
@given(FLOATS)
def test_numbers_come_back(value):
    for text in (repr(value), json.dumps(value)):
        assert convert_text([text], float) == value
    assert convert(value, float) == value
    assert convert(yaml.safe_load(yaml.safe_dump(value)), float) == value


@SAME
@given(TEXT)
def test_text_comes_back_from_a_flag_from_json_and_from_yaml(text):
    if not _is_json(text):
        assert convert_text([text], str) == text
        assert read_flags(
            ["--name", text] if not text.startswith("--") else [f"--name={text}"], {"name": str}
        )
    assert convert(json.loads(json.dumps(text)), str) == text
    dumped = yaml.safe_dump({"name": text})
    assert load_yaml(dumped) == {"name": text}


def _is_json(text: str) -> bool:
    try:
        json.loads(text.lower() if text.lower() in ("true", "false", "null") else text)
    except ValueError:
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LINE, inner, max_size=4),
    max_leaves=12,
)


@SAME
@given(st.dictionaries(LINE, VALUES, min_size=1, max_size=4))
def test_mappings_come_back_from_json_and_from_yaml(mapping):
    assert convert_text([json.dumps(mapping)], dict) == mapping
    assert load_yaml(yaml.safe_dump(mapping)) == mapping


@SAME
@given(
    VALUES, st.sampled_from([int, float, bool, str, Literal["a", "b"], list[int], dict, int | None])
)
def test_a_value_is_of_its_type_or_refused(value, kind):
    try:
        converted = convert(value, kind)
    except ValueError:
        return
    origins = {list[int]: list, int | None: (int, NoneType), Literal["a", "b"]: str}
    assert isinstance(converted, origins.get(kind, kind))
    if kind in (int, list[int], int | None):
        items = converted if isinstance(converted, list) else [converted]
        assert not any(isinstance(item, bool) for item in items)


@SAME
@given(st.lists(st.text(string.printable, max_size=12), max_size=6))
def test_any_words_are_values_or_one_line(words):
    kinds: dict[str, Any] = {"a": int, "b": list[str], "c": dict, "d": bool, "e": float | None}
    try:
        read_flags(["--a", "1", *words], kinds)
    except InputError as error:
        assert "\n" not in str(error)


# ---- YAML


def test_any_bytes_are_yaml_or_refused():
    """Seeded fuzz: marks of YAML in any order, and configs with bytes changed."""
    draw = random.Random(0)
    marks = [
        "[",
        "]",
        "{",
        "}",
        ":",
        "- ",
        "\n",
        "  ",
        "&a ",
        "*a",
        "!!",
        "? ",
        "|",
        ">",
        "'",
        '"',
        "#",
    ]
    marks += ["a", "1", ",", "<<", "%", "@", "`", "\t", "---", "...", "\u2028", "\ufeff"]
    shipped = (
        Path(__file__).parents[1].joinpath("recipes/configs/pretrain/tiny_cpu.yaml").read_text()
    )
    for _ in range(600):
        text = "".join(draw.choices(marks, k=draw.randrange(1, 40)))
        if draw.random() < 0.3:
            changed = list(shipped)
            for _ in range(5):
                changed[draw.randrange(len(changed))] = draw.choice(marks)
            text = "".join(changed)
        try:
            load_yaml(text)
        except (yaml.YAMLError, RefusedError, ValueError):
            continue


# ---- readers


@SAME
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_texts_of_rows_come_back(tmp_path, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    _write(tmp_path / "a.jsonl", lines)
    _write(tmp_path / "a.json", json.dumps([{"text": text} for text in texts]))
    for name in ("a.jsonl", "a.json"):
        assert [row["text"] for _, row in read_rows(tmp_path / name)] == texts
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([["text", "n"], *([text, "1"] for text in texts)])
        _write(tmp_path / name, out.getvalue())
        assert [row["text"] for _, row in read_rows(tmp_path / name)] == texts


@SAME
@given(st.lists(LINE, min_size=1, max_size=6))
def test_lines_of_a_text_come_back(tmp_path, lines):
    _write(tmp_path / "a.txt", "\n".join(lines) + "\n")
    assert [row["text"] for row in _documents(tmp_path / "a.txt", "text", "line")] == lines
    [row] = _documents(tmp_path / "a.txt", "text", "document")
    assert row["text"].strip("\n") == "\n".join(lines)


def _documents(path: Path, kind: str, unit: str, on_error: str | None = None) -> list[dict]:
    return list(read_documents([str(path)], [], kind, unit, "text", on_error))


@SAME
@given(st.binary(max_size=60), st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "html"]))
def test_any_bytes_are_documents_or_one_line(tmp_path, data, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(data)
    for on_error in (None, "skip"):
        try:
            _documents(path, KINDS["." + ending], "document", on_error)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


# ---- packing


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(Dataset.from_dict({"text": ["the cat sat on the mat", "öäü 你好"]}), 280)


@settings(SAME, max_examples=25)
@given(
    st.lists(
        st.text("abc the ö你\n", min_size=1, max_size=60).filter(str.strip), min_size=1, max_size=6
    ),
    st.integers(2, 40),
    st.sampled_from(["wrapped", "bfd_split", "none"]),
)
def test_every_token_is_the_target_of_one_prediction(tokenizer, texts, max_length, packing):
    documents = Dataset.from_dict({"text": texts})
    rows = pack_documents(documents, tokenizer, max_length, packing=packing)
    eos = tokenizer.eos_token_id
    expected = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]
    ]
    targets = [label for row in rows for label in row["labels"][1:] if label != IGNORED]
    if packing == "wrapped":
        assert targets == expected
    assert sorted(targets) == sorted(expected)
    assert sum(rows["num_tokens"]) == len(expected)
    assert sum(rows["num_bytes"]) == sum(len(text.encode()) for text in texts)
    for row in rows:
        assert len(row["input_ids"]) <= max_length
        labels = np.array(row["labels"])
        scored = labels != IGNORED
        assert (labels[scored] == np.array(row["input_ids"])[scored]).all()


@SAME
@given(st.lists(st.integers(1, 20), max_size=30))
def test_best_fit_places_each_once(sizes):
    rows = best_fit(sizes, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= 20 for row in rows)


# ---- the sandbox

PROGRAMS = (
    "def f(:\n",
    "\x00",
    "print('x' * 10**7)",
    "raise SystemExit(0)",
    "import os; os._exit(0)",
    "import sys; sys.setrecursionlimit(10**9)\ndef g(): g()\ng()",
    "f = 'x' * 10**10",
    "\ufeffdef f(): return 2",
    "class f: __call__ = 1",
    "import sys; sys.stdout.close(); sys.stderr.close()",
    "del __builtins__",
)


@pytest.mark.slow
def test_no_program_breaks_the_sandbox_or_passes():
    draw = random.Random(0)
    random_texts = [draw.randbytes(draw.randrange(200)).decode("latin-1") for _ in range(8)]
    for program in (*PROGRAMS, *random_texts):
        outcome = run_program(program, "assert f() == 1", allow_code_execution=True, time_limit_s=5)
        assert not outcome.passed, program
        assert len(outcome.output) <= 2**22
