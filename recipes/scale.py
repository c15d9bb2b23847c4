"""How the loss falls with data and model size: a grid of runs, a fitted law with intervals, a
forecast that is tested.

A grid of small models on two CPU cores; a table of finished runs; one cell of a grid, for a job
array:
hfscale scale --config tiny_cpu
hfscale scale --fit_csv runs.csv --n_column params --d_column tokens --group_column corpus
sbatch --array=0-12 --wrap 'hfscale scale --config my.yaml --cell $SLURM_ARRAY_TASK_ID'
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfscale.config import parse_args
from hfscale.folders import check_output_file, describe_run, write_json
from hfscale.process import run


@dataclass
class GridArguments:
    """The runs that are trained here."""

    sizes: list[str] = field(
        default_factory=list, metadata={"help": "models: layers x width, such as 2x64 4x128"}
    )
    tokens: list[int] = field(
        default_factory=list, metadata={"help": "training tokens, for each of the sizes"}
    )
    hold_out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "cells as size-tokens, such as 6x192-4000000: forecast first, then trained, "
            "never fitted"
        },
    )
    pretrain_args: list[str] = field(
        default_factory=lambda: ["config=tiny_cpu"],
        metadata={"help": "what all cells share: name=value for hfscale pretrain"},
    )
    count: Literal["parameters", "parameters_without_embeddings"] = field(
        default="parameters", metadata={"help": "what N counts"}
    )
    jobs: int = field(default=1, metadata={"help": "cells trained at a time", "min": 1})
    retries: int = field(
        default=1, metadata={"help": "how often a failed cell is tried again", "min": 0}
    )
    cell: int | None = field(
        default=None, metadata={"help": "train only this cell, from 0, and stop: for job arrays"}
    )


@dataclass
class TableArguments:
    """Runs that are finished already, as lines of a table."""

    fit_csv: str | None = field(
        default=None,
        metadata={"help": "fit this table instead of training (also .csv.gz, .csv.zst)"},
    )
    n_column: str = field(default="N", metadata={"help": "its column of parameters"})
    d_column: str = field(default="D", metadata={"help": "its column of training tokens"})
    loss_column: str = field(
        default="loss", metadata={"help": "its column of losses, in nats per token"}
    )
    group_column: str | None = field(
        default=None, metadata={"help": "a law for each value of this column"}
    )


@dataclass
class ScaleArguments(GridArguments, TableArguments):
    equal_exponents: bool = field(
        default=False, metadata={"help": "fit alpha = beta: one number less"}
    )
    budgets: list[float] = field(
        default_factory=list,
        metadata={
            "help": "training FLOPs to split between size and data; default: the grid's own range",
            "min": 1,
            "max": 1e40,
        },
    )
    resamples: int = field(default=500, metadata={"help": "of the bootstrap", "min": 1})
    seed: int = field(default=0, metadata={"help": "of the bootstrap"})
    output_dir: str = field(
        default="runs/scale", metadata={"help": "cells, law.json and scaling.png"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace law.json and scaling.png; cells stay"}
    )


def main(argv: list[str] | None = None) -> dict[str, Any] | bool:
    args = parse_args(ScaleArguments, argv, recipe=__file__)
    started = time.perf_counter()
    trains_one_cell = args.cell is not None  # which writes no law, whoever wrote one before
    law_file = check_output_file(
        args.output_dir, "law.json", overwrite=args.overwrite or trains_one_cell
    )

    from hfscale.many_runs import pick_cell
    from hfscale.scaling.grid import Cell, grid_points, plan_grid, read_runs
    from hfscale.scaling.page import draw_law, print_law
    from hfscale.scaling.study import (
        check_grid,
        check_table,
        fit_groups,
        forecast_cells,
        law_records,
    )

    # One cell of a grid, for a job array.
    if trains_one_cell:
        grid = plan_grid(args.sizes, args.tokens, args.hold_out)
        _, failed = train(args, [pick_cell([*grid.cells, *grid.held_out], args.cell)])
        return not failed

    # The runs: of a table, or of a grid that is trained here.
    held_out: list[Cell] = []
    finished: dict[Cell, dict] = {}
    dropped: list
    if args.fit_csv:
        groups, dropped = read_runs(
            args.fit_csv, args.n_column, args.d_column, args.loss_column, args.group_column
        )
        check_table(groups, args.equal_exponents, args.fit_csv, args.group_column)
    else:
        cells, held_out = plan_grid(args.sizes, args.tokens, args.hold_out)
        check_grid(cells, args.equal_exponents)
        finished, dropped = train(args, cells)
        groups = {"grid": grid_points(finished.values(), args.count)}

    # A law for each group, and what it forecasts of the cells that are held out.
    fits = fit_groups(
        groups,
        resamples=args.resamples,
        equal_exponents=args.equal_exponents,
        seed=args.seed,
    )
    forecasts = []
    if held_out:
        like = next(iter(finished.values()))
        forecasts = forecast_cells(fits["grid"], held_out, like, args.count)
    record = {
        **describe_run(__file__, args, argv, time.perf_counter() - started),
        "laws": law_records(fits, groups, args.budgets),
        "dropped": dropped,
        "forecasts": forecasts,
    }
    law_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(law_file, record)

    # The forecasts are tested once they are written down.
    if held_out:
        finished, _ = train(args, held_out)
        for cell, forecast in zip(held_out, forecasts, strict=True):
            if cell in finished:
                forecast["measured"] = finished[cell]["metrics"]["eval_loss"]
        record["seconds"] = time.perf_counter() - started
        write_json(law_file, record)
    draw_law(law_file.with_name("scaling.png"), fits, groups, forecasts)
    print_law(record)
    print(f"law.json and scaling.png: {args.output_dir}")
    return record


def train(args: ScaleArguments, cells: list) -> tuple[dict, list[str]]:
    """The `run.json` of each cell that is finished, and the names of those that failed."""
    from hfscale.scaling.grid import run_cells

    return run_cells(
        cells,
        folder=Path(args.output_dir, "cells"),
        pretrain_args=args.pretrain_args,
        jobs=args.jobs,
        retries=args.retries,
    )


if __name__ == "__main__":
    run(main)
