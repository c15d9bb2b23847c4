"""Hours of faults, with a table at the end: `python -m tests.faults kills --count 50`."""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.faults import clocks, damage, disks, kills, ranks, stops
from tests.faults.moments import moments_of
from tests.faults.runs import (
    ENGINES,
    ENVIRONMENT,
    RECIPES,
    STEPS,
    Kind,
    make_place,
    start,
    weights_of,
)
from tests.faults.tables import table
from tests.faults.trials import Outcome, Trial, last_line
from tests.warm import import_all

# Each module: what is tried, one trial, and which outcomes are right.
FAULTS = {
    "kills": kills,
    "damage": damage,
    "disks": disks,
    "clocks": clocks,
    "ranks": ranks,
    "stops": stops,
}
# The share of CI: of each fault, the engines and how many trials on each; and the engine whose
# warm start is compared with a cold one.
SHARE = "share"
SHARE_COLD = "cpu_2proc"
SHARES = {
    "kills": (ENGINES, 2),
    "damage": (["cpu"], 10),
    "disks": (["cpu"], 5),
    "clocks": (["cpu"], 2),
    "ranks": (["cpu_2proc"], 5),
    "stops": (["cpu_2proc"], 7),
}


def reference(kind: Kind, *, warm: bool) -> Kind:
    """Let the run go to its end, for its weights, its time and its moments."""
    folder = kind.finished if warm else kind.finished.with_name(f"{kind}-cold")
    record = kind.place / "logs" / f"{folder.name}.moments"
    record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    sources = [str(kind.place / name) for name in ("text.txt", "task.jsonl", "pairs.jsonl")]
    plan = {"folder": str(folder), "sources": sources, "record": str(record)}
    started = time.monotonic()
    run = start(kind, folder, warm=warm, plan=plan)
    status = run.wait()
    kind.seconds[warm] = time.monotonic() - started
    kind.weights = weights_of(folder)
    if status != 0 or not kind.weights or run.trained_steps != STEPS:
        raise RuntimeError(f"{kind} failed unharmed, status {status}: {last_line(run)} ({run.log})")
    kind.moments = moments_of(record)
    return kind


def compare_with_cold(kind: Kind) -> str:
    """Add the time of a cold run; raises RuntimeError unless its weights are the warm one's."""
    cold = reference(dataclasses.replace(kind, seconds={}), warm=False)
    kind.seconds |= cold.seconds
    if cold.weights != kind.weights:
        raise RuntimeError(f"{kind}: a warm start gives other weights than a cold one")
    return (
        f"{kind}: a warm start ({kind.seconds[True]:.1f} s) gives the weights of a cold one "
        f"({kind.seconds[False]:.1f} s), bit for bit"
    )


def make_reference(args: argparse.Namespace, kind: Kind) -> tuple[Kind, str]:
    """The kind with what its uninterrupted run left, and a line about it."""
    reference(kind, warm=True)
    if args.compare_cold or (args.faults == [SHARE] and kind.engine == SHARE_COLD):
        return kind, compare_with_cold(kind)
    return kind, f"{kind}: {kind.seconds[True]:.1f} s, warm"


def all_trials(kinds: list[Kind], args: argparse.Namespace) -> Iterator[Trial]:
    """What is asked for, in an order in which all kinds of runs come early."""
    draw = random.Random(args.seed)
    found = []
    for fault in FAULTS:
        engines, limit = ENGINES, args.limit
        if args.faults == [SHARE]:
            engines, limit = SHARES[fault]
        elif not {fault, "all"} & set(args.faults):
            continue
        for kind in kinds:
            drawn = list(FAULTS[fault].trials(kind, args, draw)) if kind.engine in engines else []
            found += _spread(drawn, limit, draw)
    draw.shuffle(found)
    for number, trial in enumerate(found):
        kind = dataclasses.replace(trial.kind, moments=[])
        yield dataclasses.replace(trial, kind=kind, number=number)


