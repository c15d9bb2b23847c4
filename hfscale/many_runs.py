"""Many trainings, each a process of its own: several at a time, those that are finished left out,
failed ones tried again.

Nothing heavy is imported.
"""

import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeAlias

from hfscale.config import pick_flags
from hfscale.folders import RUN_RECORD
from hfscale.launch import FLAGS
from hfscale.process import TYPED_COMMAND, InputError
from hfscale.stopping import ENDING, launcher_environment, note_when_stopped

# The folder of a run that is not finished holds at most what a failed try left.
ANEW = ("--overwrite", "true")
# With what a run ends that a signal stopped: it was not the run that failed.
STOPPED = tuple(128 + number for number in ENDING)

Record: TypeAlias = dict[str, Any]  # what a run.json holds


def shared_flags(given: Iterable[str], place: str) -> list[str]:
    """What all runs share, given as name=value, as flags of a recipe; raises InputError, beginning
    with `place`, for another form.
    """
    words = list(given)
    for word in words:
        if "=" not in word or word.startswith("-"):
            raise InputError(f"{place}: got '{word}', expected name=value, as in config=tiny_cpu")
    return [f"--{word}" for word in words]


def pick_cell(cells: Sequence[Any], number: int) -> Any:
    """What a job array's number, from 0, stands for; raises InputError: nothing has it."""
    if not 0 <= number < len(cells):
        raise InputError(f"cell: got {number}, expected 0 to {len(cells) - 1}")
    return cells[number]


def train_all(
    commands: Mapping[str, list[str]],
    folder: Path,
    *,
    jobs: int = 1,
    retries: int = 1,
    kind: str = "run",
    place: str,
    check: Callable[[dict[str, Record]], None] | None = None,
) -> tuple[dict[str, Record], list[str]]:
    """Train the runs that are not finished, `jobs` at a time; what each prints goes to
    `<name>.log` beside its folder.

    Args:
        commands: the words of `hfscale` that train a run, by its name, which is its folder's.
        kind: what a run is called in the lines that say how far it all is.
        place: the argument that the runs' own arguments come from.
        check: called with the records so far whenever a run is finished; what it raises ends all.

    Returns the `run.json` of each finished run, and the names of those that failed `retries` + 1
    times, both in the order of the commands.

    Raises:
        InputError: a finished run was trained with other arguments, or one cannot be trained with
            these.
    """
    records = {name: finished_record(folder / name, words) for name, words in commands.items()}
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [name for name, record in records.items() if not record]
    finished = len(commands) - len(waiting)
    print(
        f"{finished} of {len(commands)} {kind}s are finished; logs and runs: {folder}", flush=True
    )
    _check_done(records, check)
    note_when_stopped(f"finished {kind}s are in {folder}, the same command goes on")
    running: dict[Future, str] = {}
    pool = ThreadPoolExecutor(jobs)
    is_stopped = False
    try:
        while waiting or running:
            # None begins before the last one is looked at: the others may be bound to end alike.
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                run = folder / name
                running[pool.submit(_train, commands[name], run, retries, place)] = name
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                name = running.pop(future)
                records[name] = future.result()
                finished += 1
                result = _in_words(records[name], retries, folder / name)
                print(f"{kind} {finished} of {len(commands)}, {name}: {result}", flush=True)
            _check_done(records, check)
    except KeyboardInterrupt:
        is_stopped = True
        raise
    finally:  # of a process that ends now, the runs end with it
        pool.shutdown(wait=not is_stopped)
    done = {name: record for name, record in records.items() if record}
    return done, [name for name in commands if name not in done]


def _check_done(
    records: Mapping[str, Record | None], check: Callable[[dict[str, Record]], None] | None
) -> None:
    if check:
        check({name: record for name, record in records.items() if record})


def _in_words(record: Record | None, retries: int, run: Path) -> str:
    """How a run ended."""
    if not record:
        return f"failed {retries + 1} times; see {log_of(run)}"
    loss = record["metrics"].get("eval_loss")
    measured = "done" if loss is None else f"loss {loss:.4f}"
    return f"{measured} after {record['train']['seconds']:.0f} s"


def log_of(run: Path) -> Path:
    """Where what a run prints is kept."""
    return Path(f"{run}.log")


def finished_record(run: Path, command: Sequence[str]) -> Record | None:
    """The record of a finished run; None: there is none.

    Raises InputError: the run was trained by another command; the launcher's flags do not count.
    """
    try:
        record = json.loads((run / RUN_RECORD).read_text("utf-8"))
        trained_by = recipe_words(shlex.split(record["command"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    asked = recipe_words(command)
    if trained_by[: len(asked)] != asked:  # what follows is --overwrite, and what a launch adds
        raise InputError(f"{run}: was trained with other arguments; name another --output_dir")
    return record


def recipe_words(command: Sequence[str]) -> list[str]:
    """What a command says to the recipe, after the program's and the recipe's name."""
    flags = list(itertools.dropwhile(lambda word: not word.startswith("--"), command))
    return pick_flags(flags, FLAGS)[1]


def _train(command: list[str], run: Path, retries: int, place: str) -> Record | None:
    """The record of the run; None: every try failed. Raises InputError: the run found its own input
    wrong, which another try would not change.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    env.pop(TYPED_COMMAND, None)  # the study's, not the run's
    env |= launcher_environment()  # a run ends with its study
    words = [sys.executable, "-m", "hfscale.cli", *command, *ANEW]
    log = log_of(run)
    for _ in range(retries + 1):
        with log.open("a", encoding="utf-8") as out:
            status = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, env=env).returncode
        if status == 0:
            return finished_record(run, command)
        if status in STOPPED:
            return None
        if status == 2:
            raise InputError(f"{place}: {run.name}: {_last_error(log) or f'see {log}'}")
    return None


def _last_error(log: Path) -> str:
    """The last line of errors in a run's log; "": none."""
    lines = log.read_text("utf-8", "replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else ""
