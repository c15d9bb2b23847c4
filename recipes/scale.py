"""How the loss falls with data and model size: a grid of runs, a fitted law with intervals, a
forecast that is tested.

hfscale scale --config tiny_cpu                                      (a grid of small models on two
CPU cores) hfscale scale --fit_csv runs.csv --n_column params --d_column tokens --loss_column loss
--group_column corpus sbatch --array=0-11 --wrap 'hfscale scale --config my.yaml --cell
$SLURM_ARRAY_TASK_ID'
"""

import json
import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from hfscale.config import parse_args
from hfscale.folders import check_writable, write_atomically
from hfscale.process import InputError, run


@dataclass
class ScaleArguments:
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
    jobs: int = field(default=1, metadata={"help": "cells trained at a time"})
    retries: int = field(default=1, metadata={"help": "how often a failed cell is tried again"})
    cell: int | None = field(
        default=None, metadata={"help": "train only this cell, from 0, and stop: for job arrays"}
    )
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
    equal_exponents: bool = field(
        default=False, metadata={"help": "fit alpha = beta: one number less"}
    )
    budgets: list[float] = field(
        default_factory=list,
        metadata={
            "help": "training FLOPs to split between size and data; default: the grid's own range"
        },
    )
    resamples: int = field(default=500, metadata={"help": "of the bootstrap"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap"})
    output_dir: str = field(
        default="runs/scale", metadata={"help": "cells, law.json and scaling.png"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace law.json and scaling.png; cells stay"}
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(ScaleArguments, argv, recipe=__file__)
    folder = Path(args.output_dir)
    _check(args, folder)

    from hfscale.scaling.grid import parse_cells, read_runs, run_cells
    from hfscale.scaling.law import check_determined, fit_law
    from hfscale.scaling.page import draw_law, print_law

    held, dropped, forecasts = [], [], []
    if args.fit_csv:
        groups, dropped = read_runs(
            args.fit_csv, args.n_column, args.d_column, args.loss_column, args.group_column
        )
        for name, points in groups.items():
            sizes, tokens, _ = zip(*points, strict=True)
            place = f"fit_csv {args.fit_csv}" + (
                f", {args.group_column} {name}" if args.group_column else ""
            )
            check_determined(sizes, tokens, args.equal_exponents, place)
    else:
        cells = parse_cells(
            [f"{size}-{count}" for size in args.sizes for count in args.tokens], "sizes, tokens"
        )
        held = parse_cells(args.hold_out, "hold_out")
        if not cells or {*held} & {*cells}:
            raise InputError(
                "sizes, tokens, hold_out: the grid is empty, or a cell of it is also held out"
            )
        train = partial(
            run_cells,
            folder=folder / "cells",
            pretrain_args=args.pretrain_args,
            jobs=args.jobs,
            retries=args.retries,
        )
        if args.cell is not None:
            if not 0 <= args.cell < len(cells) + len(held):
                raise InputError(
                    f"cell: got {args.cell}, expected 0 to {len(cells) + len(held) - 1}"
                )
            raise SystemExit(1 if train([[*cells, *held][args.cell]])[1] else 0)
        models = [(cell.n_layer, cell.n_embd) for cell in cells]
        check_determined(
            [models.index(model) for model in models],
            [cell.tokens for cell in cells],
            args.equal_exponents,
            "sizes, tokens",
        )
        records, dropped = train(cells)
        groups = {
            "grid": [
                (r["model"][args.count], r["train"]["tokens"], r["metrics"]["eval_loss"])
                for r in records.values()
            ]
        }

    fits = {
        name: fit_law(
            *([point[i] for point in points] for i in range(3)),
            resamples=args.resamples,
            equal_exponents=args.equal_exponents,
            seed=args.seed,
            progress=f"bootstrap of {name}",
        )
        for name, points in groups.items()
    }
    for cell in held:  # before it runs
        n = cell.parameters(next(iter(records.values())), args.count)
        forecasts.append(
            {
                "cell": cell.name,
                "parameters": n,
                "tokens": cell.tokens,
                "measured": None,
                **fits["grid"].forecast(n, cell.tokens),
            }
        )
    laws = {
        name: {
            "runs": len(groups[name]),
            "points": groups[name],
            **fit.record(),
            "splits": [fit.split(flops) for flops in args.budgets or _range(groups[name])],
        }
        for name, fit in fits.items()
    }
    record = {
        "schema_version": 1,
        "recipe": "scale",
        "config": asdict(args),
        "laws": laws,
        "dropped": dropped,
        "forecasts": forecasts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "law.json", json.dumps(record, indent=2) + "\n")
    if held:
        records, _ = train(held)
        for cell, forecast in zip(held, forecasts, strict=True):
            forecast["measured"] = (
                records[cell]["metrics"]["eval_loss"] if cell in records else None
            )
        write_atomically(folder / "law.json", json.dumps(record, indent=2) + "\n")
    draw_law(folder / "scaling.png", fits, groups, forecasts)
    print_law(record)
    print(f"law.json and scaling.png: {folder}")


def _check(args: ScaleArguments, folder: Path) -> None:
    check_writable(f"output_dir {folder}", folder)
    if (folder / "law.json").exists() and args.cell is None and not args.overwrite:
        raise InputError(
            f"output_dir {folder}: holds law.json; name another, or --overwrite it (cells are kept)"
        )
    for name, least in (("jobs", 1), ("resamples", 1), ("retries", 0)):
        if getattr(args, name) < least:
            raise InputError(f"{name}: got {getattr(args, name)}, expected at least {least}")
    if wrong := [flops for flops in args.budgets if not 0 < flops < math.inf]:
        raise InputError(f"budgets: got {wrong[0]}, expected numbers above 0")


def _range(points: list[tuple]) -> list[float]:
    """The largest budget of the grid, and ten and a hundred times as much."""
    return [factor * max(6 * n * d for n, d, _ in points) for factor in (1, 10, 100)]


if __name__ == "__main__":
    run(main)
