"""The runs that a law is fitted to: a grid of `pretrain` runs over size and tokens, or a table of
finished ones.
"""

import csv
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.config import check_recipe_args, shipped
from hfscale.launch import split_flags
from hfscale.planning.flops import Shape
from hfscale.process import InputError

HEAD_WIDTH = 32  # tokens of small models; n_head follows from the width
QUIET = [
    "--eval_on_start",
    "false",
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
    "--report_to",
    "none",
]


class Cell(NamedTuple):
    """One run of the grid; its learning rate schedule ends with its last token."""

    n_layer: int
    n_embd: int
    tokens: int

    @property
    def name(self) -> str:
        """Folder of the cell, such as 4x128-1000000."""
        return f"{self.n_layer}x{self.n_embd}-{self.tokens}"

    def parameters(self, like: dict[str, Any], count: str) -> int:
        """Parameters of the cell's model, before it is built, from the `run.json` of a cell that
        shares its vocabulary and context; `count` as in `run.json`'s `model`.
        """
        embeddings = like["model"]["parameters"] - like["model"]["parameters_without_embeddings"]
        rows = (
            embeddings // like["config"]["n_embd"] if count == "parameters" else 0
        )  # of words and positions
        return Shape(self.n_layer, 1, self.n_embd, 0, rows).parameters()


def parse_cells(names: Sequence[str], place: str) -> list[Cell]:
    """Cells from their names; InputError, beginning with `place`, for another form or a cell named
    twice.
    """
    cells = []
    for name in names:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)-([1-9]\d*)", name)
        if not match or int(match[2]) % HEAD_WIDTH:
            raise InputError(
                f"{place}: got '{name}', expected layers x width - tokens, as in 4x128-1000000, "
                f"none of them 0, the width a multiple of {HEAD_WIDTH}"
            )
        cells.append(Cell(*map(int, match.groups())))
        if cells.count(cells[-1]) > 1:
            raise InputError(f"{place}: {name} is named twice; keep one")
    return cells


def cell_command(cell: Cell, folder: Path, pretrain_args: Sequence[str]) -> list[str]:
    """Words of `hfscale` that train a cell; `pretrain_args` are what all cells share, as in
    config=tiny_cpu.
    """
    if wrong := [word for word in pretrain_args if "=" not in word or word.startswith("-")]:
        raise InputError(
            f"pretrain_args: got '{wrong[0]}', expected name=value, as in config=tiny_cpu"
        )
    shared = [f"--{word}" for word in pretrain_args]
    flags, words = split_flags(shared)
    values = check_recipe_args(shipped("recipes", "pretrain.py")["pretrain"], words)
    context = values.get("max_length") or values.get("n_positions", 1024)
    per_step = (
        context
        * values.get("per_device_train_batch_size", 8)
        * flags.get("num_processes", 1)
        * values.get("gradient_accumulation_steps", 1)
    )
    if cell.tokens < per_step:
        raise InputError(
            f"tokens: {cell.tokens} is less than one step of {per_step} tokens; give more"
        )
    own = {
        "n_layer": cell.n_layer,
        "n_embd": cell.n_embd,
        "n_head": cell.n_embd // HEAD_WIDTH,
        "max_steps": round(cell.tokens / per_step),
        "output_dir": folder / cell.name,
    }
    one = [] if "num_processes" in flags else ["--num_processes", "1"]
    return [
        "pretrain",
        *shared,
        *one,
        *QUIET,
        *(w for k, v in own.items() for w in (f"--{k}", str(v))),
    ]


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    pretrain_args: Sequence[str],
    *,
    jobs: int = 1,
    retries: int = 1,
) -> tuple[dict[Cell, dict[str, Any]], list[str]]:
    """Train the cells that are not finished, `jobs` at a time; what each prints goes to
    `<cell>.log` beside it.

    Returns the `run.json` of each finished cell, and the names of those that failed `retries` + 1
    times.

    Raises:
        InputError: a finished cell was trained with other arguments, or one cannot be trained with
            these.
    """
    commands = {cell: cell_command(cell, folder, pretrain_args) for cell in cells}
    records = {cell: _finished(folder / cell.name, commands[cell]) for cell in cells}
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {
            pool.submit(_train, commands[cell], folder / cell.name, retries): cell
            for cell, record in records.items()
            if not record
        }
        finished = len(cells) - len(waiting)
        print(f"{finished} of {len(cells)} cells are finished; logs and runs: {folder}", flush=True)
        for number, future in enumerate(as_completed(waiting), finished + 1):
            cell = waiting[future]
            try:
                records[cell] = record = future.result()
            except InputError:  # the others would end alike
                pool.shutdown(cancel_futures=True)
                raise
            result = f"failed {retries + 1} times; see {folder / cell.name}.log"
            if record:
                loss, seconds = record["metrics"]["eval_loss"], record["train"]["seconds"]
                result = f"loss {loss:.4f} after {seconds:.0f} s"
            print(f"cell {number} of {len(cells)}, {cell.name}: {result}", flush=True)
    done = {cell: record for cell, record in records.items() if record}
    return done, [cell.name for cell in cells if cell not in done]


