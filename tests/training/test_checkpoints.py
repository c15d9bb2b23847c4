"""Run folder and resume: only whole checkpoints count, and a continued run equals one that was
never stopped.
"""

import contextlib
import json
import os
import shutil
import signal
import time

import pytest
import torch
from transformers import TrainerCallback

from hfscale.folders import check_output_dir, clear_output_dir
from hfscale.lock import LOCK
from hfscale.process import InputError
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.convert import convert_checkpoint
from hfscale.training.running import run_training
from tests.tiny_runs import copied_run, finished_run, losses, tiny_arguments, tiny_trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "whole")


def test_resume_equals_no_pause(finished, tmp_path):
    folder = copied_run(finished, tmp_path / "run")
    for step in (4, 6):  # as if the run had died after step 3
        for path in sorted((folder / f"checkpoint-{step}").rglob("*"), reverse=True):
            path.unlink()
        (folder / f"checkpoint-{step}").rmdir()
    trainer = tiny_trainer(folder)
    checkpoint = newest_checkpoint(trainer.args)
    assert checkpoint.endswith("checkpoint-2")
    run_training(trainer, checkpoint)
    assert losses(trainer) == losses(finished)
    for a, b in zip(trainer.model.parameters(), finished.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("schedule", "numbers"),
    [("warmup_stable_decay", {"num_decay_steps": 2}), ("cosine_with_min_lr", {"min_lr": 1e-3})],
)
def test_a_schedule_goes_on_where_it_was(tmp_path, schedule, numbers):
    values = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": numbers, "warmup_steps": 1}
    whole = finished_run(tmp_path / "whole", **values)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    trainer = tiny_trainer(tmp_path / "run", **values)
    run_training(trainer, newest_checkpoint(trainer.args))
    for a, b in zip(trainer.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    rates, rates_of_whole = (
        {log["step"]: log["learning_rate"] for log in run.state.log_history if "loss" in log}
        for run in (trainer, whole)
    )
    assert rates == rates_of_whole
    # The rate of a step is logged as it was before it.
    assert max(rates.values()) == rates[2] == 1e-2 and rates[6] < rates[5]


@pytest.mark.parametrize(
    "damage",
    ["cut weights", "flip weights", "no optimizer", "no scheduler", "no manifest", "empty"],
)
def test_a_broken_checkpoint_is_passed_over_with_a_reason(finished, tmp_path, capsys, damage):
    folder = copied_run(finished, tmp_path / "run")
    newest = folder / "checkpoint-6"
    weights = newest / "model.safetensors"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "flip weights":
        data = bytearray(weights.read_bytes())
        data[-4:] = b"\xff\xff\x7f\x7f"
        weights.write_bytes(bytes(data))
    elif damage == "empty":
        for path in newest.iterdir():
            path.unlink()
    else:
        (
            newest
            / {
                "no optimizer": "optimizer.pt",
                "no scheduler": "scheduler.pt",
                "no manifest": "manifest.json",
            }[damage]
        ).unlink()
    assert newest_checkpoint(tiny_arguments(folder)).endswith("checkpoint-4")
    assert "checkpoint-6 is not whole" in capsys.readouterr().err


def test_changed_settings_are_refused(finished, tmp_path):
    folder = copied_run(finished, tmp_path / "run")
    with pytest.raises(InputError, match="learning_rate was 0.01, is 0.005"):
        newest_checkpoint(tiny_arguments(folder, learning_rate=5e-3))
    with pytest.raises(InputError, match="global_batch_size was 4, is 8"):
        newest_checkpoint(tiny_arguments(folder, per_device_train_batch_size=8))
    same = tiny_arguments(
        folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=5
    )
    assert newest_checkpoint(same).endswith("checkpoint-6")


def test_a_checkpoint_in_the_form_of_another_engine(finished, tmp_path, monkeypatch):
    """FSDP's names in place of numbers; the launched runs of test_equivalence.py read it."""
    folder = copied_run(finished, tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert newest_checkpoint(tiny_arguments(folder)) == str(folder / "resuming")
    optimizer = torch.load(folder / "resuming" / "optimizer.bin")
    weights = torch.load(folder / "resuming" / "pytorch_model_fsdp.bin")
    assert set(os.listdir(folder / "resuming")) == {
        "optimizer.bin",
        "pytorch_model_fsdp.bin",
        "trainer_state.json",
        "scheduler.pt",
        "rng_state.pth",
    }
    model, inner = finished.model, finished.optimizer.optimizer
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer["state"][name][key], inner.state[parameter][key])
    for there, group in zip(optimizer["param_groups"], inner.param_groups, strict=True):
        assert [
            dict(model.named_parameters())[name] is p
            for name, p in zip(there["params"], group["params"], strict=True)
        ] == [True] * len(group["params"])
        assert there["weight_decay"] == group["weight_decay"]


def test_a_rewritten_checkpoint_is_none_of_the_run(finished, tmp_path, monkeypatch):
    """It is deleted by the next start, which may come because this one was broken off."""
    folder = copied_run(finished, tmp_path / "run")
    with monkeypatch.context() as fsdp:
        fsdp.setenv("ACCELERATE_USE_FSDP", "true")
        newest_checkpoint(tiny_arguments(folder))
    assert newest_checkpoint(tiny_arguments(folder)) == str(folder / "checkpoint-6")
    assert not (folder / "resuming").exists()


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ({"optim": "adamw_torch_8bit"}, "AdamW's state alone"),
        ({"fp16": True}, "loss scale of fp16"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
        ("adapter_model.safetensors", "an adapter"),
        ("old", "does not name the parameters"),
    ],
)
def test_what_another_engine_cannot_go_on_from(finished, tmp_path, obstacle, reason):
    folder = copied_run(finished, tmp_path / "run")
    args, record = (
        tiny_arguments(folder),
        json.loads((folder / "checkpoint-6" / "manifest.json").read_text()),
    )
    if isinstance(obstacle, dict):  # set later: fp16 is refused on a CPU
        vars(args).update(obstacle)
    elif obstacle == "old":
        del record["parameters"]
    else:
        (folder / "checkpoint-6" / obstacle).touch()
    with pytest.raises(
        InputError,
        match=f"of one process or DDP and cannot go on under FSDP: .*{reason}.*; launch as "
        "before, or start from its weights: hfscale finetune --model .*checkpoint-6",
    ):
        convert_checkpoint(folder / "checkpoint-6", record, "FSDP", args)
    assert not (folder / "resuming").exists()


