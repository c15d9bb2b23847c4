"""One trial of a fault, and what it led to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.runs import Kind, Run, resume_result, start


@dataclass
class Trial:
    """A fault that is tried on one kind of run."""

    fault: str
    kind: Kind
    what: str  # which of this fault: a row of the table
    details: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    warm: bool = True
    number: int = 0  # among all trials
    below: str = ""  # the run's folder below the trial's

    @property
    def folder(self) -> Path:
        """Where it runs."""
        name = f"{self.number:04}-{self.fault}-{self.kind}"
        return self.kind.place / "runs" / name / self.below


@dataclass
class Outcome:
    """What a trial led to: a column of the table, and what a person will want to know."""

    result: str
    note: str = ""


def plan_at(trial: Trial, *, freeze: bool, **more: Any) -> dict[str, Any]:
    """The plan by which a rank tells (and stops at) the trial's moment."""
    place = trial.kind.place
    sources = [str(place / name) for name in ("text.txt", "task.jsonl", "pairs.jsonl")]
    moment = trial.details["moment"]
    watch = {"folder": str(trial.folder), "sources": sources, "moment": moment.key}
    return watch | {"freeze": freeze} | more


def start_to_moment(trial: Trial, *more: str, **how: Any) -> tuple[Run, int]:
    """A run that is frozen at the trial's moment; the rank's process id, 0: it never came."""
    plan = plan_at(trial, freeze=True)
    run = start(trial.kind, trial.folder, 0, *more, warm=trial.warm, plan=plan, **how)
    return run, run.reached()


def resumed(trial: Trial, part: int = 1, *more: str, **how: Any) -> Outcome:
    """What resuming to the end led to."""
    result, run = resume_result(trial.kind, trial.folder, part, *more, warm=trial.warm, **how)
    return Outcome(result, "" if result == "equal" else last_line(run))


def last_line(run: Run) -> str:
    """The last words of a run."""
    lines = run.text.strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"
