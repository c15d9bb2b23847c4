"""Damage: one file of a checkpoint, a final folder, a cache or a prepared set is spoilt."""

import argparse
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.damage import DAMAGE
from tests.faults.moments import Moment
from tests.faults.runs import HFSCALE, Kind, Run, log_of, start, weights_of
from tests.faults.trials import Outcome, Trial, last_line

# Of prepare_data: its rules are for real texts.
AS_IT_IS = ["--quality", "false", "--near_duplicates", "false"]
GOOD = ("named", "equal")
# Without a manifest a prepared set is read like any other data set, and a line says so.
UNVERIFIED = "damage to its files is not noticed"


def trials(kind: Kind, args: argparse.Namespace, draw: random.Random) -> Iterator[Trial]:
    """Each damage of each file; with --sample, some of them."""
    found = [
        Trial("damage", kind, f"{target}: {damage}", {"source": source, "name": name})
        for target, make in TARGETS.items()
        for source in make(kind)
        for name in _names(source, target)
        for damage in DAMAGE
    ]
    yield from draw.sample(found, min(args.sample or len(found), len(found)))


def _names(source: Path, target: str) -> list[str]:
    """The files that can be spoilt, by their paths below the place that is copied."""
    files = (path for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    names = sorted(str(path.relative_to(source)) for path in files)
    if target == "checkpoint":
        return [name for name in names if name.startswith("checkpoint-6/")]
    names = [name for name in names if not name.endswith(".lock")]  # which say nothing any more
    if target == "final folder":  # but for the card, which people edit
        return [name for name in names if not name.startswith(("checkpoint-", "README.md"))]
    return names


def _broken_off(kind: Kind) -> list[Path]:
    """A run that was killed after its second checkpoint, of which the first is kept too."""
    folder = kind.place / "references" / f"{kind}-broken-off"
    if folder.is_dir():
        return [folder]
    moment = Moment(0, "trainer", "on_step_begin", 8, "training", 0)
    plan = {"folder": str(folder), "moment": moment.key, "freeze": True}
    run = start(kind, folder, 0, "--save_total_limit", "3", plan=plan)
    run.reached()
    run.kill()
    return [folder]


def _finished(kind: Kind) -> list[Path]:
    return [kind.finished]


def _caches(kind: Kind) -> list[Path]:
    """The caches that a run leaves whose caches were empty."""
    place = kind.place / "references" / f"{kind}-caches"
    if not place.is_dir():
        (place / "caches").mkdir(parents=True)
        run = Run(kind.command(place / "run"), log_of(kind, place, 0), place)
        if run.wait() != 0:
            raise RuntimeError(f"a run with empty caches failed: see {run.log}")
    return [place / "caches"]


def _prepared(kind: Kind) -> list[Path]:
    """The set that prepare_data makes of the text; pretrain alone is tried on it."""
    if str(kind) != "pretrain-cpu":
        return []
    folder = kind.place / "references" / "prepared"
    if not folder.is_dir():
        text = ["--source", str(kind.place / "text.txt"), "--sample_by", "line"]
        command = [*HFSCALE, "prepare_data", *text, *AS_IT_IS, "--output_dir", str(folder)]
        run = Run(command, log_of(kind, folder, 0), kind.place)
        if run.wait() != 0:
            raise RuntimeError(f"prepare_data failed: see {run.log}")
    return [folder]


TARGETS: dict[str, Callable[[Kind], list[Path]]] = {
    "checkpoint": _broken_off,
    "final folder": _finished,
    "cache": _caches,
    "prepared set": _prepared,
}


# Where below the trial's folder the harmed copy lies, if it is not that folder.
COPIED_TO = {"cache": "caches", "prepared set": "set"}


def try_one(trial: Trial) -> Outcome:
    """`named`: a line names the file, or it is passed over with a line and the weights are equal;
    `equal`: nothing was said and the weights are equal; `silent`: other weights, or nothing said of
    a final folder or a prepared set; `unnamed`: refused without the name of the file; `refused`:
    a run ended with exit status 2 that could have gone on; `failed`: with another one.
    """
    target, damage = trial.what.split(": ")
    name = trial.details["name"]
    copy = trial.folder / COPIED_TO.get(target, "")
    shutil.copytree(trial.details["source"], copy)
    DAMAGE[damage](copy / name)
    outcome = JUDGES[target](trial, name)
    outcome.note = f"{name}: {outcome.note}"
    return outcome


def _judge_checkpoint(trial: Trial, name: str) -> Outcome:
    run = start(trial.kind, trial.folder, 1)
    return _compare(trial, run, trial.folder, "is not whole")


def _judge_cache(trial: Trial, name: str) -> Outcome:
    folder = trial.folder / "run"
    run = Run(trial.kind.command(folder), log_of(trial.kind, folder, 0), trial.folder)
    return _compare(trial, run, folder, "made anew")


def _compare(trial: Trial, run: Run, folder: Path, words: str) -> Outcome:
    status = run.wait()
    if status == 2:
        return Outcome("refused", last_line(run))
    if status != 0:
        return Outcome("failed", last_line(run))
    if weights_of(folder) != trial.kind.weights:
        return Outcome("silent")
    return Outcome("named" if words in run.text else "equal")


def _judge_final(trial: Trial, name: str) -> Outcome:
    command = [*HFSCALE, "verify", str(trial.folder)]
    run = Run(command, log_of(trial.kind, trial.folder, 0), trial.kind.place)
    return _is_named(run, name)


def _judge_prepared(trial: Trial, name: str) -> Outcome:
    folder = trial.folder / "run"
    run = start(trial.kind, folder, 0, "--source", str(trial.folder / "set"))
    return _is_named(run, name)


def _is_named(run: Run, name: str) -> Outcome:
    status = run.wait()
    if status == 0 and UNVERIFIED not in run.text:
        return Outcome("silent", last_line(run))
    if "Traceback" in run.text:
        return Outcome("failed", last_line(run))
    return Outcome("named" if Path(name).name in run.text else "unnamed", last_line(run))


JUDGES: dict[str, Callable[[Trial, str], Outcome]] = {
    "checkpoint": _judge_checkpoint,
    "final folder": _judge_final,
    "cache": _judge_cache,
    "prepared set": _judge_prepared,
}
