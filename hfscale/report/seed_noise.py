"""Seed noise: how far apart runs end that were asked for the same but for their seeds. Its size is
the standard deviation over the seeds, n of them.
"""

import contextlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.folders import RUN_RECORD
from hfscale.process import InputError
from hfscale.report.comparison import (
    HELD_OUT,
    HELD_OUT_TEXT,
    TRAINED_TEXT,
    is_per_token,
    is_quality,
    judged_on,
    same_measure,
    settings_of,
)
from hfscale.run_record import read_record

SEEDS = ("seed", "data_seed")
OTHER_TEXTS = (
    "differ in their seed alone, but each held out another part of the text; give a "
    "--validation_source, or --split_by position, and their numbers can be compared"
)


class Noise(NamedTuple):
    """Of one metric over the runs of a group."""

    mean: float
    deviation: float  # the standard deviation, with n - 1 below
    seeds: int


class Difference(NamedTuple):
    """Of one metric between two groups of runs, the second's mean less the first's."""

    difference: float
    difference_ci95: tuple[float, float]
    is_shown: bool  # whether it is larger than what other seeds would give


class SingleReach(NamedTuple):
    """What is known of the noise of one metric."""

    deviation: float  # the standard deviation over seeds
    seeds: int
    reach: float  # below it are 95 % of the differences between two seeds


def seed_groups(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs that differ in their seeds alone, two or more of them together; of equal seeds the
    first run counts. What no text is known for, such as a stream, is in no group.
    """
    groups = _grouped(records, ())
    return [group for group in groups if len(group) > 1]


def _grouped(
    records: Sequence[dict[str, Any]], left_out: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Runs of equal settings, but for their seeds and those `left_out`."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        settings = settings_of(record)
        if HELD_OUT_TEXT not in settings:
            continue
        seeds = json.dumps([settings.pop(name, None) for name in SEEDS])
        for name in left_out:
            settings.pop(name, None)
        key = json.dumps(settings, sort_keys=True, default=str)
        groups.setdefault(key, {}).setdefault(seeds, record)
    return [list(group.values()) for group in groups.values()]


def judged_on_other_texts(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups whose runs differ, beside their seeds, in which part of the text they held out: their
    numbers are of different texts, so they tell no noise.
    """
    groups = _grouped(records, (TRAINED_TEXT, HELD_OUT_TEXT))
    known = [[record["name"] for record in group] for group in seed_groups(records)]
    return [
        group
        for group in groups
        if len(group) > 1 and [record["name"] for record in group] not in known
    ]


def noise_of(values: Sequence[float]) -> Noise:
    """Of two or more values, each of another seed."""
    return Noise(statistics.fmean(values), statistics.stdev(values), len(values))


def metrics_of(group: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """{metric: its value in each run}, of those on held-out text that all runs of a group have."""
    first = group[0]["metrics"]
    found = {}
    for name in filter(is_quality, first):
        values = [record["metrics"].get(name) for record in group]
        if all(isinstance(value, int | float) for value in values):
            found[name] = values
    return found


def compare_seeds(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """The difference of two groups' means with the 95 % interval of Student's t, for which both are
    taken to be as noisy; None: neither has two seeds.

    Each has a value for each seed. Source: Student 1908, "The probable error of a mean", as the
    two-sample test with one variance.
    """
    variance, freedom = _within([first, second])
    if not freedom:
        return None
    difference = statistics.fmean(second) - statistics.fmean(first)
    error = (variance * (1 / len(first) + 1 / len(second))) ** 0.5
    reach = _student(freedom) * error
    return Difference(difference, (difference - reach, difference + reach), abs(difference) > reach)


def noise_rows(groups: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each metric of each of the `seed_groups`: their runs, the metric, its Noise."""
    return [
        {"runs": _names(group), "metric": metric, **noise_of(values)._asdict()}
        for group in groups
        for metric, values in metrics_of(group).items()
    ]


def said_of_other_texts(records: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each group of `judged_on_other_texts`."""
    return [f"{_names(group)}: {OTHER_TEXTS}" for group in judged_on_other_texts(records)]


def differences_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each later group of runs against the first, by metric, where both are measured alike and one
    of them has two seeds: `metric`, `first` and `second` (their runs), and its Difference.
    """
    first, *others = _grouped(records, ()) or [[]]
    rows = []
    for second in others:
        of_first, of_second = metrics_of(first), metrics_of(second)
        for metric in of_first.keys() & of_second.keys():
            found = compare_seeds(of_first[metric], of_second[metric])
            if found and _is_measured_alike(metric, first[0], second[0]):
                runs = {"metric": metric, "first": _names(first), "second": _names(second)}
                rows.append(runs | found._asdict())
    return sorted(rows, key=lambda row: list(first[0]["metrics"]).index(row["metric"]))


def _is_measured_alike(metric: str, first: dict[str, Any], second: dict[str, Any]) -> bool:
    part = judged_on(first, metric) or HELD_OUT
    texts_and_tokens = [same_measure(record, part) for record in (first, second)]
    texts = [measure[0] for measure in texts_and_tokens]
    return len(set(texts_and_tokens if is_per_token(metric) else texts)) == 1


def _names(group: Sequence[dict[str, Any]]) -> str:
    return ", ".join(record["name"] for record in group)


def single_reach(groups: Sequence[Sequence[float]]) -> SingleReach | None:
    """How far apart two runs of one seed each can be by their seeds alone, from groups of values of
    other seeds, which may be empty; None: no group has two.
    """
    variance, freedom = _within(groups)
    if not freedom:
        return None
    deviation = variance**0.5
    seeds = sum(len(group) for group in groups if len(group) > 1)
    return SingleReach(deviation, seeds, _student(freedom) * 2**0.5 * deviation)


def _within(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The variance within groups, and its degrees of freedom."""
    freedom = sum(len(group) - 1 for group in groups if group)
    squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
    return (squares / freedom if freedom else 0.0), freedom


def _student(freedom: int) -> float:
    """Within how many standard errors 95 % of differences lie."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def siblings_of(folder: Path) -> list[dict[str, Any]]:
    """The finished runs beside a run, and it, that differ in their seeds alone, the run first; none
    where there is no other.
    """
    beside = sorted(path.parent for path in folder.parent.glob(f"*/{RUN_RECORD}"))
    records = []
    for path in [folder, *(path for path in beside if path != folder)]:
        with contextlib.suppress(InputError):  # of another kind, or damaged
            records.append(read_record(str(path), "model") | {"name": str(path)})
    for group in seed_groups(records):
        if group[0]["name"] == str(folder):
            return group
    return []
