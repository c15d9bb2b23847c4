"""What a replay found: on the screen, and as replay.json."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfscale.folders import REPLAY_RECORD, describe_run, write_json
from hfscale.process import versions
from hfscale.replaying.comparison import (
    NOT_REACHED,
    STAGES,
    Compared,
    Rules,
    compare_values,
    first_difference,
    rules_for,
)
from hfscale.replaying.original import Original
from hfscale.report.tables import show_table
from hfscale.shown import show_text


def compare_versions(original: Original) -> Compared:
    """The versions that the record tells with those that are here."""
    before = original.record["versions"]
    here = versions()
    return compare_values("versions", before, {name: here[name] for name in before if name in here})


def rules_of(original: Original, replayed: Original | None) -> Rules | None:
    """How close the numbers of the two have to be; None: it did not come to any."""
    if replayed is None:
        return None
    bf16 = any(run.record["config"].get("bf16") for run in (original, replayed))
    return rules_for(original.record["hardware"], replayed.record["hardware"], bf16=bf16)


def outcome_of(
    original: Original, compared: Sequence[Compared], rules: Rules | None
) -> dict[str, Any]:
    """What replay.json says beside what all records do."""
    difference = first_difference(compared)
    reached = {entry.stage: entry for entry in compared}
    stages = [reached.get(stage, Compared(stage, NOT_REACHED)) for stage in STAGES]
    return {
        "run": str(original.folder),
        "is_equal": difference is None,
        "rule": rules.reason if rules else None,
        "tolerance": rules.tolerance if rules else None,
        "first_difference": difference._asdict() if difference else None,
        "compared": [
            {
                "stage": entry.stage,
                "result": entry.result,
                "values": entry.num_values,
                "first_difference": entry.difference._asdict() if entry.difference else None,
                "apart": entry.apart if math.isfinite(entry.apart) else None,
                "not_recorded": list(entry.not_recorded),
            }
            for entry in stages
        ],
    }


def write_outcome(
    recipe: str,
    args: Any,
    argv: list[str] | None,
    seconds: float,
    output_dir: str,
    outcome: dict[str, Any],
) -> None:
    """Write replay.json into the replay's folder; the first arguments are of `describe_run`."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(output_dir, REPLAY_RECORD), describe_run(recipe, args, argv, seconds) | outcome)


def show_outcome(outcome: dict[str, Any], output_dir: str) -> None:
    """Print a row for each stage, and the first difference in a sentence."""
    rows = [(entry["stage"], entry["result"], _told(entry)) for entry in outcome["compared"]]
    show_table(("compared", "result", ""), rows)
    if outcome["rule"]:
        show_text(outcome["rule"])
    first = outcome["first_difference"]
    if first:
        show_text(f"first difference: {first['what']}: was {first['was']}, is {first['now']}")
    else:
        beyond = " beyond that" if outcome["tolerance"] else ""
        show_text(f"no difference from {outcome['run']}{beyond}")
    show_text(f"{REPLAY_RECORD}: {output_dir}")


def _told(entry: dict[str, Any]) -> str:
    parts = []
    if entry["values"] > 1:
        parts.append(f"{entry['values']} values")
    if entry["apart"]:
        parts.append(f"apart by {entry['apart']:.1e} at most")
    if entry["not_recorded"]:
        names = entry["not_recorded"]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"not recorded: {', '.join(names[:3])}{more}")
    return "; ".join(parts)
