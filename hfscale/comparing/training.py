"""The runs of a comparison: which there are, trained here or finished before."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from hfscale.comparing.study import Runs, check_runs
from hfscale.comparing.variants import Plan, Variant, run_name
from hfscale.many_runs import finished_record, log_of, train_all

Cell: TypeAlias = tuple[Variant, int]  # a variant and a seed


def all_cells(variants: Sequence[Variant], seeds: int) -> list[Cell]:
    """Every run, the pairs of the first seed first."""
    return [(variant, seed) for seed in range(seeds) for variant in variants]


def train_cells(
    plan: Plan,
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 1,
    retries: int = 1,
    metric: str | None = None,
) -> tuple[Runs, list[dict[str, str]]]:
    """Train the runs that are not finished (see `train_all`): the finished ones, and of those that
    failed their name, their log and the reason.

    Raises InputError: as `train_all`, or runs that cannot be compared (see `check_runs`), at the
        first of them.
    """
    names = {run_name(variant, seed): (variant.name, seed) for variant, seed in cells}
    records, failed = train_all(
        {
            run_name(variant, seed): plan.command(variant, seed, folder / run_name(variant, seed))
            for variant, seed in cells
        },
        folder,
        jobs=jobs,
        retries=retries,
        place="recipe_args, vary",
        check=lambda done: check_runs(plan, {names[n]: done[n] for n in done}, metric),
    )
    reason = f"failed {retries + 1} times"
    lost = [{"run": name, "log": str(log_of(folder / name)), "reason": reason} for name in failed]
    return {names[name]: record for name, record in records.items()}, lost


def train_in_rounds(
    plan: Plan, seeds: int, folder: Path, is_enough: Callable[[Runs], bool] | None, **options: Any
) -> tuple[Runs, list[dict[str, str]]]:
    """Train all seeds of all variants; with `is_enough` seed after seed, until it says so. See
    `train_cells` for the rest.
    """
    if is_enough is None:
        return train_cells(plan, all_cells(plan.variants, seeds), folder, **options)
    runs: Runs = {}
    failed: list[dict[str, str]] = []
    for seed in range(seeds):
        cells = [(variant, seed) for variant in plan.variants]
        found, lost = train_cells(plan, cells, folder, **options)
        runs |= found
        failed += lost
        if is_enough(runs):
            break
    return runs, failed


def finished_runs(plan: Plan, cells: Sequence[Cell], folder: Path) -> Runs:
    """The runs that are finished, none trained; raises InputError: one of other arguments."""
    runs: Runs = {}
    for variant, seed in cells:
        run = folder / run_name(variant, seed)
        if record := finished_record(run, plan.command(variant, seed, run)):
            runs[variant.name, seed] = record
    return runs


def run_folders(
    variants: Sequence[Variant], runs: Runs, folder: Path
) -> dict[tuple[str, int], Path]:
    """Where each run lies, by variant and seed."""
    by_name = {variant.name: variant for variant in variants}
    return {(name, seed): folder / run_name(by_name[name], seed) for name, seed in runs}


def not_finite(
    runs: Runs, variants: Sequence[Variant], metric: str, folder: Path
) -> list[dict[str, str]]:
    """Of the runs whose metric is no finite number the name, the log and the reason."""
    folders = run_folders(variants, runs, folder)
    reason = f"{metric} is not a finite number"
    return [
        {"run": folders[key].name, "log": str(log_of(folders[key])), "reason": reason}
        for key, record in runs.items()
        if record["metrics"].get(metric) is None
    ]
