"""Two runs that should be one, compared in the order in which a run comes about: the first
difference explains those that follow from it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.replaying.original import Original

EQUAL = "equal"
NEAR = "within tolerance"
DIFFERS = "differs"
NOT_RECORDED = "not recorded"
NOT_REACHED = "not reached"
# What a run comes about by, in order.
STAGES = (
    "versions",
    "text",
    "tokenizer",
    "initial weights",
    "batches",
    "losses",
    "final weights",
    "metrics",
)
# Of hardware: with the same, the same program gives the same bits.
SAME_MACHINE = ("device", "device_name", "cpu_threads", "world_size", "distributed_type")
# Elsewhere sums are rounded in another order. Relative, of a loss, a metric, and the length of the
# difference of all final weights; measured in docs/replaying.md.
TOLERANCE = {"losses": 1e-3, "final weights": 0.03, "metrics": 1e-3}
TOLERANCE_BF16 = {"losses": 2**-7, "final weights": 2**-2, "metrics": 2**-6}
OF_SPEED = ("_runtime", "_per_second")  # ends of metrics that no run repeats


class Difference(NamedTuple):
    """Where two runs part, with both values; `step` is that of batches and losses."""

    what: str
    was: Any
    now: Any
    step: int = 0


class Compared(NamedTuple):
    """What became of a stage: its first difference, how many values were compared, how far the
    numbers among them are apart at most, as a part of the earlier ones, and the names of those that
    one of the runs does not tell.
    """

    stage: str
    result: str
    num_values: int = 0
    difference: Difference | None = None
    apart: float = 0.0
    not_recorded: tuple[str, ...] = ()


class Rules(NamedTuple):
    """How close numbers have to be: not at all apart, or within a tolerance, for a reason."""

    tolerance: dict[str, float] | None  # by stage; None: to the last bit
    reason: str


def rules_for(before: Mapping[str, Any], now: Mapping[str, Any], *, bf16: bool) -> Rules:
    """To the last bit, where two records' `hardware` is the same as far as both tell."""
    changed = [
        f"{name} was {before[name]}, is {now[name]}"
        for name in SAME_MACHINE
        if name in before and name in now and before[name] != now[name]
    ]
    if not changed:
        return Rules(None, "the same machine and processes: equal to the last bit")
    tolerance = TOLERANCE_BF16 if bf16 else TOLERANCE
    shown = ", ".join(f"{name} {value:g}" for name, value in tolerance.items())
    return Rules(
        tolerance,
        f"{'; '.join(changed)}: sums are rounded in another order; allowed, as a part of the "
        f"number: {shown}",
    )


def compare_values(
    stage: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    tolerance: float | None = None,
) -> Compared:
    """Values by name, in the order of the earlier run; those that only one of the two has are not
    recorded.
    """
    missing = tuple(name for name in {**before, **now} if name not in before or name not in now)
    shared = [name for name in before if name in now]
    differences = (
        Difference(name if name == stage else f"{stage}, {name}", before[name], now[name])
        for name in shared
        if not _is_near(before[name], now[name], tolerance)
    )
    apart = max((_distance(before[name], now[name]) for name in shared), default=0.0)
    return _judged(stage, len(shared), next(differences, None), apart, missing)


def _judged(
    stage: str,
    count: int,
    difference: Difference | None,
    apart: float,
    missing: tuple[str, ...] = (),
) -> Compared:
    if count == 0:
        return Compared(stage, NOT_RECORDED, not_recorded=missing)
    result = DIFFERS if difference else NEAR if apart else EQUAL
    return Compared(stage, result, count, difference, apart, missing)


def _is_near(before: Any, now: Any, tolerance: float | None) -> bool:
    return _distance(before, now) <= (tolerance or 0.0)


def _distance(before: Any, now: Any) -> float:
    """How far two numbers, or those of two lists, are apart, as a part of the earlier one; of other
    values 0 for equal ones, else infinite.
    """
    if before == now:
        return 0.0
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return max(_distance(a, b) for a, b in zip(before, now, strict=True))
    are_numbers = all(isinstance(value, int | float) for value in (before, now))
    return abs(now - before) / abs(before) if are_numbers and before else math.inf


