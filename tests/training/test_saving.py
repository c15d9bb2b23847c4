"""A checkpoint appears whole, in one step, and nothing older goes before."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hfscale.folders import check_output_dir, clear_output_dir
from hfscale.lock import LOCK
from hfscale.manifest import check_manifest
from hfscale.process import InputError
from hfscale.training import saving
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.running import run_training
from hfscale.training.saving import newest_step, rotate
from hfscale.training.trainer import LMTrainer
from tests.damage import flip_a_bit
from tests.tiny_runs import copied_run, finished_run, losses, tiny_arguments, tiny_trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "whole")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_weights(one, other) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


def kill_at(monkeypatch, owner, name, call: int) -> None:
    """Ends the process, as far as a test can, at the n-th call of a function."""
    real = getattr(owner, name)
    calls = []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


# With a save every second step; the numbers are those of the second save's calls.
MOMENTS = {
    "before anything is written": (saving, "forget_unfinished", 2),
    "weights are written": (LMTrainer, "_save_optimizer_and_scheduler", 2),
    "optimizer is written": (LMTrainer, "_save_rng_state", 2),
    "all files are written": (saving, "apply_umask", 2),
    "before the manifest": (saving, "write_manifest", 2),
    "before the rename": (saving, "put_in_place", 2),
    "before the folder is flushed": (saving, "flush_to_disk", 2),
    "before the rotation": (saving, "rotate", 2),
    "in the rotation": (Path, "unlink", 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_moment_of_a_save_is_without_a_whole_checkpoint(finished, monkeypatch, tmp_path, moment):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, *MOMENTS[moment])
        with pytest.raises(Killed):
            run_training(tiny_trainer(folder, save_total_limit=1), None)
    again = tiny_trainer(folder, save_total_limit=1)
    checkpoint = newest_checkpoint(again.args)
    assert checkpoint is not None
    run_training(again, checkpoint)
    assert same_weights(again, finished) and losses(again) == losses(finished)
    assert names_in(folder) == ["checkpoint-6"]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_checkpoint_of_the_same_step_is_replaced(finished, monkeypatch, tmp_path, call):
    """The process is killed before the old one is put aside, before the new one comes, or not."""
    folder = copied_run(finished, tmp_path / "run")
    (folder / "checkpoint-6" / "notes.txt").write_text("old")
    again = tiny_trainer(folder)
    with monkeypatch.context() as patch:
        kill_at(patch, os, "rename", call)
        if call < 3:
            with pytest.raises(Killed):
                run_training(again, str(folder / "checkpoint-4"))
        else:
            run_training(again, str(folder / "checkpoint-4"))
    assert newest_checkpoint(again.args) == str(folder / "checkpoint-6")
    assert (folder / "checkpoint-6" / "notes.txt").exists() == (call < 3)
    assert names_in(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_others_see_a_checkpoint_only_when_it_is_whole(monkeypatch, tmp_path):
    seen = []
    write = saving.write_manifest

    def look_and_write(part, **facts):
        seen.append(names_in(tmp_path / "run"))
        write(part, **facts)

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            assert check_manifest(folder) is None
            seen.append(names_in(tmp_path / "run"))

    monkeypatch.setattr(saving, "write_manifest", look_and_write)
    trainer = tiny_trainer(tmp_path / "run", [Look()], save_total_limit=1)
    run_training(trainer, None)
    assert seen == [
        [".saving"],
        ["checkpoint-2"],
        [".saving", "checkpoint-2"],
        ["checkpoint-4"],
        [".saving", "checkpoint-4"],
        ["checkpoint-6"],
    ]
    assert trainer.args.save_total_limit == 1  # as the record shows it


def test_each_file_is_flushed_once(monkeypatch, tmp_path):
    flushed = []
    fsync = os.fsync

    def note(descriptor):
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    run_training(tiny_trainer(tmp_path / "run", max_steps=2), None)
    place = str(tmp_path / "run")
    part = f"{place}/.saving/checkpoint-2"
    files = [f"{part}/{name}" for name in names_in(tmp_path / "run" / "checkpoint-2")]
    assert sorted(flushed) == sorted([*files, part, place])
    last = [f"{part}/manifest.json", part, place]
    assert flushed[-3:] == last


def test_a_broken_off_save_is_a_run_and_no_checkpoint(finished, tmp_path, capsys):
    part = tmp_path / "run" / ".saving" / "checkpoint-2"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_text("half")
    check_output_dir(str(tmp_path / "run"), resume="auto", overwrite=False)
    with pytest.raises(InputError, match="holds a run"):
        check_output_dir(str(tmp_path / "run"), resume=None, overwrite=False)
    assert newest_checkpoint(tiny_arguments(tmp_path / "run")) is None
    assert "starting anew" in capsys.readouterr().err and not part.parent.exists()
    part.mkdir(parents=True)
    (part / "model.safetensors").write_text("half")
    clear_output_dir(str(tmp_path / "run"), overwrite=True)
    assert os.listdir(tmp_path / "run") == [LOCK]


def test_a_full_disk_costs_no_checkpoint_and_keeps_no_half(finished, tmp_path):
    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = tiny_trainer(tmp_path / "run", [Fill()], save_total_limit=1)
    try:
        with pytest.raises((Exception, SystemExit)):
            run_training(trainer, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(tmp_path / "run") == [".saving", "checkpoint-2"]
    assert names_in(tmp_path / "run" / ".saving") == []
    again = tiny_trainer(tmp_path / "run", save_total_limit=1)
    run_training(again, newest_checkpoint(again.args))
    assert same_weights(again, finished)


def test_only_whole_checkpoints_are_pushed(monkeypatch, tmp_path):
    pushed = []

    def push(self, folder):
        assert check_manifest(folder) is None
        pushed.append(folder)

    monkeypatch.setattr(LMTrainer, "_push_from_checkpoint", push)
    trainer = tiny_trainer(tmp_path / "run")
    trainer.args.push_to_hub = True
    run_training(trainer, None)
    assert pushed == [str(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 4, 6)]


# ---- the best one

BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


@pytest.fixture(scope="module")
def best_run(tmp_path_factory):
    """By a metric that is worse at each step: the first checkpoint is the best."""
    folder = tmp_path_factory.mktemp("best") / "run"
    return finished_run(folder, save_total_limit=2, **BEST)


def test_the_best_one_is_named_by_its_place(best_run):
    folder = Path(best_run.args.output_dir)
    assert names_in(folder) == ["checkpoint-2", "checkpoint-6"]
    assert best_run.state.best_model_checkpoint == str(folder / "checkpoint-2")
    for step in (2, 6):
        state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(folder / "checkpoint-2")


def test_a_damaged_best_checkpoint_never_becomes_the_final_model(best_run, tmp_path):
    folder = copied_run(best_run, tmp_path / "run")
    flip_a_bit(folder / "checkpoint-2" / "model.safetensors")
    again = tiny_trainer(folder, save_total_limit=2, **BEST)
    checkpoint = newest_checkpoint(again.args)
    with pytest.raises(InputError, match="checkpoint-2 is the best checkpoint and not whole any"):
        run_training(again, checkpoint)


def test_a_moved_run_keeps_its_best_checkpoint(best_run, tmp_path):
    folder = copied_run(best_run, tmp_path / "run")
    again = tiny_trainer(folder, save_total_limit=2, **BEST)
    run_training(again, newest_checkpoint(again.args))
    assert again.state.best_model_checkpoint == str(folder / "checkpoint-2")
    assert same_weights(again, best_run)


def test_a_lost_best_checkpoint_is_said(best_run, tmp_path):
    folder = copied_run(best_run, tmp_path / "run")
    os.rename(folder / "checkpoint-2", tmp_path / "elsewhere")
    args = tiny_arguments(folder, save_total_limit=2, **BEST)
    with pytest.raises(InputError, match="checkpoint-2 is the best checkpoint so far and not"):
        newest_checkpoint(args)


# ---- rotation


def make_checkpoints(folder: Path, *steps: int, broken: tuple[int, ...] = ()) -> list[Path]:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
        if step not in broken:
            (folder / f"checkpoint-{step}" / "manifest.json").write_text("{}")
    return [folder / f"checkpoint-{step}" for step in sorted(steps, reverse=True)]


@pytest.mark.parametrize(
    ("broken", "limit", "best", "left"),
    [
        ((), None, None, [1, 2, 3, 4]),
        ((), 2, None, [3, 4]),
        ((), 9, None, [1, 2, 3, 4]),
        ((3,), 2, None, [2, 4]),  # what is broken counts for nothing
        ((4,), 1, None, [3, 4]),  # newer than the newest whole one: somebody writes it
        ((), 2, 1, [1, 4]),
        ((), 1, 2, [2, 4]),  # the newest, to go on from, and the best
    ],
)
def test_which_checkpoints_stay(tmp_path, broken, limit, best, left):
    folders = make_checkpoints(tmp_path, 1, 2, 3, 4, broken=broken)
    rotate(folders, limit, best and str(tmp_path / f"checkpoint-{best}"))
    assert sorted(int(path.name[11:]) for path in tmp_path.iterdir()) == left


def test_only_numbered_checkpoints_have_a_step(tmp_path):
    assert newest_step(tmp_path) is None
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-\u00b2", "checkpoint-last"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / "checkpoint-30").mkdir()  # not finished
    assert newest_step(tmp_path) == 10
