"""The moments of an uninterrupted run, and the phase of the run that each belongs to."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.faults.inside import read_record
from tests.faults.runs import SAVE_STEPS

# Of operations and paths in the run's folder: the phase, that of the first rule that fits.
FILE_PHASES = (
    (r"trainer |\w+ \.?$|\w+ \.hfscale-trial", None),
    (r"read source", "data preparation"),
    (r"\w+ \.?run\.json", "run.json"),
    (r"(remove|rmdir) .*checkpoint-\d", "rotation"),
    (r"rename .*checkpoint-\d[^/]*$", "rename"),
    (r"\w+ .*checkpoint-\d.*/\.?manifest\.json", "manifest"),
    (r"read .*checkpoint-\d", "hashing"),
    (rf"\w+ .*checkpoint-{SAVE_STEPS}\b", "first save"),
    (r"\w+ .*checkpoint-\d", "later save"),
    (r"\w+ \.?manifest\.json", "final manifest"),
    (r"", "final weights"),
)
# Of Trainer's events: the phase that one opens.
OPENED_BY = {
    "on_init_end": "start",
    "on_train_begin": "start",
    "on_step_begin": "training",
    "on_prediction_step": "evaluation",
    "on_evaluate": "training",
    "on_train_end": "final evaluation",
}
AFTER_TRAINING = ("final evaluation", "final weights", "final manifest", "run.json")


@dataclass(frozen=True)
class Moment:
    """The n-th time that a rank does something, and how long it is until the next moment."""

    rank: int
    operation: str
    path: str
    number: int
    phase: str
    gap_seconds: float

    @property
    def key(self) -> list:
        """As the plan of inside.py names it."""
        return [self.rank, self.operation, self.path, self.number]


def moments_of(record: Path) -> list[Moment]:
    """The moments of each rank with their phases, from the record of a run."""
    lines = read_record(record)
    moments = []
    for rank in sorted({line[0] for line in lines}):
        mine = [line for line in lines if line[0] == rank]
        until = [line[1] for line in mine[1:]] + [mine[-1][1]]
        opened = "data preparation"
        for (_, at, operation, path, number), then in zip(mine, until, strict=True):
            if operation == "trainer":
                opened = _opened(opened, path)
            phase = phase_of_file(operation, path) or opened
            if opened in AFTER_TRAINING:
                opened = phase  # what tells nothing there belongs to what was before it
            moments.append(Moment(rank, operation, path, number, phase, then - at))
    return moments


def _opened(before: str, event: str) -> str:
    if before in AFTER_TRAINING:
        return before
    return OPENED_BY.get(event, before)


def phase_of_file(operation: str, path: str) -> str | None:
    """The phase that a file operation belongs to; None: it tells nothing."""
    rules = (phase for rule, phase in FILE_PHASES if re.match(rule, f"{operation} {path}"))
    return next(rules)
