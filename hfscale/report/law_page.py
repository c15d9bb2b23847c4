"""A fitted scaling law as a picture and as a table on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfscale.report.tables import show_records
from hfscale.scaling.law import Fit

LISTS = ("points", "splits", "warnings")  # of a law, not in its table


def draw_law(path: Path, fits: dict[str, Fit], groups: dict[str, Sequence[tuple]],
             forecasts: Sequence[dict[str, Any]]) -> None:
    """Save a PNG, one row per fit to its runs (parameters, tokens, loss): loss against tokens and against parameters
    with the fitted curves and forecasts, and iso-FLOP curves with the compute-optimal point of each."""
    figure = Figure(figsize=(14, 4.2 * len(fits)), layout="constrained")
    axes = figure.subplots(len(fits), 3, squeeze=False)
    for row, (name, fit) in zip(axes, fits.items(), strict=True):
        _draw_losses(row[0], fit, groups[name], forecasts, over=1)
        _draw_losses(row[1], fit, groups[name], forecasts, over=0)
        _draw_iso_flops(row[2], fit, groups[name])
        row[0].set_title(f"{name}: {fit.law.E:.3g} + {fit.law.A:.3g}/N^{fit.law.alpha:.3g} + "
                         f"{fit.law.B:.3g}/D^{fit.law.beta:.3g}", loc="left", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_losses(axis: Axes, fit: Fit, points: Sequence[tuple], forecasts: Sequence[dict], over: int) -> None:
    """Loss over tokens (`over` 1), a curve per size, or over parameters (0), a curve per number of tokens."""
    runs = np.array(points, dtype=np.float64)  # (runs, 3)
    seen = np.array([*runs[:, :2], *((f["parameters"], f["tokens"]) for f in forecasts)])
    xs = np.geomspace(seen[:, over].min() / 1.3, seen[:, over].max() * 1.3, 80)
    lines = np.unique(seen[:, 1 - over])
    for value, color in zip(lines, colormaps["viridis"](np.linspace(0, 0.9, len(lines))), strict=True):
        axis.plot(xs, fit.law.loss(*((value, xs) if over else (xs, value))), color=color, lw=1)
        mine = runs[runs[:, 1 - over] == value]
        axis.plot(mine[:, over], mine[:, 2], "o", color=color, ms=4,
                  label=f"{'N' if over else 'D'} = {value:.3g}" if len(lines) <= 12 else None)
    for forecast in forecasts:
        x = forecast["tokens" if over else "parameters"]
        axis.vlines(x, *forecast["loss_ci90"], color="black", label="forecast, 90 %")
        axis.plot([x], [forecast["loss"]], "_", color="black")
        if forecast["measured"] is not None:
            axis.plot([x], [forecast["measured"]], "*", color="crimson", ms=10, label="held out, measured")
    axis.set(xscale="log", xlabel=f"{'training tokens D' if over else 'parameters N'}", ylabel="loss, nats per token")
    if len(lines) <= 12 or forecasts:
        axis.legend(fontsize=7)


def _draw_iso_flops(axis: Axes, fit: Fit, points: Sequence[tuple]) -> None:
    budgets = np.geomspace(min(6 * n * d for n, d, _ in points), max(6 * n * d for n, d, _ in points), 5)
    for flops in budgets:
        best, _ = fit.law.optimal(flops)
        ns = np.geomspace(best / 8, best * 8, 60)
        line, = axis.plot(ns, fit.law.loss(ns, flops / 6 / ns), lw=1, label=f"{flops:.2g} FLOPs")
        axis.plot([best], [fit.law.loss(best, flops / 6 / best)], "o", color=line.get_color(), ms=5)
    axis.set(xscale="log", xlabel="parameters N at equal compute 6ND", ylabel="loss, nats per token",
             ylim=(None, 1.2 * max(loss for *_, loss in points)))
    axis.legend(fontsize=7, title="dots: compute-optimal", title_fontsize=7)


def print_law(record: dict[str, Any]) -> None:
    """What `law.json` says, as tables."""
    laws = record["laws"].items()
    show_records([{"law": name, **{key: law[key] for key in law if key not in LISTS}} for name, law in laws],
                 title="L = E + A / N^alpha + B / D^beta, with 95 % intervals", joint="\n")
    show_records([{"law": name, **split} for name, law in laws for split in law["splits"]],
                 title="compute-optimal split, with 95 % intervals", joint="\n")
    if record["forecasts"]:
        show_records([{**forecast, "measured": forecast["measured"] or "not run"} for forecast in record["forecasts"]],
                     title="forecasts, with 90 % intervals")
    for line in [f"warning: {name}: {warning}" for name, law in laws for warning in law["warnings"]]:
        print(line)
    for line in record["dropped"]:
        print(f"left out: {line}")
