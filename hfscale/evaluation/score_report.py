"""scores.json, and what the score recipe prints."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.evaluation.score_args import UNFINISHED
from hfscale.evaluation.score_data import ScoreData
from hfscale.evaluation.scores import System, fit_prompts
from hfscale.folders import write_atomically, write_json
from hfscale.metrics.intervals import by_note
from hfscale.report.tables import cell, show_records, show_table
from hfscale.shown import show_text

# Of the first item, in a preview.
SHOWN_COLUMNS = ("place", "prompt", "choices", "answer", "references", "program", "text")
SHOWN_CHARACTERS = 1000
# Of a system, in the table.
NOT_SHOWN = ("name", "metrics", "groups", "notes", "model", "predictions")
NOTES = ("note", "seed_note", "seed_noise", "seeds")  # of a comparison, told below the table
# Why items are not scored, and what else happened to some.
LEFT_OUT = {
    "trained_on": "trained on",
    "identical": "one sentence twice",
    "beyond": "beyond validation_examples",
    "unused": "beyond validation_examples",
}
DROPPED = {
    "empty": "empty",
    "unreadable": "unreadable",
    "unanswered": "nothing but the user's turn",
}
CHANGED = {"lost_turn": "without the user's last turn", "unframed": "without their frame"}


def write_scores(
    path: Path,
    run: dict[str, Any],
    data: ScoreData,
    systems: Sequence[System],
    comparisons: Sequence[dict[str, Any]],
    *,
    source: str | Sequence[str],
    fingerprint: str | None,
) -> dict[str, Any]:
    """Write the predictions and, last, `scores.json`; returns what it holds. Metrics get the prefix
    `eval_`.

    Args:
        path: of `scores.json`; the predictions lie beside it.
        run: what `describe_run` says of this run.
        source: what was scored.
        fingerprint: of what was scored; None: that of the predictions' references.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptions = []
    for number, system in enumerate(systems, 1):
        file = "predictions.jsonl" if len(systems) == 1 else f"predictions-{number}.jsonl"
        if system.records:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in system.records]
            write_atomically(path.with_name(file), "".join(lines))
        descriptions.append(_describe_system(system, file if system.records else None))
    record = {
        **run,
        "data": {
            "source": source,
            "fingerprint": fingerprint or systems[0].settings.get("references"),
            "unit": data.unit,
            "counts": dict(+data.counts),  # without those of nothing
            "notes": data.notes,
        },
        "systems": descriptions,
        "comparisons": list(comparisons),
    }
    write_json(path, record)
    shutil.rmtree(path.with_name(UNFINISHED), ignore_errors=True)
    return record


def _describe_system(system: System, predictions: str | None) -> dict[str, Any]:
    return {
        "name": system.name,
        **system.settings,
        "predictions": predictions,
        "metrics": {f"eval_{key}": value for key, value in system.metrics.items()},
        **({"groups": system.groups} if system.groups else {}),
        "notes": {f"eval_{key}": note for key, note in system.notes.items()},
    }


def preview_scores(
    data: ScoreData,
    task: TaskArguments,
    names: Sequence[str],
    models: Sequence[PreTrainedModel],
    tokenizers: Sequence[PreTrainedTokenizerBase],
) -> None:
    """Print what would be scored: the counts, for how many items each model's prompts are
    shortened, and the first item as the first model is asked."""
    first_item = None if data.rows is None else data.rows[0]
    shortened: dict[str, int | None] = {}
    if task.task_source:
        for name, model, tokenizer in zip(names, models, tokenizers, strict=True):
            fitted, cut = fit_prompts(model, tokenizer, data.scored_rows, task)
            if not shortened:
                first_item = fitted[0]
            shortened[name] = cut["prompts"]
    if not PartialState().is_main_process:
        return
    show_counts({"unit": data.unit, "counts": data.counts, "notes": data.notes}, shortened)
    if first_item is not None:
        rows = [
            [name, str(first_item[name])[:SHOWN_CHARACTERS]]
            for name in SHOWN_COLUMNS
            if name in first_item
        ]
        show_table(["first", ""], rows)


