"""Ranks: one is frozen or killed, the launcher is killed, or a run is started twice."""

import argparse
import os
import random
import signal
import time
from collections.abc import Iterator

from tests.faults.moments import Moment
from tests.faults.runs import Kind, Run, start, wait_until_gone, weights_of
from tests.faults.trials import Outcome, Trial, last_line, resumed, start_to_moment

GOOD = ("equal", "named", "refused")
TIMEOUT_SECONDS = 8  # ddp_timeout of a run with a frozen rank
END_SECONDS = 60  # in which all must have ended
FROZEN, KILLED, LAUNCHER = "frozen rank", "killed rank", "killed launcher"
TWICE = ("second start", "second start resumes")
PHASES = ("training", "first save", "later save", "evaluation", "final evaluation", "final weights")
# Nobody waits for a rank after the last sum over all, and so nobody sees that it is frozen.
AFTER_THE_LAST_SUM = ("on_log", "on_evaluate")  # of Trainer's events in the final evaluation


def trials(kind: Kind, args: argparse.Namespace, draw: random.Random) -> Iterator[Trial]:
    """Each of these in each phase; what is about one rank of several, on engines with several."""
    for what in (FROZEN, KILLED, LAUNCHER, *TWICE):
        if what == FROZEN and kind.ranks == 1:
            continue
        for phase in PHASES:
            moments = [moment for moment in kind.moments if moment.phase == phase]
            if what == FROZEN:
                moments = [moment for moment in moments if _is_waited_for(moment)]
            if not moments:
                continue
            details = {"moment": draw.choice(moments)}
            yield Trial("ranks", kind, what, details, draw.getrandbits(32))


def _is_waited_for(moment: Moment) -> bool:
    if moment.phase == "final evaluation":
        return moment.path not in AFTER_THE_LAST_SUM
    return moment.phase != "final weights"


def try_one(trial: Trial) -> Outcome:
    """`named`: all ended, a line names the rank, and a resume gives equal weights; `unnamed`: no
    line does; `orphans`: other processes went on; `hung`: they did not end; `refused`: the second
    start ended with status 2 and the first one's weights are equal; `both`: it did not; else as
    `resume_result`.
    """
    moment: Moment = trial.details["moment"]
    if trial.what in TWICE:
        return _start_twice(trial)
    run, pid = start_to_moment(trial, "--ddp_timeout", str(TIMEOUT_SECONDS))
    if not pid:
        return Outcome("missed", f"{moment.key} never came: {last_line(run)}")
    record = trial.folder / "run.json"
    steps, was_recorded = run.trained_steps, record.exists()
    ended = _harm(trial.what, run, pid)
    went_on = run.trained_steps > steps + 2 or (record.exists() and not was_recorded)
    if not ended:
        outcome = Outcome("hung", f"after {END_SECONDS} s")
    elif went_on:
        outcome = Outcome("orphans", f"step {run.trained_steps} though it ended at {steps}")
    else:
        outcome = _after(trial, run)
    run.kill()
    outcome.note = f"{moment.phase}, rank {moment.rank}: {outcome.note}"
    return outcome


def _harm(what: str, run: Run, pid: int) -> bool:
    """Whether all processes of the run ended then."""
    processes = run.processes()
    if what == KILLED:
        os.kill(pid, signal.SIGKILL)
    elif what == LAUNCHER:
        os.kill(run.launcher.pid, signal.SIGKILL)
        run.launcher.wait()  # a busy machine takes longer to clear it away than ranks to go on
        os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + END_SECONDS
    while not run.ended and time.monotonic() < until:
        time.sleep(0.01)
    gone = wait_until_gone(processes, max(0.1, until - time.monotonic()))
    for process in processes:
        if not gone and process.is_running():
            process.kill()
    return gone


def _after(trial: Trial, run: Run) -> Outcome:
    said = run.text
    rank = trial.details["moment"].rank
    outcome = resumed(trial)
    if outcome.result != "equal" or trial.what == LAUNCHER:
        return outcome
    return Outcome("named" if f"rank {rank}" in said else "unnamed", last_line(run))


def _start_twice(trial: Trial) -> Outcome:
    """The second start comes while a rank of the first is frozen, which then goes on."""
    run, pid = start_to_moment(trial)
    if not pid:
        return Outcome("missed", last_line(run))
    second = start(trial.kind, trial.folder, 2, resume=trial.what == TWICE[1], warm=trial.warm)
    status = second.wait(20)
    os.kill(pid, signal.SIGCONT)
    first_status = run.wait()
    if status != 2:
        return Outcome("both", f"status {status}: {last_line(second)}")
    if first_status != 0:
        return Outcome("failed", last_line(run))
    return Outcome("refused" if weights_of(trial.folder) == trial.kind.weights else "other")
