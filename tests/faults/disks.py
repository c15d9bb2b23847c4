"""Disks: full in the midst of a run, slow, or not to be written to; and a full disk of the log.

A disk is a tmpfs that a process of its own mounts in namespaces of its own, so that nobody else
sees it and nothing is left of it.
"""

import argparse
import ctypes
import dataclasses
import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.moments import Moment
from tests.faults.runs import Kind, Run, let_run, start, weights_of, whole_steps
from tests.faults.trials import Outcome, Trial, last_line, resumed, start_to_moment

GOOD = ("equal", "refused")
SLOW_SECONDS = 0.02  # more for each fsync and each opened file
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 1 << 14, 1 << 18
DISK_BYTES = 64 << 20
MOMENTS = {
    "full before the first save": Moment(0, "trainer", "on_step_begin", 2, "training", 0),
    "full before a later save": Moment(0, "trainer", "on_step_begin", 5, "training", 0),
    "full before the last files": Moment(0, "trainer", "on_train_end", 1, "training", 0),
}
LOG, SLOW, SMALL, READ_ONLY = "full log", "slow, killed", "too small", "read-only"


def trials(kind: Kind, args: argparse.Namespace, draw: random.Random) -> Iterator[Trial]:
    """Each of them once; a slow disk `count` times."""
    for what, moment in MOMENTS.items():
        yield Trial("disks", kind, what, {"moment": moment}, draw.getrandbits(32))
    for what in (LOG, SMALL, READ_ONLY, *[SLOW] * args.count):
        yield Trial("disks", kind, what, {}, draw.getrandbits(32))


def try_one(trial: Trial) -> Outcome:
    """`equal`: after the disk has room again, a resume gave equal weights (a full log: the run went
    on); `refused`: exit status 2 before anything was trained; `words`: it ended without a line
    about the disk, or with a traceback; `lost`: the earlier checkpoint is gone; or as
    `resume_result`.
    """
    if trial.what == SLOW:
        return _kill_on_slow_disk(trial)
    if trial.what == LOG:
        return _fill_the_log(trial)
    disk = trial.folder
    on_disk = dataclasses.replace(trial, below="run")
    return on_a_disk_of_its_own(disk, lambda: _on_disk(on_disk, disk))


def _kill_on_slow_disk(trial: Trial) -> Outcome:
    plan = {"folder": str(trial.folder), "slow_seconds": SLOW_SECONDS}
    run = start(trial.kind, trial.folder, plan=plan)
    seconds = random.Random(trial.seed).uniform(0.3, 3) * trial.kind.seconds[True]
    let_run(run, seconds)
    run.kill()
    return resumed(trial)


def _fill_the_log(trial: Trial) -> Outcome:
    with open("/dev/full", "wb") as output:
        run = start(trial.kind, trial.folder, output=output)
        status = run.wait()
    if status != 0:
        return Outcome("hung" if status is None else "failed", f"status {status}")
    return Outcome("equal" if weights_of(trial.folder) == trial.kind.weights else "other")


def _on_disk(trial: Trial, disk: Path) -> Outcome:
    if trial.what == READ_ONLY:
        _mount(None, disk, MS_REMOUNT | MS_RDONLY, None)
        return _judge_refusal(start(trial.kind, trial.folder))
    if trial.what == SMALL:
        _fill(disk, left_bytes=1 << 18)  # less than one checkpoint
        return _judge_refusal(start(trial.kind, trial.folder))
    return _fill_in_the_midst(trial, disk)


def _judge_refusal(run: Run) -> Outcome:
    status = run.wait()
    if status == 2 and run.trained_steps == 0 and "Traceback" not in run.text:
        return Outcome("refused", last_line(run))
    return Outcome("failed", f"status {status} after {run.trained_steps} steps: {last_line(run)}")


def _fill_in_the_midst(trial: Trial, disk: Path) -> Outcome:
    run, pid = start_to_moment(trial)
    if not pid:
        return Outcome("missed", last_line(run))
    before = whole_steps(trial.folder)
    ballast = _fill(disk, left_bytes=1 << 16)
    os.kill(pid, signal.SIGCONT)
    status = run.wait()
    ballast.unlink()
    if status in (0, None):
        return Outcome("hung" if status is None else "silent")
    if not set(before) <= set(whole_steps(trial.folder)):
        return Outcome("lost", f"{before} were whole before")
    if "Traceback" in run.text or "space" not in run.text:
        return Outcome("words", last_line(run))
    return resumed(trial)


def _fill(disk: Path, left_bytes: int) -> Path:
    """A file that leaves so much room."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left_bytes)
    return ballast


def on_a_disk_of_its_own(folder: Path, judge: Callable[[], Outcome]) -> Outcome:
    """Judge in a fork that sees an empty small disk at `folder`, of which nothing is left."""
    folder.mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = Outcome("broke")
        try:
            _mount_disk(folder)
            outcome = judge()
        except BaseException:
            outcome.note = traceback.format_exc()
        os.write(writing, json.dumps(vars(outcome)).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return Outcome(**json.loads(said))


def _mount_disk(folder: Path) -> None:
    user, group = os.getuid(), os.getgid()
    flags = CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER
    _check(ctypes.CDLL(None, use_errno=True).unshare(flags))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(None, Path("/"), MS_REC | MS_PRIVATE, None)
    _mount("tmpfs", folder, 0, f"size={DISK_BYTES}")


def _mount(kind: str | None, folder: Path, flags: int, options: str | None) -> None:
    words = [word and word.encode() for word in ("tmpfs", str(folder), kind, options)]
    source, target, system, data = words
    _check(ctypes.CDLL(None, use_errno=True).mount(source, target, system, flags, data))


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
