"""A small share of the harness: what a kill, damage, a disk, a clock, a rank or a signal does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.damage import DAMAGE
from tests.faults.__main__ import SHARES
from tests.faults.moments import moments_of, phase_of_file
from tests.faults.runs import ROOT, digest_of, whole_steps
from tests.faults.tables import table


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    place = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "tests.faults", "share", "--place", str(place)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (place / "faults.json").is_file(), done.stdout + done.stderr
    return json.loads((place / "faults.json").read_text())


@pytest.mark.slow(seconds=25)
@pytest.mark.needs("deepspeed")
@pytest.mark.parametrize("fault", SHARES)
def test_no_fault_loses_a_run_or_goes_unseen(rows, fault):
    engines, count = SHARES[fault]
    tried = [row for row in rows if row["fault"] == fault]
    assert len(tried) == count * len(engines)
    assert [row for row in tried if not row["good"]] == []


@pytest.mark.parametrize(
    ("operation", "path", "phase"),
    [
        ("read", "source", "data preparation"),
        ("write", "checkpoint-3/scheduler.pt", "first save"),
        ("mkdir", ".checkpoint-6.part", "later save"),
        ("read", "checkpoint-6/optimizer.pt", "hashing"),
        ("write", "checkpoint-6/.manifest.json.part", "manifest"),
        ("rename", "checkpoint-6", "rename"),
        ("remove", "checkpoint-3/optimizer.pt", "rotation"),
        ("write", "config.json", "final weights"),
        ("rename", "manifest.json", "final manifest"),
        ("write", ".run.json.part", "run.json"),
        ("trainer", "on_step_begin", None),
        ("fsync", "", None),
        ("mkdir", ".hfscale-trial", None),
    ],
)
def test_the_phase_of_a_file_operation(operation, path, phase):
    assert phase_of_file(operation, path) == phase


def test_what_tells_nothing_has_the_phase_of_what_was_before(tmp_path):
    record = tmp_path / "moments"
    operations = [
        ("fsync", "", "data preparation"),
        ("trainer", "on_step_begin", "training"),
        ("write", "checkpoint-3/scheduler.pt", "first save"),
        ("fsync", "", "training"),
        ("trainer", "on_train_end", "final evaluation"),
        ("trainer", "on_evaluate", "final evaluation"),
        ("write", "config.json", "final weights"),
        ("fsync", "", "final weights"),
        ("rename", ".run.json.part", "run.json"),
        ("fsync", "", "run.json"),
    ]
    lines = [json.dumps([0, at, *operation[:2], 1]) for at, operation in enumerate(operations)]
    record.write_text("\n".join(lines))
    assert [moment.phase for moment in moments_of(record)] == [one[2] for one in operations]


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"12345678")
    files = {"weights": {"bytes": 8, "sha256": digest_of(checkpoint / "weights")}}
    (checkpoint / "manifest.json").write_text(json.dumps({"files": files}))
    return checkpoint


@pytest.mark.parametrize("damage", DAMAGE.values())
@pytest.mark.parametrize("name", ["weights", "manifest.json"])
def test_the_judge_sees_damage(tmp_path, damage, name):
    make_checkpoint(tmp_path, 3)
    damage(make_checkpoint(tmp_path, 6) / name)
    assert whole_steps(tmp_path) == [3]


def test_the_table_counts_and_marks_what_must_not_be():
    row = {"fault": "kills", "recipe": "pretrain", "engine": "cpu", "what": "rename"}
    good = row | {"result": "equal", "good": True}
    bad = row | {"result": "lost", "good": False}
    lines = [line.split() for line in table([good, bad, good]).splitlines()]
    assert lines == [
        ["fault", "recipe", "engine", "what", "tried", "!lost", "equal"],
        ["kills", "pretrain", "cpu", "rename", "3", "1", "2"],
        ["all", "3", "1", "2"],
    ]
