"""The table of runs."""

import json
import os

import pytest

from hfscale.process import InputError
from hfscale.report.run_list import find_runs, shown_columns, sorted_runs

RECORD = {
    "recipe": "pretrain",
    "model": {"architecture": "GPT2LMHeadModel", "parameters": 1000},
    "train": {"steps": 7, "tokens": 448, "seconds": 12.4},
}


def make_run(folder, minute, **metrics):
    folder.mkdir(parents=True)
    path = folder / "run.json"
    path.write_text(json.dumps(RECORD | {"metrics": metrics}))
    os.utime(path, (60 * minute, 60 * minute))


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "old", 1, eval_loss=2.0, eval_runtime=3.0, eval_bleu=10.0)
    make_run(tmp_path / "deep" / "er" / "new", 3, eval_loss=1.5, before_eval_loss=9.0)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"recipe": ')
    os.utime(broken / "run.json", (0, 0))
    for step in (5, 10):
        checkpoint = tmp_path / "going" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
    os.utime(tmp_path / "going", (120, 120))
    return tmp_path


def names(records):
    return [os.path.basename(record["folder"]) for record in records]


def test_the_newest_comes_first_with_what_it_measured(runs):
    records = find_runs(str(runs))
    assert names(records) == ["new", "going", "old", "broken"]
    assert records[0] == {
        "folder": str(runs / "deep" / "er" / "new"),
        "written": "1970-01-01 00:03",
        "recipe": "pretrain",
        "model": "GPT2LMHeadModel",
        "parameters": 1000,
        "steps": 7,
        "tokens": 448,
        "seconds": 12,
        "eval_loss": 1.5,
    }
    assert (records[1]["recipe"], records[1]["steps"]) == ("not finished", 10)
    assert records[2]["eval_bleu"] == 10.0 and "eval_runtime" not in records[2]
    assert records[3]["recipe"] == "run.json cannot be read"


def test_they_are_sorted_by_a_column_and_those_without_it_are_last(runs):
    records = find_runs(str(runs))
    assert names(sorted_runs(records, "eval_loss")) == ["new", "old", "going", "broken"]
    assert names(sorted_runs(records, "-eval_loss")) == ["old", "new", "going", "broken"]
    with pytest.raises(InputError, match="did you mean eval_loss"):
        sorted_runs(records, "eval_los")


def test_the_table_names_folders_as_seen_from_the_one_that_is_searched(runs):
    first, *_ = shown_columns(find_runs(str(runs)), str(runs), "-tokens")
    assert first["folder"] == os.path.join("deep", "er", "new")
    assert "tokens" in first and "model" not in first


def test_a_place_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        find_runs(str(tmp_path))
    with pytest.raises(InputError, match="is no folder"):
        find_runs(str(tmp_path / "nowhere"))