def _spread(drawn: list[Trial], limit: int | None, draw: random.Random) -> list[Trial]:
    """So many of them, of as many rows of the table as can be."""
    draw.shuffle(drawn)
    earlier: collections.Counter = collections.Counter()
    turns = []
    for trial in drawn:
        turns.append(earlier[trial.what])
        earlier[trial.what] += 1
    order = sorted(range(len(drawn)), key=turns.__getitem__)
    return [drawn[number] for number in order[:limit]]


def try_it(trial: Trial) -> dict:
    """One trial, and nothing left of it if all was right; a row of the table's JSON."""
    started = time.monotonic()
    try:
        outcome = FAULTS[trial.fault].try_one(trial)
    except Exception:
        outcome = Outcome("broke", traceback.format_exc())
    is_good = outcome.result in FAULTS[trial.fault].GOOD
    if is_good:
        shutil.rmtree(trial.folder, ignore_errors=True)
        for log in (trial.kind.place / "logs").glob(f"runs.{trial.folder.name}.*"):
            log.unlink()
    return {
        "fault": trial.fault,
        "recipe": trial.kind.recipe,
        "engine": trial.kind.engine,
        "what": trial.what,
        "result": outcome.result,
        "good": is_good,
        "note": outcome.note,
        "start": "warm" if trial.warm else "cold",
        "folder": trial.folder.name,
        "seconds": round(time.monotonic() - started, 2),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("faults", nargs="+", choices=[*FAULTS, "all", SHARE])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["pretrain"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--count", type=int, default=10, help="kills, preemptions, slow disks")
    parser.add_argument("--sample", type=int, help="damages of each kind of run; default: all")
    parser.add_argument("--limit", type=int, help="trials of each fault and kind; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument("--cold_share", type=float, default=0.0, help="of kills: whole commands")
    parser.add_argument("--compare_cold", action="store_true", help="one cold run of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, help="folder to work in; default: a temporary one")
    args = parser.parse_args()
    args.compare_cold |= args.cold_share > 0
    return args


def main() -> None:
    """Try what is asked for, print a table, and keep it as JSON; status 1: something was lost."""
    args = parse()
    place = (args.place or Path(tempfile.mkdtemp(prefix="hfscale-faults-"))).resolve()
    place.mkdir(parents=True, exist_ok=True)
    os.environ.update(ENVIRONMENT)
    os.chdir(place)  # where the caches lie
    os.environ["TMPDIR"] = str(place)
    import_all(args.engines, args.recipes)
    make_place(place)
    kinds = [Kind(recipe, engine, place) for recipe in args.recipes for engine in args.engines]
    rows = []
    with multiprocessing.get_context("fork").Pool(args.jobs, _prepare_worker) as pool:
        made = pool.map(functools.partial(make_reference, args), kinds, chunksize=1)
        for _, line in made:
            print(line, flush=True)
        trials = list(all_trials([kind for kind, _ in made], args))
        file = (place / "trials.jsonl").open("w")
        with file, contextlib.suppress(KeyboardInterrupt):  # the table of what is done follows
            for row in pool.imap_unordered(try_it, trials):
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                _show(row, len(rows), len(trials))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(table(rows))
    (place / "faults.json").write_text(json.dumps(rows, indent=1))
    bad = [row for row in rows if not row["good"]]
    print(f"{len(rows)} trials, {len(bad)} bad; each, and the logs of what was bad: {place}")
    sys.exit(bool(bad))


def _prepare_worker() -> None:
    """Ctrl-C is for the process that prints the table, which then ends this one and its runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_with_runs)


def _end_with_runs(*_: Any) -> None:
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)


def _show(row: dict, done: int, total: int) -> None:
    """A line for what was bad, and a sign of life."""
    kind = f"{row['fault']} {row['recipe']} {row['engine']} {row['what']} ({row['start']})"
    if not row["good"]:
        print(f"{row['result']}: {kind}: {row['folder']}: {row['note']}", flush=True)
    if done % 50 == 0:
        print(f"{done} of {total}", flush=True)


if __name__ == "__main__":
    main()