def start_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run began with, in the names of `training.traces.Start`; without what it does not
    tell.
    """
    start = {
        "text": _known(record["data"].get("fingerprint") or {}),
        "tokenizer": record["data"].get("tokenizer_fingerprint"),
        "initial_weights": record["model"].get("initial_fingerprint"),
    }
    return _known(start)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def compare_start(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Compared]:
    """Text, tokenizer and first weights of two runs, see `start_in`."""
    stages = [compare_values("text", before.get("text", {}), _known(now.get("text") or {}))]
    for name in ("tokenizer", "initial_weights"):
        stage = name.replace("_", " ")
        was, is_now = ({stage: run[name]} if run.get(name) else {} for run in (before, now))
        stages.append(compare_values(stage, was, is_now))
    return stages


def compare_training(original: Original, replayed: Original, rules: Rules) -> list[Compared]:
    """What the steps were given, what came of them, and what was left and measured at the end."""
    tolerance = rules.tolerance or {}
    was, is_now = map(_lasting_metrics, (original, replayed))
    return [
        _compare_batches(original, replayed),
        _compare_losses(original.logs, replayed.logs, tolerance.get("losses")),
        _compare_final_weights(original, replayed, tolerance.get("final weights")),
        compare_values("metrics", was, is_now, tolerance.get("metrics")),
    ]


def _lasting_metrics(run: Original) -> dict[str, Any]:
    metrics = run.record["metrics"]
    return {name: value for name, value in metrics.items() if not name.endswith(OF_SPEED)}


def _by_step(logs: Sequence[Mapping[str, Any]], name: str) -> dict[int, Any]:
    """A value of the training's logs, where it is told, by the step."""
    kept = [log for log in logs if log.get(name) is not None and "step" in log]
    return {log["step"]: log[name] for log in kept}


def _batches_of(run: Original) -> dict[int, str]:
    """The fingerprint of all batches up to each log, and up to the last step, by the step."""
    train = run.record["train"]
    last = train.get("batches_fingerprint")
    at_the_end = {train["steps"]: last} if last else {}
    return at_the_end | _by_step(run.logs, "batches")


def _compare_batches(original: Original, replayed: Original) -> Compared:
    """The first fingerprint that differs says that a batch since the log before does."""
    was, is_now = _batches_of(original), _batches_of(replayed)
    steps = sorted(was.keys() & is_now.keys())
    last_equal = 0
    for step in steps:
        if was[step] != is_now[step]:
            what = f"batches of steps {last_equal + 1} to {step}, by their fingerprint"
            if step == last_equal + 1:
                what = f"batch of step {step}, by its fingerprint"
            difference = Difference(what, was[step], is_now[step], step)
            return _judged("batches", len(steps), difference, math.inf)
        last_equal = step
    return _judged("batches", len(steps), None, 0.0)


def _compare_losses(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], tolerance: float | None
) -> Compared:
    was, is_now = _by_step(before, "loss"), _by_step(now, "loss")
    steps = sorted(was.keys() & is_now.keys())
    differences = (
        Difference(f"loss at step {step}", was[step], is_now[step], step)
        for step in steps
        if not _is_near(was[step], is_now[step], tolerance)
    )
    apart = max((_distance(was[step], is_now[step]) for step in steps), default=0.0)
    return _judged("losses", len(steps), next(differences, None), apart)


def _compare_final_weights(
    original: Original, replayed: Original, tolerance: float | None
) -> Compared:
    """By the fingerprint of their files; where they need not be equal, by their numbers."""
    stage = "final weights"
    prints = [run.record["model"].get("fingerprint") for run in (original, replayed)]
    if None in prints:
        return Compared(stage, NOT_RECORDED)
    if tolerance is None or prints[0] == prints[1]:
        return compare_values(stage, {stage: prints[0]}, {stage: prints[1]})
    distance = weights_distance(original.folder, replayed.folder)
    if distance is None:  # their files are gone
        return Compared(stage, NOT_RECORDED)
    difference = None
    if distance > tolerance:
        what = f"final weights, apart by {distance:.2g} of their length, by their fingerprint"
        difference = Difference(what, *prints)
    return _judged(stage, 1, difference, distance)


def weights_distance(first: Path, second: Path) -> float | None:
    """The length of the difference of all weights in two folders as a part of the first's; None:
    they have not the same ones.
    """
    from safetensors import safe_open

    from hfscale.models import weights_files

    squares = apart = 0.0
    for name in (path.name for path in weights_files(first)):
        if not (second / name).is_file():
            return None
        with (
            safe_open(first / name, framework="pt") as one,
            safe_open(second / name, framework="pt") as other,
        ):
            if {*one.keys()} != {*other.keys()}:
                return None
            for key in one.keys():  # noqa: SIM118 - it is no mapping
                weights = one.get_tensor(key).double()
                squares += weights.square().sum().item()
                apart += (weights - other.get_tensor(key).double()).square().sum().item()
    return math.sqrt(apart / squares) if squares else None


def first_difference(compared: Sequence[Compared]) -> Difference | None:
    """Of all stages; batches and losses are one, in the order of their steps."""
    found = [entry.difference for entry in compared if entry.difference is not None]
    if not found:
        return None
    first = found[0]
    losses = [entry.difference for entry in compared if entry.stage == "losses"]
    earlier_loss = losses[0] if losses and first.step else None
    return earlier_loss if earlier_loss and earlier_loss.step < first.step else first
