"""Whether a comparison of models says what another seed would give."""

import json
import statistics

import pytest

from hfscale.evaluation.scores import System
from hfscale.evaluation.seed_notes import UNKNOWN, add_seed_noise
from hfscale.report.seed_noise import single_reach
from tests.report.test_seed_noise import write_run

A = {"a0": 5.0, "a1": 5.02, "a2": 5.01}
TEXT = "ab12"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, (name, loss) in enumerate(A.items()):
        write_run(tmp_path / name, seed, loss)
    write_run(tmp_path / "b", 0, 4.0, rate=2e-3)
    return tmp_path


def compared(first: str, second: str, difference: float, *, metric="loss", text=TEXT, scored=()):
    systems = [System(name, {"model": {}}, metrics={metric: value}) for name, value in scored]
    systems += [System(name, {"model": {}}) for name in (first, second) if name not in dict(scored)]
    [comparison] = comparisons = [
        {"metric": f"eval_{metric}", "first": first, "second": second, "difference": difference}
    ]
    add_seed_noise(comparisons, systems, text)
    return comparison


def test_runs_beside_a_model_tell_the_noise_of_the_text_that_they_held_out(place):
    reach = single_reach([list(A.values())]).reach
    found = compared("b", "a0", 0.9 * reach)
    assert found["seed_noise"] == pytest.approx(statistics.stdev(A.values()))
    assert found["seeds"] == 3 and found["seed_note"].startswith("no more than another seed would")
    assert compared("b", "a0", -1.1 * reach)["seed_note"].startswith("more than another seed would")
    # Neither of another text, nor of what they did not measure, nor of a checkpoint.
    assert compared("b", "a0", 0.1, text="ef34")["seed_note"] == UNKNOWN
    assert compared("b", "a0", 0.1, metric="accuracy")["seed_note"] == UNKNOWN
    (place / "a0" / "chck_1M").mkdir()
    assert compared("b", "a0/chck_1M", 0.1)["seed_note"] == UNKNOWN
    assert compared("b", "gpt2", 0.1)["seed_noise"] is None


def test_models_that_are_scored_together_tell_it_of_any_metric(place):
    values = {"a0": 0.61, "a1": 0.65, "b": 0.9}
    found = compared("b", "a0", 0.29, metric="accuracy", scored=list(values.items()))
    assert found["seed_noise"] == pytest.approx(statistics.stdev([0.61, 0.65]))
    assert found["seeds"] == 2 and "over 2 seeds)" in found["seed_note"]
    same = compared("a0", "a1", 0.04, metric="accuracy", scored=list(values.items()))
    assert same["seeds"] == 2 and same["seed_note"].startswith("no more than another seed")


def test_saved_predictions_have_no_seed(place):
    comparison = {"metric": "eval_bleu", "first": "a", "second": "b", "difference": 1.0}
    add_seed_noise([comparison], [System("a", {}), System("b", {})], TEXT)
    assert json.dumps(comparison).count("seed") == 0
