"""Comparing what programs cost on a machine that does other things too.

What is compared is CPU seconds (user and system, of a process and of those that it started), which
other work disturbs less than wall time; wall time stands beside them. The sides take turns, round
after round in alternating order (A B, B A, A B, ...), and each round gives one ratio, so that a
machine that slows down slows both. Of the ratios the geometric mean is shown, with a 95 % interval
from resampled rounds. "within" and "above" are said only where the whole interval lies on one side
of the limit.
"""

import contextlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
FEWEST_ROUNDS = 5  # resampling fewer says little about how far they scatter
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Cost(NamedTuple):
    """Seconds."""

    cpu: float
    wall: float


class Estimate(NamedTuple):
    """A figure with the ends of its 95 % interval; 0 and infinite: measured too seldom for one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: what is measured, "ours / theirs" for a ratio.
        value: the estimate; None: not measured.
        limit: of `limits.json`; the value is to be at most that, or at least for `is_least`.
        wall: the same ratio by wall time.
        note: a unit, what is different between the sides, or why nothing was measured.
    """

    name: str
    value: Estimate | None
    rounds: int = 0
    wall: Estimate | None = None
    note: str = ""
    limit: float | None = None
    is_least: bool = False

    def verdict(self) -> str:
        """Whether the value keeps its limit, where its interval says so."""
        if self.value is None:
            return "not measured"
        if self.limit is None:
            return ""
        if self.is_least:
            is_kept = self.value.low >= self.limit
            is_broken = self.value.high < self.limit
        else:
            is_kept = self.value.high <= self.limit
            is_broken = self.value.low > self.limit
        if is_kept:
            return "within"
        if is_broken:
            return "below" if self.is_least else "above"
        return "not decided: more rounds"


def measured(call: Callable[[], object]) -> Cost:
    """What a call costs in this process and in those that it started and that ended."""
    cpu = cpu_seconds()
    wall = time.perf_counter()
    call()
    return Cost(cpu_seconds() - cpu, time.perf_counter() - wall)


