"""Signals in evaluations, full disks and trackers that fail: a training ends, or goes on, in a right
state.
"""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from hfscale.process import InputError
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.room import saved_bytes
from hfscale.training.running import prepare_output_dir, run_training
from tests.tiny_runs import tiny_trainer


@pytest.fixture
def make(tmp_path):
    """Trainers of one small run, which is evaluated before each save."""

    def make_trainer(name, *callbacks, **values):
        settings = {
            "save_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "metric_for_best_model": "eval_loss",
            **values,
        }
        return tiny_trainer(tmp_path / name, callbacks, **settings)

    return make_trainer


class TermInEvaluation(TrainerCallback):
    """Sends SIGTERM in the evaluation after a step."""

    def __init__(self, step):
        self.step = step
        self.batches = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.batches += 1
            os.kill(os.getpid(), signal.SIGTERM)


def evaluations(trainer):
    return {
        log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log
    }


@pytest.mark.parametrize(
    ("step", "values"),
    [
        (2, {}),
        (4, {"load_best_model_at_end": True}),
        (6, {"save_strategy": "best", "load_best_model_at_end": True}),
    ],
)
def test_an_evaluation_that_was_broken_off_is_made_up_for(make, capsys, step, values):
    whole = make("whole", **values)
    run_training(whole, None)
    term = TermInEvaluation(step)
    broken_off = make("run", term, **values)
    with pytest.raises(SystemExit) as stop:
        run_training(broken_off, None)
    assert (stop.value.code, term.batches) == (143, 1)
    assert (
        f"stopped by SIGTERM in the evaluation after step {step}; a checkpoint is saved, --resume "
        "auto goes on with this evaluation\n"
    ) in capsys.readouterr().err
    again = make("run", **values)
    checkpoint = newest_checkpoint(again.args)
    assert checkpoint.endswith(f"checkpoint-{step}")
    run_training(again, checkpoint)
    assert evaluations(again) == evaluations(whole)
    assert again.state.best_metric == whole.state.best_metric
    assert again.state.best_global_step == whole.state.best_global_step
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_saved_of_a_run_that_was_stopped_before_its_first_step(make, capsys, tmp_path):
    trainer = make("run", TermInEvaluation(0), eval_on_start=True)
    with pytest.raises(SystemExit) as stop:
        run_training(trainer, None)
    assert stop.value.code == 143
    says = "in the evaluation before the first step; nothing was trained yet, the same command"
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_full_disk_ends_in_one_line_with_the_checkpoint_before(make, capsys, tmp_path):
    trainer = make("run", eval_strategy="no", save_steps=2, metric_for_best_model=None)

    class FullAt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                trainer._save_optimizer_and_scheduler = self.fail

        def fail(self, folder):
            raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0")

    trainer.add_callback(FullAt())
    with pytest.raises(SystemExit) as stop:
        run_training(trainer, None)
    assert stop.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "No space left on device" in line and "checkpoint-2 is kept" in line
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_run_whose_first_checkpoint_does_not_fit_is_refused(make, monkeypatch, capsys, tmp_path):
    trainer = make("run", save_steps=1)
    checkpoint, model = saved_bytes(trainer)
    assert checkpoint == 3 * model  # AdamW's two numbers beside each weight
    room = SimpleNamespace(free=checkpoint + model - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    with pytest.raises(InputError, match=rf"\({room.free:,} bytes\) are free.*{room.free + 1:,}"):
        prepare_output_dir(trainer, overwrite=False)
    assert not (tmp_path / "run").exists()
    room.free += 1
    trainer = make("run", save_steps=1)
    prepare_output_dir(trainer, overwrite=False)
    assert "all checkpoints will take" in capsys.readouterr().err
    room.free = 6 * checkpoint + model
    prepare_output_dir(trainer, overwrite=False)
    assert capsys.readouterr().err == ""


def test_a_tracker_that_cannot_write_ends_no_training(make, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardCallback, "on_log", fail)
    trainer = make("run", report_to="tensorboard")
    run_training(trainer, None)
    assert trainer.state.global_step == 6
    says = "TensorBoardCallback: [Errno 28] No space left on device; it logs no more"
    assert capsys.readouterr().err.count(says) == 1


def test_the_checkpoint_of_a_broken_off_evaluation_says_so(make, tmp_path):
    """By what upstream keeps of its own: see `MissedEvaluation`."""
    with pytest.raises(SystemExit):
        run_training(make("run", TermInEvaluation(4)), None)
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["TrainerControl"]["args"]["should_evaluate"]
    run_training(make("whole"), None)
    state = json.loads((tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").read_text())
    assert not state["stateful_callbacks"]["TrainerControl"]["args"]["should_evaluate"]
