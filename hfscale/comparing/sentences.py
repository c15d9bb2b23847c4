"""A comparison in sentences that a person can quote.

Nothing heavy is imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hfscale.report.tables import in_one_format, number, p_value

LEAST_P_VALUE = 1e-12  # smaller ones are of no use to anybody
SAME_TOKENS = 0.005  # ratios nearer to 1 are left of padding
COSTS = {"cpu_seconds": "CPU seconds", "seconds": "seconds"}
PAIRED = {
    "held_out_text": "held-out text",
    "held_out_tokens": "its tokens",
    "training_rows_in_order": "training rows in their order",
    "initial_weights": "initial weights",
}


def p_text(value: float | None) -> str:
    """A p-value with its sign: = 0.03, < 1e-12; nothing to test: none."""
    if value is None:
        return "= none"
    text = p_value(value, LEAST_P_VALUE)
    return text if text.startswith("<") else f"= {text}"


def sentence(record: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """What one comparison found, over how many seeds, how sure it is, and at what cost."""
    name, baseline, metric = comparison["variant"], record["baseline"], record["metric"]
    if "difference" not in comparison:
        return f"{name} against {baseline}: {comparison['note']}."
    parts = [f"{_opening(comparison)} {_found(comparison, baseline, metric)} ({_p(comparison)})"]
    if ratio := comparison["cost_ratios"][record["cost"]]:
        parts.append(f" at {ratio:.2f} times the {COSTS[record['cost']]} of {baseline}")
    tokens = comparison["cost_ratios"]["tokens"]
    if tokens and abs(tokens - 1) > SAME_TOKENS:
        parts.append(f", on {tokens:.2f} times its training tokens")
    return "".join([*parts, "."])


def _opening(comparison: Mapping[str, Any]) -> str:
    looked = comparison["after_looking"]
    over = f"ver {comparison['seeds']} paired seeds,"
    return f"After looking ({looked}), o{over}" if looked else f"O{over}"


def _found(comparison: Mapping[str, Any], baseline: str, metric: str) -> str:
    """Lowers or raises by how much, or is not shown to change it."""
    difference, interval = comparison["difference"], comparison["difference_ci95"]
    if difference == 0 and comparison["standard_deviation"] == 0:
        return f"{comparison['variant']} gives the very same {metric} as {baseline}, seed by seed"
    is_shown = comparison["verdict"] != "not shown"
    # Of a fall, people say how far it is, not that it is negative.
    sign = -1 if is_shown and difference < 0 else 1
    ends = sorted(sign * end for end in interval or [])
    value, *shown_ends = in_one_format([sign * difference, *ends], 3)
    within = f"[{', '.join(shown_ends)}]" if shown_ends else "[no interval yet]"
    if is_shown:
        verb = "lowers" if difference < 0 else "raises"
        return f"{comparison['variant']} {verb} {metric} by {value} {within}"
    return (
        f"{comparison['variant']} is not shown to change {metric} against {baseline}: "
        f"{value} {within}"
    )


def _p(comparison: Mapping[str, Any]) -> str:
    kind = "always-valid p" if comparison["test"].startswith("always") else "p"
    text = f"{kind} {p_text(comparison['p_value_holm'])}"
    if comparison["holm_over"] > 1:
        text += f", Holm over {comparison['holm_over']}"
    return text


def pairing_sentences(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of the pairing held: what the runs of each pair had in common beside the seed."""
    lines: dict[str, list[str]] = {}
    for comparison in comparisons:
        held = comparison.get("pairing") or {}
        shared = [PAIRED[fact] for fact, value in held.items() if value]
        not_shared = [PAIRED[fact] for fact, value in held.items() if value is False]
        unknown = [PAIRED[fact] for fact, value in held.items() if value is None]
        parts = [f"the runs of a pair shared {', '.join(shared) or 'nothing but the seed'}"]
        if not_shared:
            parts.append(f"not {', '.join(not_shared)}")
        if unknown:
            parts.append(f"unknown: {', '.join(unknown)}")
        if held:
            lines.setdefault("; ".join(parts), []).append(comparison["variant"])
    if len(lines) == 1:
        [line] = lines
        return [f"{line[0].upper()}{line[1:]}."]
    return [f"{', '.join(names)}: {line}." for line, names in lines.items()]


def power_sentence(needed: Mapping[str, Any], metric: str, baseline: str) -> str:
    """How many seeds it takes to see a difference of that size."""
    of = (
        f"the {needed['pilot_seeds']} paired differences of {needed['variant']} and {baseline}"
        if needed["paired"]
        else f"{needed['pilot_seeds']} runs of {needed['variant']} at different seeds, unpaired"
    )
    asked = f"To see a difference of {number(needed['detect'])} in {metric} with 80 % power"
    scatter = f"by the scatter of {of} (standard deviation {number(needed['standard_deviation'])})"
    if needed["seeds_needed"] is None:
        return f"{asked}: no number of seeds can be told {scatter}."
    interval = needed["seeds_needed_ci95"]
    within = f" [{interval[0]:,}, {interval[1]:,}]" if interval else ""
    return f"{asked} takes {needed['seeds_needed']:,}{within} seeds, {scatter}."
