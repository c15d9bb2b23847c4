"""Preparation stages: what goes in equals what comes out plus what the ledger says was dropped."""

import json

import numpy as np
import pytest
from datasets import Dataset

from hfscale.cleaning.rules import Advice
from hfscale.cleaning.stages import (
    Ledger,
    draw_splits,
    drop_broken,
    keep_first,
    num_bytes,
    rewrite_texts,
)
from hfscale.process import InputError

TEXTS = ["one", "two words", "ünïcode text", "gone", "two words", "last of all"]


@pytest.fixture
def documents():
    return Dataset.from_dict({"text": TEXTS, "id": list(range(10, 16))})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "dropped.jsonl")


def dropped(ledger):
    return [json.loads(line) for line in ledger.dropped_file.read_text("utf-8").splitlines()]


def test_rewriting_counts_and_drops_what_became_empty(documents, ledger):
    after = rewrite_texts(
        documents,
        "mask",
        lambda t: (t.replace("gone", "").replace("two", "2"), {"twos": t.count("two")}),
        ledger,
        None,
    )
    assert after["text"][:] == ["one", "2 words", "ünïcode text", "2 words", "last of all"]
    assert after["id"][:] == [10, 11, 12, 14, 15]
    assert ledger.stages == [
        {
            "stage": "mask",
            "documents_in": 6,
            "documents_out": 5,
            "bytes_in": num_bytes(documents),
            "bytes_out": num_bytes(after),
            "changed": 3,
            "twos": 2,
        }
    ]
    assert dropped(ledger) == [
        {"id": 13, "stage": "mask", "rule": "empty", "value": 0, "text_begins": "gone"}
    ]


def test_dropping_keeps_rule_and_value(documents, ledger):
    after = drop_broken(
        documents, "quality", lambda t: None if len(t) > 4 else ("min_length", len(t)), ledger, None
    )
    assert after["id"][:] == [11, 12, 14, 15]
    assert [(d["id"], d["value"]) for d in dropped(ledger)] == [(10, 3), (13, 4)]
    assert ledger.stages[0]["rules"] == {"min_length": 2}


def test_workers_change_nothing(documents, ledger, tmp_path):
    other = Ledger(tmp_path / "other.jsonl")
    one = drop_broken(documents, "q", lambda t: None if "w" in t else ("no w", 0), ledger, None)
    two = drop_broken(documents, "q", lambda t: None if "w" in t else ("no w", 0), other, 2)
    assert one["text"][:] == two["text"][:] and dropped(ledger) == dropped(other)


def test_keep_first_of_each_cluster(documents, ledger):
    after = keep_first(documents, "exact", np.array([0, 1, 2, 3, 1, 5]), ledger)
    assert after["id"][:] == [10, 11, 12, 13, 15]
    assert [(d["id"], d["value"]) for d in dropped(ledger)] == [(14, 11)]
    assert ledger.stages[0]["clusters"] == 1
    assert ledger.stages[0]["largest"] == [{"id": 11, "documents": 2, "text_begins": "two words"}]


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"),
    [
        (13, (0.02, 0), {"validation": 1, "train": 12}),
        (13, (0.02, 0.02), {"test": 1, "validation": 1, "train": 11}),
        (2, (0.02, 0.02), {"validation": 1, "train": 1}),
        (1, (0.02, 0.02), {"train": 1}),
        (13, (0, 0), {"train": 13}),
        (2, (0.9, 0), {"validation": 1, "train": 1}),
        (0, (0.02, 0), {}),
        (49, (0.02, 0), {"validation": 1, "train": 48}),
        (100, (0.02, 0), {"validation": 2, "train": 98}),
    ],
)
def test_each_split_that_is_asked_for_gets_a_document_as_long_as_one_is_left_to_train_on(
    count, fractions, sizes
):
    documents = Dataset.from_dict({"text": [str(i) for i in range(count)]})
    parts = draw_splits(
        documents, validation_fraction=fractions[0], test_fraction=fractions[1], seed=1
    )
    assert {name: len(part) for name, part in parts.items()} == sizes


def test_notes_stand_by_what_was_counted(documents, tmp_path):
    advice = [
        Advice(("min_a", "min_b"), "mend a or b"),
        Advice(("pages",), "mend the pages"),
        Advice(("changed",), "none changed"),
        Advice((), "a rule is off"),
    ]
    ledger = Ledger(tmp_path / "dropped.jsonl", advice=advice)
    ledger.add("source", documents, documents, pages=2)
    rewrite_texts(documents, "repair", lambda text: (text, {}), ledger, None)
    assert ledger.notes() == ["mend the pages", "a rule is off"]
    drop_broken(
        documents, "quality", lambda t: None if len(t) > 4 else ("min_b", len(t)), ledger, None
    )
    assert ledger.notes() == ["mend a or b", "mend the pages", "a rule is off"]
    says = r'after the stage .all. .*"min_c": 6.*\); loosen the rule .*; mend a or b; mend the pages; a rule is off$'
    with pytest.raises(InputError, match=says):
        drop_broken(documents, "all", lambda text: ("min_c", 0), ledger, None)


def test_split_is_a_partition():
    documents = Dataset.from_dict({"text": [str(i) for i in range(400)], "id": list(range(400))})
    parts = draw_splits(documents, validation_fraction=0.1, test_fraction=0.05, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {
        "test": 20,
        "validation": 40,
        "train": 340,
    }
    assert sorted(i for part in parts.values() for i in part["id"]) == list(range(400))
    assert all(sorted(part["id"]) == part["id"][:] for part in parts.values())
    again = draw_splits(documents, validation_fraction=0.1, test_fraction=0.05, seed=1)
    assert again["test"]["id"][:] == parts["test"]["id"][:]