def cpu_seconds() -> float:
    """User and system time so far, of this process and of its children that ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # finer than the ticks of os.times
    usages = [resource.getrusage(who) for who in whose]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def take_turns(sides: Mapping[str, Callable[[], Cost]], rounds: int) -> list[dict[str, Cost]]:
    """What each side cost in each round; every second round goes through them backwards."""
    names = list(sides)
    costs = []
    for number in range(rounds):
        order = names if number % 2 == 0 else names[::-1]
        costs.append({name: sides[name]() for name in order})
    return costs


def compare(
    name: str,
    ours: str,
    theirs: str,
    rounds: Sequence[Mapping[str, Cost]],
    note: str = "",
) -> Row:
    """A row of what one side costs divided by what the other does."""
    cpu = [costs[ours].cpu / costs[theirs].cpu for costs in rounds]
    wall = [costs[ours].wall / costs[theirs].wall for costs in rounds]
    return Row(name, geometric_mean(cpu), len(rounds), geometric_mean(wall), note)


def geometric_mean(values: Sequence[float]) -> Estimate:
    """Geometric mean of ratios or costs with its 95 % interval; without bounds for fewer than
    `FEWEST_ROUNDS`.
    """
    logarithms = np.log(values)
    value = math.exp(logarithms.mean())
    if len(values) < FEWEST_ROUNDS:
        return Estimate(value, 0.0, math.inf)
    drawn = np.random.default_rng(0).choice(logarithms, (RESAMPLES, len(values)))
    low, high = np.exp(np.quantile(drawn.mean(axis=1), [0.025, 0.975]))
    return Estimate(value, float(low), float(high))


def once(name: str, value: float, note: str = "") -> Row:
    """A row of a number that was measured a single time: no verdict."""
    return Row(name, Estimate(value, 0.0, math.inf), 1, note=note)


def exactly(name: str, value: float, note: str = "") -> Row:
    """A row of a number that comes out the same each time, so that its interval is a point."""
    return Row(name, Estimate(value, value, value), 1, note=note)


def not_measured(name: str, reason: object) -> Row:
    """A row that says in one line why there is no figure."""
    return Row(name, None, note=f"not measured: {' '.join(str(reason).split())[:200]}")


# ---- a side in a process of its own, which works only when it is its turn


class Turns:
    """In the process of a side: `step` is called at the end of each step.

    The other process (`Side`) writes how many steps to do, and gets their cost as one line of JSON.
    At the end of its input the process ends at once, in the middle of its training.
    """

    def __init__(self):
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to stderr
        self.left = 0
        self.done = 0

    def step(self) -> None:
        """A step ended; waits for the next turn where this one is over."""
        self.left -= 1
        if self.left > 0:
            return
        if self.done:
            cost = Cost(cpu_seconds() - self.cpu, time.perf_counter() - self.wall)
            print(json.dumps(cost), file=self.answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left = int(line)
        self.done += 1
        self.wall = time.perf_counter()
        self.cpu = cpu_seconds()


class Side:
    """A program that trains by `Turns`, started and asked for so many steps at a time.

    Raises RuntimeError, with the last line that it wrote, where the program ends by itself.
    """

    def __init__(self, command: Sequence[str], folder: Path, name: str):
        self.log = folder / f"{name.replace('/', ' ')}.log"
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env=os.environ | ENVIRONMENT,
            )

    def run(self, steps: int) -> Cost:
        """The cost of a step, mean of so many."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            lines = self.log.read_text(errors="replace").split("\n")
            last = [line for line in lines if line.strip()][-1:] or ["no message"]
            raise RuntimeError(f"exit status {self.process.returncode}: {last[0]}")
        cpu, wall = json.loads(answer)
        return Cost(cpu / steps, wall / steps)

    def end(self) -> None:
        """Let the program end, and wait for it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def cost_of_program(command: Sequence[str], folder: Path) -> Cost:
    """Of a whole program, from its start to its end; raises RuntimeError as `cost_and_peak`."""
    cost, _ = cost_and_peak(command, folder)
    return cost


def cost_and_peak(command: Sequence[str], folder: Path) -> tuple[Cost, float]:
    """Of a whole program, and the peak MiB of the largest of its processes.

    Raises RuntimeError with the end of what it wrote where its exit status is not 0.
    """
    wall = time.perf_counter()
    log = folder / "program.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env=os.environ | ENVIRONMENT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])}: {log.read_text(errors='replace')[-300:]}")
    cost = Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - wall)
    return cost, usage.ru_maxrss / 1024


# ---- what is shown


def with_limits(rows: Sequence[Row], limits: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The rows with the limits of their names (`{"at_most": 1.05}` or `{"at_least": 0.95}`)."""
    limited = []
    for row in rows:
        limit = limits.get(row.name, {})
        is_least = "at_least" in limit
        value = limit.get("at_least" if is_least else "at_most")
        limited.append(Row(**(vars(row) | {"limit": value, "is_least": is_least})))
    return limited


def table(rows: Sequence[Row]) -> str:
    """The rows as plain text, columns aligned."""
    head = ("what", "value", "95 % interval", "by wall time", "limit", "verdict", "rounds", "note")
    lines = [head] + [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cells(row: Row) -> tuple[str, ...]:
    if row.value is None:
        return (row.name, "", "", "", "", "", "", row.note)
    wall = f"{row.wall.value:.3g}" if row.wall else ""
    limit = "" if row.limit is None else f"{'>=' if row.is_least else '<='} {row.limit:g}"
    return (
        row.name,
        f"{row.value.value:.4g}",
        _interval(row.value),
        wall,
        limit,
        row.verdict(),
        str(row.rounds),
        row.note,
    )


def _interval(value: Estimate) -> str:
    if math.isinf(value.high):
        return "too few rounds"
    if value.low == value.high:
        return "exact"
    return f"{value.low:.3g} to {value.high:.3g}"


def write_json(rows: Sequence[Row], path: Path, seconds: float) -> None:
    """The rows, and on what machine they were taken."""
    entries = [asdict(row) | {"verdict": row.verdict()} for row in rows]
    for entry in entries:
        for name in ("value", "wall"):
            if entry[name] is not None:
                bounds = [None if math.isinf(number) else number for number in entry[name]]
                entry[name] = dict(zip(Estimate._fields, bounds, strict=True))
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_at_the_end": os.getloadavg()[0],
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": entries}, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
