"""Kills: a run is ended by SIGKILL at moments drawn at random or aimed at, and resumed to its end."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.runs import Kind, kill_all, start, weights_of

# What a folder shows when the moment has come; "at random" is drawn from the run's whole time.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "first save": lambda folder: any(folder.glob("**/checkpoint-3*")),
    "second save": lambda folder: any(folder.glob("**/checkpoint-6*")),
    "rotation": lambda folder: (folder / "checkpoint-6" / "manifest.json").is_file(),
    "final evaluation": lambda folder: (folder / "checkpoint-12" / "manifest.json").is_file(),
    "final weights": lambda folder: any(folder.glob("*.safetensors")),
    "run.json": lambda folder: (folder / ".run.json.part").exists(),
}
LIMIT_SECONDS = 300


def kill_once(kind: Kind, folder: Path, moment: str, draw: random.Random, log: Path) -> bool:
    """Start (or resume) a run and kill it; whether it was still running then."""
    resume = ["--resume", "auto"] if folder.exists() else []
    run = start(kind.command(folder, *resume), log)
    until = time.monotonic() + LIMIT_SECONDS
    if moment == "at random":
        until = time.monotonic() + draw.uniform(0.3, 1.0) * kind.seconds
    while time.monotonic() < until and run.poll() is None:
        if moment != "at random" and folder.exists() and MOMENTS[moment](folder):
            time.sleep(draw.uniform(0, 0.15))
            break
        time.sleep(0.001)
    was_running = run.poll() is None
    kill_all(run)
    return was_running


def finish(kind: Kind, folder: Path, log: Path) -> int:
    """Resume a run to its end; its exit status."""
    resume = ["--resume", "auto"] if folder.exists() else []
    return start(kind.command(folder, *resume), log).wait(timeout=LIMIT_SECONDS)


def kills(kind: Kind, place: Path, count: int, seed: int) -> Iterator[dict[str, str]]:
    """What each kill led to: `equal` weights, `other` weights, or `failed` to resume."""
    draw = random.Random(seed)
    for number in range(count):
        moment = draw.choice(["at random", *MOMENTS])
        folder = place / f"{kind.recipe}-{kind.engine}-{number}"
        log = folder.with_suffix(".log")
        was_running = kill_once(kind, folder, moment, draw, log)
        status = finish(kind, folder, log)
        if status != 0:
            result = "failed"
        else:
            result = "equal" if weights_of(folder) == kind.weights else "other"
        yield {"moment": moment, "hit": "yes" if was_running else "no", "result": result}
        if result == "equal":
            shutil.rmtree(folder)
            log.unlink()
