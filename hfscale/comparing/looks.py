"""What was looked at in a folder before: what is decided after a look is told apart, and stays
counted.

Nothing heavy is imported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfscale.comparing.variants import Plan, Variant
from hfscale.process import InputError
from hfscale.run_record import read_json

RECORD = "comparison.json"


def read_looks(output_dir: str) -> tuple[list[dict[str, Any]], list[Variant]]:
    """What was looked at in this folder so far, the first time first (`metric`, `variants`,
    `seeds`, `stop_early`), and the variants of all of it; nothing where there is no record.

    Raises InputError: a comparison.json that is not readable.
    """
    path = Path(output_dir, RECORD)
    if not path.is_file():
        return [], []
    next_step = "name another --output_dir, or delete it"
    record = read_json(path, f"output_dir {output_dir}", next_step)
    try:
        variants = [Variant(one["variant"], list(one["flags"])) for one in record["variants"]]
        looks = [dict(look) for look in record["looks"]]
        if not all({"metric", "variants", "seeds", "stop_early"} <= look.keys() for look in looks):
            raise KeyError("looks")
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"output_dir {output_dir}: its {RECORD} is of another program; {next_step}"
        ) from None
    return looks, variants


def join_variants(earlier: Sequence[Variant], plan: Plan, output_dir: str) -> list[Variant]:
    """Those of before and those that are new, in this order: what was looked at stays counted.

    Raises InputError: another baseline, or a name that means other flags now.
    """
    known = {variant.name: variant for variant in earlier}
    baseline = plan.variants[0]
    if earlier and earlier[0].name != baseline.name:
        raise InputError(
            f"output_dir {output_dir}: its baseline is {earlier[0].name}, not {baseline.name}; "
            "name the baseline first, or another --output_dir"
        )
    for variant in plan.variants:
        if known.get(variant.name, variant) != variant:
            raise InputError(
                f"output_dir {output_dir}: {variant.name} has other flags there "
                f"({' '.join(known[variant.name].flags)}); name another --output_dir"
            )
    return [*earlier, *(variant for variant in plan.variants if variant.name not in known)]


def add_look(
    looks: Sequence[dict[str, Any]],
    metric: str,
    variants: Sequence[Variant],
    seeds: int,
    stop_early: bool,
) -> list[dict[str, Any]]:
    """The looks with this one, unless it is the last one again."""
    names = [variant.name for variant in variants]
    look = {"metric": metric, "variants": names, "seeds": seeds, "stop_early": stop_early}
    return [*looks] if looks and looks[-1] == look else [*looks, look]


def after_looking(looks: Sequence[dict[str, Any]], variant: str) -> str | None:
    """What was decided about a comparison after its numbers, or others', had been looked at; None:
    nothing was. The last of the looks is the present one.
    """
    first, now = looks[0], looks[-1]
    reasons = []
    if variant not in first["variants"]:
        reasons.append("variant added")
    if now["metric"] != first["metric"]:
        reasons.append("metric changed")
    # The always-valid test may be looked at as often as one likes.
    if now["seeds"] > first["seeds"] and not all(look["stop_early"] for look in looks):
        reasons.append("seeds added")
    if not now["stop_early"] and any(look["stop_early"] for look in looks):
        reasons.append("stopped by a look")
    return ", ".join(reasons) or None