def show_scores(record: dict[str, Any], path: Path) -> None:
    """Print what `scores.json` holds: metrics with intervals, what they depend on, comparisons,
    what none of these can show, and the counts."""
    systems = record["systems"]
    columns = []
    for system in systems:
        settings = {key: value for key, value in system.items() if key not in NOT_SHOWN}
        columns.append(system["metrics"] | settings)
    names = [name for name in columns[0] if not name.endswith(("_ci95", "_stderr"))]
    heads = ["", *(system["name"] for system in systems)]
    rows = [[name, *(cell(column, name, digits=6) for column in columns)] for name in names]
    show_table(heads, rows)
    _show_groups(systems)
    if record["comparisons"]:
        _show_comparisons(record["comparisons"])
    for system in systems:
        for note, about in by_note(system["notes"]).items():
            show_text(f"{system['name']}: {about}: {note}")
    show_counts(record["data"], {system["name"]: _shortened(system) for system in systems})
    show_text(f"data {record['data']['fingerprint']}; written to {path}")


def _show_groups(systems: Sequence[dict[str, Any]]) -> None:
    """Of minimal pairs a table for each way to group them: the accuracy of each system."""
    for kind, of_first in systems[0].get("groups", {}).items():
        rows = []
        for group, score in of_first.items():
            accuracies = [cell(system["groups"][kind][group], "accuracy") for system in systems]
            rows.append([group, f"{score['pairs']:,}", *accuracies])
        names = ["accuracy"] if len(systems) == 1 else [system["name"] for system in systems]
        show_table([kind, "pairs", *names], rows)


def _show_comparisons(comparisons: Sequence[dict[str, Any]]) -> None:
    """A table, and below it why some of them cannot show much."""
    shown = [
        {key: value for key, value in result.items() if key not in NOTES} for result in comparisons
    ]
    show_records(shown)
    for second in dict.fromkeys(result["second"] for result in comparisons):
        of_second = [result for result in comparisons if result["second"] == second]
        for kind in ("note", "seed_note"):
            notes = {result["metric"]: result[kind] for result in of_second if result.get(kind)}
            for note, about in by_note(notes).items():
                show_text(f"{comparisons[0]['first']} and {second}: {about}: {note}")


def show_counts(data: dict[str, Any], shortened: Mapping[str, int | None]) -> None:
    """Print how many items were read, left out and scored, and why; of the scored ones, for how
    many each system's prompts were shortened (None: it has no prompts)."""
    counts = data["counts"]
    for note in data["notes"]:
        show_text(note)
    if not counts:
        return
    facts = [
        f"{counts['read']:,} read",
        _with_reasons(counts, LEFT_OUT, "left out"),
        _with_reasons(counts, DROPPED, "dropped"),
        f"{counts['scored']:,} scored",
    ]
    for name, change in CHANGED.items():
        if counts.get(name):
            facts.append(f"{counts[name]:,} {change}")
    for name, prompts in shortened.items():
        if prompts is not None:
            of_several = f" for {name}" if len(shortened) > 1 else ""
            facts.append(f"{prompts:,} shortened{of_several}")
    show_text(f"{data['unit']}s: {', '.join(facts)}")


def _with_reasons(counts: dict[str, int], reasons: dict[str, str], fate: str) -> str:
    """How many items met a fate, and for which reasons: `5 dropped (3 empty; 2 unreadable)`."""
    numbers = {reason: counts[name] for name, reason in reasons.items() if counts.get(name)}
    total = f"{sum(numbers.values()):,} {fate}"
    if not numbers:
        return total
    return total + f" ({'; '.join(f'{number:,} {reason}' for reason, number in numbers.items())})"


def _shortened(system: dict[str, Any]) -> int | None:
    """Items of a task that lost tokens of their prompt, in one of two ways."""
    if "cut_items" not in system:
        return None
    return system["cut_items"] + system.get("shortened", {}).get("prompts", 0)
