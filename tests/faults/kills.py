"""Kills: SIGKILL to launcher and ranks at moments drawn at random or aimed at; then a resume.

An aimed kill waits for a file operation or an event of Trainer's in one rank, which stops there;
or it lets the rank go on and falls before the next one.
"""

import argparse
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator

from tests.faults.moments import Moment
from tests.faults.runs import SAVE_STEPS, Kind, Run, let_run, start, whole_steps
from tests.faults.trials import Outcome, Trial, plan_at, resumed

GOOD = ("equal",)
AT_RANDOM = "at random"
TRIES = 10  # a kill that is drawn late may come after the end


def trials(kind: Kind, args: argparse.Namespace, draw: random.Random) -> Iterator[Trial]:
    """A fifth at random, the others on all phases alike; some of them cold."""
    phases: dict[str, list[Moment]] = defaultdict(list)
    for moment in kind.moments:
        phases[moment.phase].append(moment)
    for number in range(args.count):
        names = [AT_RANDOM] if number % 5 == 0 else sorted(phases)
        what = draw.choice(names)
        details = {} if what == AT_RANDOM else {"moment": draw.choice(phases[what])}
        is_cold = draw.random() < args.cold_share
        yield Trial("kills", kind, what, details, draw.getrandbits(32), warm=not is_cold)


def try_one(trial: Trial) -> Outcome:
    """`equal`; `lost`: nothing whole was left though a save had ended; or as `resume_result`."""
    draw = random.Random(trial.seed)
    for _ in range(TRIES):
        shutil.rmtree(trial.folder, ignore_errors=True)
        run, is_hit = _kill(trial, draw)
        if is_hit:
            break
    else:
        return Outcome("missed", f"it ended before, {TRIES} times")
    had_saved = run.trained_steps > SAVE_STEPS
    if had_saved and not whole_steps(trial.folder):
        return Outcome("lost", f"killed after step {run.trained_steps}")
    return resumed(trial)


def _kill(trial: Trial, draw: random.Random) -> tuple[Run, bool]:
    """The killed run, and whether it was running then."""
    moment: Moment | None = trial.details.get("moment")
    if moment is None:
        run = start(trial.kind, trial.folder, warm=trial.warm)
        let_run(run, draw.uniform(0, trial.kind.seconds[trial.warm]))
    else:
        freeze = draw.random() < 0.5
        plan = plan_at(trial, freeze=freeze)
        run = start(trial.kind, trial.folder, warm=trial.warm, plan=plan)
        if run.reached() and not freeze:
            time.sleep(draw.uniform(0, moment.gap_seconds))
    is_hit = not run.ended
    run.kill()
    return run, is_hit
