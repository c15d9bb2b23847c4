"""The runs that a law is fitted to: a grid of `pretrain` runs over size and tokens, or a table of
finished ones.
"""

import csv
import io
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.architectures import SIZES
from hfscale.arguments import SHAPE_NAMES
from hfscale.config import check_recipe_args, shipped
from hfscale.launch import split_flags
from hfscale.many_runs import Record, recipe_words, shared_flags, train_all
from hfscale.process import InputError

HEAD_WIDTH = 32  # of small models; their number follows from the width
# A cell is judged once, at its end, and keeps nothing of the way there.
QUIET = {
    "eval_on_start": "false",
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
}


class Point(NamedTuple):
    """A finished run, as the law sees it."""

    parameters: float
    tokens: float  # that it was trained on
    loss: float  # on held-out text, in nats per token


class Cell(NamedTuple):
    """One run of the grid; its learning rate schedule ends with its last token."""

    n_layer: int
    n_embd: int
    tokens: int

    @property
    def name(self) -> str:
        """Folder of the cell, such as 4x128-1000000."""
        return f"{self.n_layer}x{self.n_embd}-{self.tokens}"

    @property
    def sizes(self) -> dict[str, int]:
        """Of the model, in the names of `ShapeArguments`."""
        return {
            "num_hidden_layers": self.n_layer,
            "hidden_size": self.n_embd,
            "num_attention_heads": self.n_embd // HEAD_WIDTH,
        }

    def parameters(self, like: dict[str, Any], count: str) -> int:
        """Parameters of the cell's model, before it is built, from the `run.json` of a cell that
        shares all but its size; `count` as in `run.json`'s `model`.
        """
        # A model is made, of no weights: all of torch.
        from hfscale.models import count_parameters
        from hfscale.new_models import meta_model, new_config

        recipe = shipped("recipes", "pretrain.py")["pretrain"]
        given = check_recipe_args(recipe, recipe_words(shlex.split(like["command"])))
        fields = {name: given[name] for name in SHAPE_NAMES if name in given}
        fields |= given.get("model_config", {})
        fields["architecture"] = given.get("architecture", "gpt2")

        def counts(sizes: dict[str, int], vocab_size: int) -> dict[str, int]:
            config = new_config(**fields | sizes, vocab_size=vocab_size)
            return count_parameters(meta_model(config))

        # Each token takes as many parameters, whatever the architecture.
        one, two = (counts({}, words)["parameters"] for words in (1, 2))
        vocab_size = 1 + (like["model"]["parameters"] - one) // (two - one)
        return counts(self.sizes, vocab_size)[count]


class Grid(NamedTuple):
    """The cells that the law is fitted to, and those that it forecasts."""

    cells: list[Cell]
    held_out: list[Cell]


def plan_grid(sizes: Sequence[str], tokens: Sequence[int], hold_out: Sequence[str]) -> Grid:
    """Each of the sizes with each number of tokens, and the cells that are held out.

    Raises InputError: no cells, one that is also held out, or as `parse_cells`.
    """
    names = [f"{size}-{count}" for size in sizes for count in tokens]
    grid = Grid(parse_cells(names, "sizes, tokens"), parse_cells(hold_out, "hold_out"))
    if not grid.cells or set(grid.held_out) & set(grid.cells):
        raise InputError(
            "sizes, tokens, hold_out: the grid is empty, or a cell of it is also held out"
        )
    return grid


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

    Raises InputError: arguments that pretrain does not take, or fewer tokens than a step has.
    """
    shared = shared_flags(pretrain_args, "pretrain_args")
    launcher_flags, of_recipe = split_flags(shared)
    values = check_recipe_args(shipped("recipes", "pretrain.py")["pretrain"], of_recipe)
    tokens_per_step = _tokens_per_step(values, launcher_flags.get("num_processes", 1))
    if cell.tokens < tokens_per_step:
        raise InputError(
            f"tokens: {cell.tokens} is less than one step of {tokens_per_step} tokens; give more"
        )
    flags: dict[str, Any] = QUIET | {
        **cell.sizes,
        "max_steps": round(cell.tokens / tokens_per_step),
        "output_dir": folder / cell.name,
    }
    words = ["pretrain", *shared]
    if "num_processes" not in launcher_flags:
        words += ["--num_processes", "1"]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    return words


def _tokens_per_step(values: dict[str, Any], processes: int) -> int:
    """Of an optimizer step of pretrain with these values, its defaults for the others."""
    max_length = values.get("max_length") or values.get(
        "max_position_embeddings", SIZES["max_position_embeddings"]
    )
    rows = values.get("per_device_train_batch_size", 8)
    return max_length * rows * values.get("gradient_accumulation_steps", 1) * processes


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    pretrain_args: Sequence[str],
    *,
    jobs: int = 1,
    retries: int = 1,
) -> tuple[dict[Cell, Record], list[str]]:
    """Train the cells that are not finished (see `train_all`). Returns the `run.json` of each
    finished cell, and the names of those that failed.
    """
    records, failed = train_all(
        {cell.name: cell_command(cell, folder, pretrain_args) for cell in cells},
        folder,
        jobs=jobs,
        retries=retries,
        kind="cell",
        place="pretrain_args",
    )
    return {cell: records[cell.name] for cell in cells if cell.name in records}, failed


def grid_points(records: Iterable[dict[str, Any]], count: str) -> list[Point]:
    """Of the `run.json` of each finished cell; `count` as in `run.json`'s `model`."""
    return [
        Point(record["model"][count], record["train"]["tokens"], record["metrics"]["eval_loss"])
        for record in records
    ]


def read_runs(
    path: str, n_column: str, d_column: str, loss_column: str, group_column: str | None = None
) -> tuple[dict[str, list[Point]], list[dict[str, Any]]]:
    """The runs in a CSV file (also .gz or .zst), by group, and the lines left out with the reason.

    Raises:
        InputError: no such file, a column that it does not have, or no usable run.
    """
    from hfscale.data.files import open_bytes

    number_columns = [n_column, d_column, loss_column]
    columns = [*number_columns, group_column] if group_column else number_columns
    groups: dict[str, list[Point]] = {}
    dropped: list[dict[str, Any]] = []
    try:
        with open_bytes(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            rows = csv.DictReader(text)
            _check_columns(path, columns, rows.fieldnames or [])
            for row in rows:
                try:
                    point = _read_point(row, number_columns)
                except ValueError as error:
                    dropped.append({"line": rows.line_num, "reason": str(error)})
                    continue
                group = row[group_column] if group_column else "all"
                groups.setdefault(group, []).append(point)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"fit_csv {path}: cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not groups:
        raise InputError(f"fit_csv {path}: no line with a positive {', '.join(number_columns)}")
    return groups, dropped


def _check_columns(path: str, needed: Sequence[str], present: Sequence[str]) -> None:
    for name in needed:
        if name not in present:
            raise InputError(
                f"fit_csv {path}: no column '{name}'; it has {', '.join(present) or 'none'}"
            )


def _read_point(row: dict[str | Any, Any], columns: Sequence[str]) -> Point:
    """The run of a line; raises ValueError, with the reason: it is none."""
    # A comma within a number, as in 1,000,000, moves what follows into other columns. The csv
    # module puts what is left over under the name None.
    if None in row:
        raise ValueError("it has more fields than the first line")
    return Point(*(_positive(name, row[name]) for name in columns))


def _positive(name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is '{text or ''}', not a positive number")
    return value
