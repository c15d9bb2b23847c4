"""A fitted scaling law as a picture and as a table on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from hfscale.report.pictures import in_picture
from hfscale.report.tables import show_records
from hfscale.scaling.law import Fit
from hfscale.shown import show_text

LISTS = ("points", "splits", "warnings")  # of a law, not in its table
MOST_CURVES = 6  # more are a smear: the colours of the points tell the rest
AXES = ("parameters N", "training tokens D")
TITLE = "Scaling law: loss = E + A / N^alpha + B / D^beta, fitted to measured runs"
NARROW = 30  # a range of less than this factor has one power of ten, or two


def draw_law(
    path: Path,
    fits: Mapping[str, Fit],
    groups: Mapping[str, Sequence[tuple]],
    forecasts: Sequence[dict[str, Any]],
) -> None:
    """Save a PNG, one row per fit to its runs (parameters, tokens, loss): loss against tokens and
    against parameters with the fitted curves and forecasts, and iso-FLOP curves with the
    compute-optimal point of each.
    """
    figure = Figure(figsize=(16, 4.2 * len(fits)), layout="constrained")
    axes = figure.subplots(len(fits), 3, squeeze=False)
    for row, (name, fit) in zip(axes, fits.items(), strict=True):
        _draw_losses(row[0], fit, groups[name], forecasts, over=1)
        _draw_losses(row[1], fit, groups[name], forecasts, over=0)
        _draw_iso_flops(row[2], fit, groups[name])
        law = fit.law
        formula = (
            f"{round(law.E, 6):.3g} + {law.A:.3g}/N^{law.alpha:.3g} + {law.B:.3g}/D^{law.beta:.3g}"
        )
        law_of_row = f"{in_picture(name)}: {formula}"
        row[0].set_title(f"{law_of_row}\nloss over tokens", loc="left", fontsize=10)
        row[1].set_title("loss over parameters", loc="left", fontsize=10)
        row[2].set_title("loss at equal compute, by the law", loc="left", fontsize=10)
    figure.suptitle(TITLE, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_losses(
    axis: Axes, fit: Fit, points: Sequence[tuple], forecasts: Sequence[dict[str, Any]], over: int
) -> None:
    """Loss over tokens (`over` 1) or parameters (0): the runs, coloured by the other of the two,
    and the law's curves for at most six of its values, in the same colours.
    """
    other = 1 - over
    runs = np.array(points, dtype=np.float64)  # (runs, 3)
    new = [(forecast["parameters"], forecast["tokens"]) for forecast in forecasts]
    seen = np.array([*runs[:, :2], *new])
    key = ScalarMappable(
        LogNorm(seen[:, other].min(), seen[:, other].max()),
        ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256))),  # without the pale end
    )
    xs = np.geomspace(seen[:, over].min() / 1.3, seen[:, over].max() * 1.3, 80)
    for value in _some(np.unique(seen[:, other])):
        losses = fit.law.loss(value, xs) if over else fit.law.loss(xs, value)
        axis.plot(xs, losses, color=key.to_rgba(value), lw=1)
    axis.plot([], [], color="dimgray", lw=1, label="the fitted law")
    axis.scatter(runs[:, over], runs[:, 2], s=16, c=key.to_rgba(runs[:, other]), zorder=3)
    axis.plot([], [], "o", color="dimgray", ms=4, label="measured run")
    _draw_forecasts(axis, forecasts, "tokens" if over else "parameters")
    axis.legend(fontsize=7)
    axis.set(xscale="log", xlabel=AXES[over], ylabel="loss, nats per token")
    _short_ticks(axis.xaxis, seen[:, over])
    bar = axis.figure.colorbar(key, ax=axis, label=f"colour: {AXES[other]}", pad=0.01)
    _short_ticks(bar.ax.yaxis, seen[:, other])


def _short_ticks(axis: Axis, values: Sequence[float] | np.ndarray) -> None:
    """Ticks as 300k or 2M; between powers of ten only where there would else be one or none."""
    short = EngFormatter(sep="")
    axis.set_major_formatter(short)
    is_narrow = max(values) < NARROW * min(values)
    if is_narrow:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter(short if is_narrow else NullFormatter())


def _some(values: np.ndarray) -> np.ndarray:
    """At most MOST_CURVES of the sorted values, evenly spread on a logarithmic scale, both ends
    among them.
    """
    if len(values) <= MOST_CURVES:
        return values
    wanted = np.geomspace(values[0], values[-1], MOST_CURVES)
    nearest = [np.argmin(np.abs(np.log(values / want))) for want in wanted]
    return values[np.unique(nearest)]


def _draw_forecasts(axis: Axes, forecasts: Sequence[dict[str, Any]], name: str) -> None:
    """Each forecast with its interval, and what was measured, each kind named once."""
    for i, forecast in enumerate(forecasts):
        low, high = forecast["loss_ci90"]
        label = "" if i else "forecast with its 90 % interval"
        axis.vlines(forecast[name], low, high, color="black", label=label)
        axis.plot([forecast[name]], [forecast["loss"]], "_", color="black")
    measured = [forecast for forecast in forecasts if forecast["measured"] is not None]
    if measured:
        xs = [forecast[name] for forecast in measured]
        losses = [forecast["measured"] for forecast in measured]
        axis.plot(
            xs,
            losses,
            "*",
            color="crimson",
            ms=10,
            label="forecast run, measured afterwards",
            zorder=4,
        )


def _draw_iso_flops(axis: Axes, fit: Fit, points: Sequence[tuple]) -> None:
    """Loss over parameters at five equal budgets, from the least to the largest of the runs."""
    used = [6 * n * d for n, d, _ in points]
    shown_sizes = []
    for flops in np.geomspace(min(used), max(used), 5).tolist():
        best_n, best_d = fit.law.optimal(flops)
        shown_sizes += [best_n / 8, best_n * 8]
        sizes = np.geomspace(best_n / 8, best_n * 8, 60)
        losses = fit.law.loss(sizes, flops / 6 / sizes)
        (line,) = axis.plot(sizes, losses, lw=1, label=f"{flops:.2g} FLOPs")
        lowest = float(fit.law.loss(best_n, best_d))  # falls from one budget to the next
        axis.plot([best_n], [lowest], "o", color=line.get_color(), ms=5)
    axis.set(
        xscale="log",
        xlabel="parameters N at equal compute 6ND",
        ylabel="loss, nats per token",
        ylim=(0.9 * lowest, 1.2 * max(loss for *_, loss in points)),
    )
    _short_ticks(axis.xaxis, shown_sizes)
    axis.plot([], [], "o", color="dimgray", ms=5, label="compute-optimal size")
    axis.legend(fontsize=7, title="budget 6ND", title_fontsize=7)


def print_law(record: dict[str, Any]) -> None:
    """What `law.json` says, as tables."""
    laws = record["laws"]
    show_records(
        [{"law": name} | _without_lists(law) for name, law in laws.items()],
        title="L = E + A / N^alpha + B / D^beta, with 95 % intervals",
        joint="\n",
    )
    show_records(
        [{"law": name} | split for name, law in laws.items() for split in law["splits"]],
        title="compute-optimal split, with 95 % intervals",
        joint="\n",
    )
    if record["forecasts"]:
        rows = [
            forecast | {"measured": forecast["measured"] or "not run"}
            for forecast in record["forecasts"]
        ]
        show_records(rows, title="forecasts, with 90 % intervals")
    for name, law in laws.items():
        for warning in law["warnings"]:
            show_text(f"warning: {name}: {warning}")
    for left_out in record["dropped"]:
        if isinstance(left_out, dict):  # a line of a table
            show_text(f"left out: line {left_out['line']}: {left_out['reason']}")
        else:  # a cell
            show_text(f"left out: {left_out}")


def _without_lists(law: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in law.items() if name not in LISTS}
