"""Signals at every phase, to the launcher, to one rank or to all; and preemptions."""

import argparse
import os
import random
import re
import signal
import time
from collections.abc import Iterator

import psutil

from tests.faults.moments import Moment
from tests.faults.runs import (
    STEPS,
    Kind,
    Run,
    let_run,
    newest_whole,
    start,
    wait_until_gone,
    weights_of,
)
from tests.faults.trials import Outcome, Trial, last_line, resumed, start_to_moment

GOOD = ("equal",)
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
TARGETS = ("launcher", "one rank", "all")
TWICE, PREEMPTED = "twice", "preempted"
TWICE_SECONDS = 5  # in which a second signal must have ended all
END_SECONDS = 10  # in which the ranks end after their launcher
PARTS = 40  # of a preempted run, which ends much earlier if it makes progress


def trials(kind: Kind, args: argparse.Namespace, draw: random.Random) -> Iterator[Trial]:
    """Each signal, to each target, in each phase; two in a row; preemptions."""
    phases = sorted({moment.phase for moment in kind.moments})
    for phase in phases:
        moments = [moment for moment in kind.moments if moment.phase == phase]
        for name in (*SIGNALS, TWICE):
            for target in TARGETS:
                details = {"moment": draw.choice(moments), "target": target}
                what = f"{name} to {target}"
                yield Trial("stops", kind, what, details, draw.getrandbits(32))
    for _ in range(args.count):
        yield Trial("stops", kind, PREEMPTED, {}, draw.getrandbits(32))


def try_one(trial: Trial) -> Outcome:
    """`equal`: the right exit status, few words, and a resume to equal weights; `status`: another
    exit status; `words`: a traceback; `unsaid`: no word of the signal; `orphans`: ranks were left;
    `slow`: a second signal did not end it; `stuck`: a preempted
    run never came to its end; or as `resume_result`.
    """
    if trial.what == PREEMPTED:
        return _preempt(trial)
    run, pid = start_to_moment(trial)
    if not pid:
        return Outcome("missed", f"{trial.details['moment'].key}: {last_line(run)}")
    outcome = _stop(trial, run, pid)
    run.kill()
    if outcome.result == "equal":
        outcome = resumed(trial)
    outcome.note = f"{trial.details['moment'].phase}: {outcome.note}"
    return outcome


def _stop(trial: Trial, run: Run, pid: int) -> Outcome:
    name = trial.what.split()[0]
    processes = run.processes()
    targets = {
        "launcher": processes[:1],
        "one rank": [psutil.Process(pid)],
        "all": [*processes[:1], *run.ranks()],
    }[trial.details["target"]]
    number = signal.SIGTERM if name == TWICE else signal.Signals[name]
    _send(number, targets)
    os.kill(pid, signal.SIGCONT)
    if name == TWICE:
        time.sleep(0.1)
        _send(number, targets)
        return Outcome("equal" if wait_until_gone(processes, TWICE_SECONDS) else "slow")
    outcome = _judge(trial.details["moment"], number, run, run.wait())
    if outcome.result == "equal" and not wait_until_gone(processes, END_SECONDS):
        return Outcome("orphans", "ranks were left")
    return outcome


def _send(number: int, targets: list[psutil.Process]) -> None:
    for process in targets:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _judge(moment: Moment, number: int, run: Run, status: int | None) -> Outcome:
    # A run that has nothing left to do may end as if nothing had come.
    is_done = moment.phase in ("run.json", "final manifest")
    right = [128 + number, -number, *([0] if is_done else [])]
    if number == signal.SIGUSR1:
        right = [0]
    if status not in right:
        return Outcome("hung" if status is None else "status", f"{status}: {last_line(run)}")
    if "Traceback" in run.text:
        return Outcome("words", last_line(run))
    said = re.search(rf"{signal.Signals(number).name}|Ctrl-C", run.text)
    return Outcome("equal" if status == 0 or said else "unsaid", last_line(run))


def _preempt(trial: Trial) -> Outcome:
    """SIGTERM after a while, SIGKILL after a grace; started again until the run is done."""
    draw = random.Random(trial.seed)
    kind = trial.kind
    before = 0
    for part in range(PARTS):
        run = start(kind, trial.folder, part, warm=trial.warm)
        # A machine that is busier than when the time was taken gets there, too.
        let_run(run, draw.uniform(0.3, 1.0) * kind.seconds[trial.warm] * (1 + part / PARTS))
        _send(signal.SIGTERM, run.processes()[:1])
        let_run(run, draw.uniform(0, 1))
        status = run.launcher.poll()
        run.kill()
        newest = newest_whole(trial.folder)
        if newest < before:
            return Outcome("lost", f"step {before} was whole, now {newest} is the newest")
        before = newest
        if status == 0:
            is_equal = weights_of(trial.folder) == kind.weights
            return Outcome("equal" if is_equal else "other", f"{part + 1} parts")
        if status not in (None, 143):
            return Outcome("status", f"{status}: {last_line(run)}")
    return Outcome("stuck", f"at step {before} of {STEPS} after {PARTS} parts")