def test_nothing_to_resume_starts_anew(tmp_path, capsys):
    assert newest_checkpoint(tiny_arguments(tmp_path / "none")) is None
    assert "starting anew" in capsys.readouterr().err


def test_output_dir_of_another_run(finished, tmp_path):
    folder = copied_run(finished, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run; --resume auto"):
        check_output_dir(str(folder), resume=None, overwrite=False)
    check_output_dir(str(folder), resume="auto", overwrite=False)
    check_output_dir(str(folder), resume=None, overwrite=True)
    clear_output_dir(str(folder), overwrite=True)
    assert os.listdir(folder) == [LOCK]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(InputError, match="no training run"):
        check_output_dir(str(tmp_path / "thesis"), resume=None, overwrite=True)
    with pytest.raises(InputError, match="no run wrote chapter.tex"):
        clear_output_dir(str(tmp_path / "thesis"), overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


class TermAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("can_resume", "says"),
    [
        (True, "stopped by SIGTERM after step 3; a checkpoint is saved, --resume auto goes on\n"),
        (False, "stopped by SIGTERM after step 3; a checkpoint is saved: {folder}/checkpoint-3\n"),
    ],
)
def test_sigterm_promises_resume_only_where_it_is(tmp_path, capsys, can_resume, says):
    trainer = tiny_trainer(tmp_path / "run", callbacks=[TermAt(2)])
    with pytest.raises(SystemExit):
        run_training(trainer, None, can_resume=can_resume)
    assert says.format(folder=tmp_path / "run") in capsys.readouterr().err


def test_sigterm_saves_whole_checkpoint_and_resume_is_exact(finished, tmp_path):
    trainer = tiny_trainer(tmp_path / "run", callbacks=[TermAt(2)])
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run_training(trainer, None)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == previous
    again = tiny_trainer(tmp_path / "run")
    checkpoint = newest_checkpoint(again.args)
    assert checkpoint.endswith("checkpoint-3")
    run_training(again, checkpoint)
    assert losses(again) == losses(finished)


class ForkAt(TrainerCallback):
    """Forks a worker that sleeps, ends it by SIGTERM, and keeps how it ended."""

    def on_step_begin(self, args, state, control, **kwargs):
        ready, started = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.write(started, b"1")  # Python drops signals that come while it forks
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        os.kill(worker, signal.SIGTERM)
        self.ended_by = os.WTERMSIG(os.waitpid(worker, 0)[1])
        control.should_training_stop = True


def test_sigterm_ends_forked_workers(tmp_path):
    """Pools end theirs so, and wait for them."""
    fork = ForkAt()
    run_training(tiny_trainer(tmp_path / "run", callbacks=[fork]), None)
    assert fork.ended_by == signal.SIGTERM


class FailAt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        raise FloatingPointError("a step fails")


def test_a_failed_training_gives_the_signal_back(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", callbacks=[FailAt()])
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FloatingPointError):
        run_training(trainer, None)
    assert signal.getsignal(signal.SIGTERM) == previous


def test_manifest_lists_every_file(finished):
    folder = finished.args.output_dir + "/checkpoint-6"
    files = json.load(open(folder + "/manifest.json"))["files"]
    assert set(files) == set(os.listdir(folder)) - {"manifest.json"}
    assert {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } <= set(files)


# ---- what is saved is safe before anything older goes


def test_a_run_without_a_step_left_trains_none(finished, tmp_path):
    """Killed between its last checkpoint and its record: as often as it is resumed."""
    folder = copied_run(finished, tmp_path / "run")
    for _ in range(2):
        again = tiny_trainer(folder)
        run_training(again, newest_checkpoint(again.args))
        assert again.state.global_step == 6
        for a, b in zip(again.model.parameters(), finished.model.parameters(), strict=True):
            assert torch.equal(a, b)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]


