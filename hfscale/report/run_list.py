"""The runs below a folder: finished ones with what they measured, others with how far they came."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfscale.options import did_you_mean
from hfscale.process import InputError
from hfscale.report.comparison import is_quality
from hfscale.report.seed_noise import noise_rows, said_of_other_texts, seed_groups
from hfscale.run_record import read_record

RECORD = "run.json"
DEEPEST = 4  # folders below the one that is searched
# Columns of JSON that the table leaves out: they are long, or say what eval_loss says.
NOT_SHOWN = ("model", "tokens", "eval_perplexity", "eval_bits_per_byte", "eval_finished")
UNFINISHED = "not finished"
UNREADABLE = f"{RECORD} cannot be read"


def find_runs(folder: str) -> list[dict[str, Any]]:
    """A record per run, the newest first: `folder`, `written` (UTC), `recipe`, `model`,
    `parameters`, `steps`, `tokens`, `seconds` of training, and its metrics on held-out data.

    Raises InputError: no folder, or no run in it.
    """
    if not Path(folder).is_dir():
        raise InputError(f"runs: {folder} is no folder; name the one that holds the runs")
    runs = [run for path in _run_folders(Path(folder), DEEPEST) if (run := _describe(path))]
    if not runs:
        raise InputError(f"runs: {folder} holds no run; name the folder that output_dir was in")
    return sorted(runs, key=lambda run: run["written"], reverse=True)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders of runs; nothing below one is another."""
    if (folder / RECORD).is_file() or _last_step(folder):
        yield folder
        return
    if depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.is_symlink():
                yield from _run_folders(child, depth - 1)


def _last_step(folder: Path) -> int:
    """Of its newest checkpoint; 0: it has none."""
    names = (path.parent.name for path in folder.glob("checkpoint-*/trainer_state.json"))
    steps = (name.removeprefix("checkpoint-") for name in names)
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _describe(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        run = {"recipe": UNFINISHED, "steps": _last_step(folder)}
        return {"folder": str(folder), "written": _written(folder)} | run
    named = {"folder": str(folder), "written": _written(path)}
    record = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text("utf-8"))
    if not isinstance(record, dict):
        return named | {"recipe": UNREADABLE}
    model, training, metrics = (_part(record, name) for name in ("model", "train", "metrics"))
    seconds = training.get("seconds")
    return (
        named
        | {"recipe": record.get("recipe")}
        | {"model": model.get("architecture"), "parameters": model.get("parameters")}
        | {"steps": training.get("steps"), "tokens": training.get("tokens")}
        | {"seconds": round(seconds) if isinstance(seconds, int | float) else None}
        | {name: metrics[name] for name in metrics if is_quality(name)}
    )


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def _written(path: Path) -> str:
    """When a file was last written, to the minute, UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M")


def sorted_runs(runs: Sequence[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """By a column, upwards, or downwards with - before its name; runs without it come last.

    Raises InputError: no run has such a column.
    """
    name = column.removeprefix("-")
    values = [run[name] for run in runs if run.get(name) is not None]
    if not values:
        known = dict.fromkeys(name for run in runs for name in run)
        hint = did_you_mean(name, known) or f"; these are known: {', '.join(known)}"
        raise InputError(f"sort: no run has {name}{hint}")
    with_value = [run for run in runs if run.get(name) is not None]
    without = [run for run in runs if run.get(name) is None]
    return sorted(with_value, key=lambda run: run[name], reverse=column != name) + without


def shown_columns(
    runs: Sequence[dict[str, Any]], folder: str, sort: str | None
) -> list[dict[str, Any]]:
    """What the table shows of the runs: their folders as seen from `folder`, and the columns that
    tell them apart, with the one that they are sorted by.
    """
    left_out = set(NOT_SHOWN) - {(sort or "").removeprefix("-")}
    shown = []
    for run in runs:
        columns = {name: value for name, value in run.items() if name not in left_out}
        columns["folder"] = str(Path(run["folder"]).relative_to(folder))
        shown.append(columns)
    return shown


def seed_noise(
    runs: Sequence[dict[str, Any]], folder: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each metric of the runs that differ in their seeds alone, with `mean`, `deviation`
    (standard) and the number of `seeds`; and what to say of runs that would, but for their texts.

    Runs are called as they are seen from `folder`.
    """
    records = []
    for run in sorted(runs, key=lambda run: run["folder"]):
        with contextlib.suppress(InputError):  # not finished, or damaged
            name = str(Path(run["folder"]).relative_to(folder))
            records.append(read_record(run["folder"], "runs") | {"name": name})
    rows = noise_rows(seed_groups(records))
    shown = [row for row in rows if row["metric"] not in NOT_SHOWN]
    return shown, said_of_other_texts(records)
