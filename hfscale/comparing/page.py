"""A comparison as a picture and as tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from hfscale.comparing.sentences import p_text, pairing_sentences, power_sentence, sentence
from hfscale.comparing.study import Runs, has_same_tokens
from hfscale.report.comparison import is_per_token
from hfscale.report.page import read_curve
from hfscale.report.pictures import in_picture
from hfscale.report.tables import duration, in_one_format, show_table, size_of
from hfscale.shown import show_text

PICTURE = "comparison.png"
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9")
TRAINING_LOSS = "loss"
BELOW = 0.15  # of its line, where the dots of a row lie, in rows
COST_HEADS = {"cpu_seconds": "CPU time", "seconds": "time"}


class Curves(NamedTuple):
    """What was logged on the way, of each variant a line for each seed: {step or tokens: value}."""

    value: str  # its name in the log
    over: str  # "steps" or "tokens"
    lines: dict[str, list[dict[float, float]]]


def read_curves(folders: Mapping[tuple[str, int], Path], runs: Runs, metric: str) -> Curves | None:
    """The metric over the way, or where it was measured only at the end the training loss; None:
    neither can be drawn, as losses per token of variants with other tokens.

    Args:
        folders: of the runs, by variant and seed.
    """
    logs = {key: read_curve(str(folders[key])) for key in runs}
    values = [metric, TRAINING_LOSS]
    if not has_same_tokens(runs):
        values = [value for value in values if not is_per_token(value)]
    # Where runs are of different lengths, their tokens say how far one is.
    has_same_length = len({record["train"]["steps"] for record in runs.values()}) <= 1
    over, unit = ("step", "steps") if has_same_length else ("num_input_tokens_seen", "tokens")
    for value in values:
        lines = {key: _line(log, over, value) for key, log in logs.items()}
        if lines and all(len(line) > 1 for line in lines.values()):
            by_variant: dict[str, list[dict[float, float]]] = {}
            for (name, _), line in lines.items():
                by_variant.setdefault(name, []).append(line)
            return Curves(value, unit, by_variant)
    return None


def _line(log: Sequence[Mapping[str, Any]], over: str, value: str) -> dict[float, float]:
    return {
        entry[over]: entry[value]
        for entry in log
        if isinstance(entry.get(value), int | float) and isinstance(entry.get(over), int | float)
    }


# ---- the picture


def draw_comparison(path: Path, record: Mapping[str, Any], curves: Curves | None) -> None:
    """Save a PNG: each variant's curve (mean over seeds, and the band from the least to the
    largest), and its differences to the baseline (a dot for each seed, the mean and its interval).
    """
    names = [one["variant"] for one in record["variants"]]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    tested = [one for one in record["comparisons"] if "difference" in one]
    figure = Figure(figsize=(12, 4.4 + 0.5 * max(0, len(tested) - 5)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_curves(left, curves, colours)
    _draw_differences(right, record, tested, colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_curves(axes: Axes, curves: Curves | None, colours: Mapping[str, str]) -> None:
    title = "learning curves: mean over seeds, band from least to largest"
    axes.set_title(title, loc="left", fontsize=10)
    if curves is None:
        axes.text(0.5, 0.5, "no curve that all runs logged", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    for name, lines in curves.lines.items():
        places = sorted(set.intersection(*(set(line) for line in lines)))
        values = np.array([[line[place] for place in places] for line in lines])  # (seeds, places)
        axes.plot(places, values.mean(axis=0), color=colours[name], label=in_picture(name), lw=1.5)
        axes.fill_between(
            places, values.min(axis=0), values.max(axis=0), color=colours[name], alpha=0.2, lw=0
        )
    shown = "training loss" if curves.value == TRAINING_LOSS else curves.value
    axes.set(xlabel=curves.over, ylabel=in_picture(shown))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(fontsize=8)


def _draw_differences(
    axes: Axes,
    record: Mapping[str, Any],
    tested: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
) -> None:
    """A row for each variant, the first on top."""
    better = "left" if record["lower_is_better"] else "right"
    title = f"{record['metric']} minus that of {record['baseline']}, pair by pair"
    axes.set_title(in_picture(title), loc="left", fontsize=10)
    if not tested:
        axes.text(0.5, 0.5, "nothing to compare", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    by_name = {one["variant"]: one["by_seed"] for one in record["variants"]}
    first = by_name[record["baseline"]]
    for row, one in enumerate(tested):
        colour = colours[one["variant"]]
        pairs = [(value, first.get(seed)) for seed, value in by_name[one["variant"]].items()]
        dots = [value - other for value, other in pairs if None not in (value, other)]
        axes.plot(dots, [row + BELOW] * len(dots), "o", color=colour, alpha=0.6, ms=6)
        axes.plot([one["difference"]], [row], "|", color=colour, ms=16, mew=3)
        if one["difference_ci95"]:
            axes.hlines(row, *one["difference_ci95"], color=colour, lw=3)
        axes.annotate(
            in_picture(_row_label(one)),
            (0.02, row - BELOW),
            xycoords=("axes fraction", "data"),
            va="bottom",
            fontsize=9,
        )
    axes.axvline(0, color="dimgray", lw=1, ls="--")
    axes.set_yticks([])
    axes.set_ylim(len(tested) - 0.5, -0.7)
    axes.set_xlabel(f"lines: 95 % intervals, dots: seeds; better to the {better}")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _row_label(comparison: Mapping[str, Any]) -> str:
    label = f"{comparison['variant']}: {comparison['verdict']}, p {_p(comparison)}"
    looked = comparison["after_looking"]
    return f"{label}, after looking" if looked else label


def _p(comparison: Mapping[str, Any]) -> str:
    return p_text(comparison["p_value_holm"])


# ---- the terminal


def print_comparison(record: Mapping[str, Any]) -> None:
    """What `comparison.json` says, as a table and as sentences."""
    show_table(*_table(record), title=f"{record['metric']} over {record['seeds']} seeds")
    notes = []
    if record["metric_reason"]:
        notes.append(f"Judged by {record['metric']}: {record['metric_reason']}.")
    notes += [sentence(record, one) for one in record["comparisons"]]
    notes += pairing_sentences(record["comparisons"])
    notes += [power_sentence(one, record["metric"], record["baseline"]) for one in record["power"]]
    notes += [_failed(one) for one in record["failed"]]
    for note in notes:
        show_text(note)


def _failed(run: Mapping[str, str]) -> str:
    return f"failed: {run['run']} ({run['reason']}); see {run['log']}"


def _table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: of each variant its mean, the difference, how sure it is, and its cost."""
    variants = record["variants"]
    tests = {one["variant"]: one for one in record["comparisons"]}
    means = in_one_format([one["mean"] for one in variants])
    several = any(one.get("holm_over", 0) > 1 for one in tests.values())
    heads = ["variant", record["metric"], "difference [95 %]", "p, Holm" if several else "p"]
    heads += ["verdict", COST_HEADS[record["cost"]], "memory"]
    rows = [
        [one["variant"], mean, *_test_cells(tests.get(one["variant"])), *_cost_cells(one, record)]
        for one, mean in zip(variants, means, strict=True)
    ]
    return heads, rows


def _test_cells(comparison: Mapping[str, Any] | None) -> list[str]:
    if comparison is None:
        return ["", "", "baseline"]
    if "difference" not in comparison:
        return ["", "", "not tested"]
    ends = comparison["difference_ci95"] or []
    value, *ends = in_one_format([comparison["difference"], *ends], 3)
    interval = f"\n[{', '.join(ends)}]" if ends else ""
    looked = "\nafter looking" if comparison["after_looking"] else ""
    p_value = _p(comparison).removeprefix("= ")
    return [f"{value}{interval}", p_value, f"{comparison['verdict']}{looked}"]


def _cost_cells(variant: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    cost, memory = variant[record["cost"]], variant["memory_peak_bytes"]
    return [
        "unknown" if cost is None else duration(cost),
        "unknown" if memory is None else size_of(memory),
    ]
