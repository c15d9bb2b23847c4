"""Whether the difference between two models is larger than what another seed would give."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfscale.evaluation.scores import System
from hfscale.evaluation.training_runs import held_out_fingerprint
from hfscale.process import InputError
from hfscale.report.seed_noise import metrics_of, seed_groups, siblings_of, single_reach
from hfscale.report.tables import number
from hfscale.run_record import read_record

UNKNOWN = (
    "seed noise is unknown, and another seed may make such a difference: no run that differs from "
    "one of these in its seed alone was measured on this; score one beside them"
)


def add_seed_noise(
    comparisons: Sequence[dict[str, Any]], systems: Sequence[System], fingerprint: str | None
) -> None:
    """Add to each comparison of models `seed_noise` (the standard deviation over seeds, or None),
    `seeds` (how many tell it) and `seed_note`, what that says of the difference.

    It is known where runs that differ in their seed alone are among the models that are scored; and
    of a text that the runs held out, where such runs lie beside the model's folder: then it is that
    of the values in their run.json.

    Args:
        comparisons: of `compare_systems`.
        systems: all that were scored.
        fingerprint: of what was scored.
    """
    if not all("model" in system.settings for system in systems):  # saved predictions
        return
    records = [record for system in systems if (record := _record_of(system.name))]
    scored = {system.name: system.metrics for system in systems}
    groups = [[record["name"] for record in group] for group in seed_groups(records)]
    beside = {record["name"]: _siblings(record, fingerprint) for record in records}
    for comparison in comparisons:
        values = [
            _values(comparison["metric"], comparison[side], groups, scored, beside)
            for side in ("first", "second")
        ]
        if values[0] == values[1]:  # the two are of one group
            values = values[:1]
        noise = single_reach(values)
        comparison |= {"seed_noise": None, "seeds": 0, "seed_note": UNKNOWN}
        if noise is not None:
            is_larger = abs(comparison["difference"]) > noise.reach
            comparison |= {
                "seed_noise": noise.deviation,
                "seeds": noise.seeds,
                "seed_note": f"{'more' if is_larger else 'no more'} than another seed would give: "
                f"95 % of the differences between two seeds are below {number(noise.reach, 3)} "
                f"(standard deviation {number(noise.deviation, 3)} over {noise.seeds} seeds)",
            }


def _values(
    metric: str,
    name: str,
    groups: Sequence[Sequence[str]],
    scored: dict[str, dict[str, Any]],
    beside: dict[str, list[dict[str, Any]]],
) -> list[float]:
    """A metric of each run that differs from a model's in its seed alone, and of itself; nothing
    where there is none.
    """
    for group in groups:
        if name in group:
            return [scored[sibling][metric.removeprefix("eval_")] for sibling in group]
    siblings = beside.get(name)
    return metrics_of(siblings).get(metric, []) if siblings else []


def _siblings(record: dict[str, Any], fingerprint: str | None) -> list[dict[str, Any]]:
    """The runs beside a model's folder that differ in their seed alone, where it was scored on the
    text that they held out.
    """
    if held_out_fingerprint(record) != fingerprint:
        return []
    return siblings_of(Path(record["name"]).resolve())


def _record_of(name: str) -> dict[str, Any] | None:
    """The record of a finished run; None: the model is of something else, such as a checkpoint."""
    with contextlib.suppress(InputError):
        return read_record(name, "model") | {"name": name}
    return None
