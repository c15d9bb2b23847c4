"""Clocks: the time of day jumps in a run, or its files are dated as if it had, before a resume."""

import argparse
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.moments import Moment
from tests.faults.runs import STEPS, Kind, start, whole_steps
from tests.faults.trials import Outcome, Trial, resumed, start_to_moment

GOOD = ("equal",)
KEPT = ("--save_total_limit", "2")
A_YEAR_SECONDS = 365 * 24 * 3600
BEFORE_STEP_8 = Moment(0, "trainer", "on_step_begin", 8, "training", 0)


def set_back(folder: Path) -> None:
    """The newest checkpoint is dated before all others."""
    _date(folder / "checkpoint-6", 1)


def set_forward(folder: Path) -> None:
    """The oldest checkpoint is dated after all that will come."""
    _date(folder / "checkpoint-3", 2**32)


def copy(folder: Path) -> None:
    """All are dated now, in any order: `cp -r` to another disk and back."""
    shutil.copytree(folder, folder.with_suffix(".copy"), copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    folder.with_suffix(".copy").rename(folder)


def touch(folder: Path) -> None:
    """The oldest checkpoint is dated now."""
    _date(folder / "checkpoint-3", None)


def _date(checkpoint: Path, seconds: int | None) -> None:
    for path in [*checkpoint.rglob("*"), checkpoint]:
        os.utime(path, seconds and (seconds, seconds))


DATED: dict[str, Callable[[Path], None]] = {
    "newest set back": set_back,
    "oldest set forward": set_forward,
    "copied": copy,
    "oldest touched": touch,
}
JUMPS = "clock jumps"


def trials(kind: Kind, args: argparse.Namespace, draw: random.Random) -> Iterator[Trial]:
    """Each way to date files, and a clock that jumps by up to a year at each reading."""
    for what in (*DATED, JUMPS):
        yield Trial("clocks", kind, what, {"moment": BEFORE_STEP_8})


def try_one(trial: Trial) -> Outcome:
    """`equal`, `rotated`: other checkpoints than the two newest are left; or as
    `resume_result`.
    """
    if trial.what == JUMPS:
        plan = {"jumps_seconds": A_YEAR_SECONDS}
        start(trial.kind, trial.folder, 0, *KEPT, "--max_steps", str(STEPS), plan=plan).wait()
        outcome = resumed(trial, 1, *KEPT, plan=plan)
    else:
        run, _ = start_to_moment(trial, *KEPT)
        run.kill()
        DATED[trial.what](trial.folder)
        outcome = resumed(trial, 1, *KEPT)
    left = whole_steps(trial.folder)
    if outcome.result == "equal" and left != [9, 12]:
        return Outcome("rotated", f"left are {left}")
    return outcome