def test_rotation_goes_by_step_not_by_time(tmp_path):
    """After a clock was set back, or a folder was copied or touched."""
    settings = {"save_total_limit": 2, "lr_scheduler_type": "constant"}
    trainer = tiny_trainer(tmp_path / "run", max_steps=4, **settings)
    run_training(trainer, None)
    os.utime(tmp_path / "run" / "checkpoint-2", (2**32, 2**32))
    os.utime(tmp_path / "run" / "checkpoint-4", (1, 1))
    again = tiny_trainer(tmp_path / "run", **settings)
    run_training(again, newest_checkpoint(again.args))
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"files": {}}', '{"files": 3}', "{"])
def test_a_manifest_that_is_none_is_passed_over(finished, tmp_path, capsys, content):
    folder = copied_run(finished, tmp_path / "run")
    (folder / "checkpoint-6" / "manifest.json").write_text(content)
    (folder / "checkpoint-²").mkdir()  # a digit to Python, and no number
    assert newest_checkpoint(tiny_arguments(folder)).endswith("checkpoint-4")
    assert "checkpoint-6 is not whole" in capsys.readouterr().err


class Spoil(TrainerCallback):
    """Puts a number into the gradients, or the weights, of step 3."""

    def __init__(self, what, value):
        self.what, self.value = what, value

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        parameter = next(model.parameters())
        if state.global_step == 2 and self.what == "gradient":
            parameter.register_hook(lambda gradient: gradient.fill_(self.value))

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2 and self.what == "weight":
            next(model.parameters()).data[0, 0] = self.value


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_gradients_that_are_not_finite_reach_no_weight(tmp_path, value, max_grad_norm):
    trainer = tiny_trainer(
        tmp_path / "run",
        [Spoil("gradient", value)],
        save_total_limit=1,
        max_grad_norm=max_grad_norm,
    )
    with pytest.raises(
        FloatingPointError,
        match="gradients became (inf|nan) at step 3; .* are in .*/run/checkpoint-2$",
    ):
        run_training(trainer, None)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    assert newest_checkpoint(trainer.args).endswith("checkpoint-2")


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path):
    """... and rotate no good one away."""
    spoil = Spoil("weight", float("inf"))
    trainer = tiny_trainer(tmp_path / "run", [spoil], save_total_limit=1, save_steps=1)
    with pytest.raises(
        FloatingPointError, match="wte.weight is not finite at step 3 .*/run/checkpoint-2$"
    ):
        run_training(trainer, None)
    assert newest_checkpoint(trainer.args).endswith("checkpoint-2")
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint-2"]  # nothing was written


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    previous = os.umask(0o027)
    try:
        run_training(tiny_trainer(tmp_path / "run", max_steps=2), None)
    finally:
        os.umask(previous)
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in (tmp_path / "run" / "checkpoint-2").iterdir()
    }
    assert modes["model.safetensors"] == 0o640 and set(modes.values()) == {0o640}


class SignalAt(TrainerCallback):
    """Sends signals to this process before step 3."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def test_a_hang_up_saves_and_ends_with_its_own_status(tmp_path, capsys):
    """The terminal is closed, or the connection to it."""
    call = SignalAt(signal.SIGHUP)
    trainer = tiny_trainer(tmp_path / "run", [call], save_steps=100)
    with pytest.raises(SystemExit) as stop:
        run_training(trainer, None)
    assert stop.value.code == 129 and "stopped by SIGHUP after step 3" in capsys.readouterr().err
    assert newest_checkpoint(trainer.args).endswith("checkpoint-3")


def test_usr1_saves_and_goes_on(finished, tmp_path):
    call = SignalAt(signal.SIGUSR1)
    trainer = tiny_trainer(tmp_path / "run", [call], save_steps=6)
    run_training(trainer, None)
    names = sorted(path.parent.name for path in (tmp_path / "run").glob("*/manifest.json"))
    assert names == ["checkpoint-3", "checkpoint-6"]
    assert losses(trainer) == losses(finished)


def test_a_second_signal_ends_the_process_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("hfscale.stopping.ECHO_SECONDS", 0)
    call = SignalAt(signal.SIGTERM, signal.SIGTERM)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            run_training(tiny_trainer(tmp_path / "run", [call]), None)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    assert not (tmp_path / "run" / "checkpoint-3").exists()