def _finished(run: Path, command: list[str]) -> dict[str, Any] | None:
    """The record of a finished run; None: there is none."""
    try:
        record = json.loads((run / "run.json").read_text("utf-8"))
        trained_by = record["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    trained_with = shlex.join(split_flags(shlex.split(trained_by))[1])  # by any launcher
    if shlex.join(split_flags(command[1:])[1]) not in trained_with:
        raise InputError(f"{run}: was trained with other arguments; name another --output_dir")
    return record


def _train(command: list[str], run: Path, retries: int) -> dict[str, Any] | None:
    """The record of the run; None: every try failed. Raises InputError: the run found its own input
    wrong, which another try would not change.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    log = Path(f"{run}.log")
    for _ in range(retries + 1):
        # --overwrite: the folder holds at most what a failed try left
        words = [sys.executable, "-m", "hfscale.cli", *command, "--overwrite", "true"]
        with log.open("a", encoding="utf-8") as out:
            status = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, env=env).returncode
        if status == 0:
            return _finished(run, command)
        if status == 2:
            said = [
                line
                for line in log.read_text("utf-8", "replace").splitlines()
                if line.startswith("error: ")
            ]
            raise InputError(
                f"pretrain_args: {said[-1].removeprefix('error: ') if said else f'see {log}'}"
            )
    return None


def read_runs(
    path: str, n_column: str, d_column: str, loss_column: str, group_column: str | None = None
) -> tuple[dict[str, list[tuple[float, float, float]]], list[dict[str, Any]]]:
    """(parameters, tokens, loss) of each run in a CSV file (also .gz or .zst), by group, and the
    lines left out with the reason.

    Raises:
        InputError: no such file, a column that it does not have, or no usable run.
    """
    from hfscale.data.files import open_bytes

    wanted = [n_column, d_column, loss_column, *([group_column] if group_column else [])]
    groups: dict[str, list[tuple[float, float, float]]] = {}
    dropped: list[dict[str, Any]] = []
    try:
        with open_bytes(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            rows = csv.DictReader(text)
            heads = rows.fieldnames or []
            if missing := [name for name in wanted if name not in heads]:
                raise InputError(
                    f"fit_csv {path}: no column '{missing[0]}'; it has {', '.join(heads) or 'none'}"
                )
            for row in rows:
                if reason := _why_not(row, wanted):
                    dropped.append({"line": rows.line_num, "reason": reason})
                    continue
                group = row[group_column] if group_column else "all"
                groups.setdefault(group, []).append(
                    tuple(_positive(row[name]) for name in wanted[:3])
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"fit_csv {path}: cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not groups:
        raise InputError(f"fit_csv {path}: no line with a positive {', '.join(wanted[:3])}")
    return groups, dropped


def _why_not(row: dict[str | None, Any], wanted: Sequence[str]) -> str | None:
    """Why a line is no run; None: it is one."""
    if (
        None in row
    ):  # a comma within a number, as in 1,000,000, moves what follows into other columns
        return "it has more fields than the first line"
    for name in wanted[:3]:
        if _positive(row[name]) is None:
            return f"{name} is '{row[name] or ''}', not a positive number"
    return None


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
