"""What a study of scaling says: a law for each group of runs, and forecasts that are tested."""

from collections.abc import Mapping, Sequence
from typing import Any

from hfscale.scaling.grid import Cell, Point
from hfscale.scaling.law import Fit, check_determined, fit_law

# Of the largest budget among the runs: what is split between size and data where nothing is said.
BUDGET_FACTORS = (1, 10, 100)


def check_table(
    groups: Mapping[str, Sequence[Point]],
    equal_exponents: bool,
    fit_csv: str,
    group_column: str | None,
) -> None:
    """Raise InputError, with the table and the group, unless each group's runs can determine a law
    (see `check_determined`).
    """
    for name, points in groups.items():
        place = f"fit_csv {fit_csv}"
        if group_column:
            place += f", {group_column} {name}"
        parameters = [point.parameters for point in points]
        tokens = [point.tokens for point in points]
        check_determined(parameters, tokens, equal_exponents, place)


def check_grid(cells: Sequence[Cell], equal_exponents: bool) -> None:
    """Raise InputError unless the cells, once trained, can determine a law."""
    models = [(cell.n_layer, cell.n_embd) for cell in cells]
    sizes = [models.index(model) for model in models]  # a number for each model, before it is built
    tokens = [cell.tokens for cell in cells]
    check_determined(sizes, tokens, equal_exponents, "sizes, tokens")


def fit_groups(
    groups: Mapping[str, Sequence[Point]],
    *,
    resamples: int,
    equal_exponents: bool = False,
    seed: int = 0,
) -> dict[str, Fit]:
    """A law for each group of runs; a bar shows how far its bootstrap is. Raises as `fit_law`."""
    return {
        name: fit_law(
            [point.parameters for point in points],
            [point.tokens for point in points],
            [point.loss for point in points],
            resamples=resamples,
            equal_exponents=equal_exponents,
            seed=seed,
            progress=f"bootstrap of {name}",
        )
        for name, points in groups.items()
    }


def law_records(
    fits: Mapping[str, Fit], groups: Mapping[str, Sequence[Point]], budgets: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """By group: its runs, the five numbers with intervals, and how each budget (training FLOPs;
    default: the largest of the runs, and ten and a hundred times as much) is best split.
    """
    records = {}
    for name, fit in fits.items():
        points = groups[name]
        largest = max(6 * point.parameters * point.tokens for point in points)
        flops = budgets or [factor * largest for factor in BUDGET_FACTORS]
        records[name] = {
            "runs": len(points),
            "points": points,
            **fit.record(),
            "splits": [fit.split(budget) for budget in flops],
        }
    return records


def forecast_cells(
    fit: Fit, cells: Sequence[Cell], like: dict[str, Any], count: str
) -> list[dict[str, Any]]:
    """The loss to expect of each held-out cell, before it is trained: `measured` is None. `like` is
    the `run.json` of a cell of the grid, `count` what N counts (see `Cell.parameters`).
    """
    forecasts = []
    for cell in cells:
        parameters = cell.parameters(like, count)
        forecasts.append(
            {
                "cell": cell.name,
                "parameters": parameters,
                "tokens": cell.tokens,
                "measured": None,
                **fit.forecast(parameters, cell.tokens),
            }
        )
    return forecasts
