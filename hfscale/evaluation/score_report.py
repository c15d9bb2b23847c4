"""scores.json, and what the score recipe prints."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.evaluation.score_data import ScoreData
from hfscale.evaluation.scores import System, compare_systems, data_fingerprint, fit_prompts
from hfscale.folders import write_atomically
from hfscale.metrics.intervals import by_note
from hfscale.process import versions
from hfscale.report.tables import cell, show_records, show_table

# Of the first item, in a preview.
SHOWN_COLUMNS = ("place", "prompt", "choices", "answer", "references", "program", "text")
SHOWN_CHARACTERS = 1000
NOT_SHOWN = ("name", "metrics", "notes", "model", "predictions")  # of a system, in the table
# Why items are not scored, and what else happened to some.
LEFT_OUT = {
    "trained_on": "trained on",
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
    args: Any, argv: list[str] | None, data: ScoreData, systems: Sequence[System]
) -> dict[str, Any]:
    """Write the predictions and, last, `scores.json`; returns what it holds. Metrics get the prefix
    `eval_`."""
    comparisons = compare_systems(systems, args.seed)  # it can raise: before anything is written
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [""] if len(systems) == 1 else [f"-{number}" for number in range(1, len(systems) + 1)]
    files = [f"predictions{number}.jsonl" for number in numbers]
    for system, name in zip(systems, files, strict=True):
        if system.records:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in system.records]
            write_atomically(folder / name, "".join(lines))
    given = args.task_source or args.source or args.lm_eval or args.predictions
    source = given or f"held out by {args.model[0]}"
    fingerprint = data_fingerprint(data.rows, args) or systems[0].settings.get("references")
    record = {
        "schema_version": 1,
        "recipe": "score",
        "command": shlex.join(["score.py", *(sys.argv[1:] if argv is None else argv)]),
        "config": asdict(args),
        "data": {
            "source": source,
            "fingerprint": fingerprint,
            "unit": data.unit,
            "counts": dict(+data.counts),  # without those of nothing
            "notes": data.notes,
        },
        "versions": versions(),
        "systems": [_of_system(*pair) for pair in zip(systems, files, strict=True)],
        "comparisons": comparisons,
    }
    write_atomically(
        folder / "scores.json",
        json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )
    shutil.rmtree(folder / "unfinished", ignore_errors=True)
    return record


def _of_system(system: System, predictions: str) -> dict[str, Any]:
    return {
        "name": system.name,
        **system.settings,
        "predictions": predictions if system.records else None,
        "metrics": {f"eval_{key}": value for key, value in system.metrics.items()},
        "notes": {f"eval_{key}": note for key, note in system.notes.items()},
    }


def preview_scores(
    args: Any, data: ScoreData, models: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]
) -> None:
    """Print what would be scored: the counts, for how many items each model's prompts are
    shortened, and the first item as the first model is asked."""
    asked, shortened = data.rows, {}
    for name, (model, tokenizer) in models.items():
        if args.task_source:
            fitted, cut = fit_prompts(model, tokenizer, data.rows, args)
            shortened[name] = cut["prompts"]
            asked = fitted if len(shortened) == 1 else asked
    if not PartialState().is_main_process:
        return
    show_counts({"unit": data.unit, "counts": data.counts, "notes": data.notes}, shortened)
    if asked is not None:
        first = next(iter(asked))
        shown = {name: first[name] for name in SHOWN_COLUMNS if name in first}
        rows = [[name, str(value)[:SHOWN_CHARACTERS]] for name, value in shown.items()]
        show_table(["first", ""], rows)


def show_scores(record: dict[str, Any], path: Path) -> None:
    """Print what `scores.json` holds: metrics with intervals, what they depend on, comparisons,
    what none of these can show, and the counts."""
    systems = record["systems"]
    columns = [
        system["metrics"] | {key: value for key, value in system.items() if key not in NOT_SHOWN}
        for system in systems
    ]
    names = [name for name in columns[0] if not name.endswith(("_ci95", "_stderr"))]
    show_table(
        ["", *(system["name"] for system in systems)],
        ([name, *(cell(column, name, digits=6) for column in columns)] for name in names),
    )
    if record["comparisons"]:
        _show_comparisons(record["comparisons"])
    for system in systems:
        for note, about in by_note(system["notes"]).items():
            print(f"{system['name']}: {about}: {note}")
    show_counts(record["data"], {system["name"]: _shortened(system) for system in systems})
    print(f"data {record['data']['fingerprint']}; written to {path}")


def _show_comparisons(comparisons: Sequence[dict[str, Any]]) -> None:
    """A table, and below it why some of them cannot show much."""
    show_records(
        [{key: value for key, value in result.items() if key != "note"} for result in comparisons]
    )
    for second in dict.fromkeys(result["second"] for result in comparisons):
        mine = [result for result in comparisons if result["second"] == second and result["note"]]
        for note, about in by_note({result["metric"]: result["note"] for result in mine}).items():
            print(f"{mine[0]['first']} and {second}: {about}: {note}")


def show_counts(data: dict[str, Any], shortened: dict[str, int | None]) -> None:
    """Print how many items were read, left out and scored, and why; of the scored ones, for how
    many each system's prompts were shortened (None: it has no prompts)."""
    counts = data["counts"]
    for note in data["notes"]:
        print(note)
    if not counts:
        return
    words = [f"{counts['read']:,} read", _with_reasons(counts, LEFT_OUT, "left out")]
    words += [_with_reasons(counts, DROPPED, "dropped"), f"{counts['scored']:,} scored"]
    words += [f"{counts[name]:,} {said}" for name, said in CHANGED.items() if counts.get(name)]
    for name, prompts in shortened.items():
        if prompts is not None:
            words.append(f"{prompts:,} shortened" + (f" for {name}" if len(shortened) > 1 else ""))
    print(f"{data['unit']}s: {', '.join(words)}")


def _with_reasons(counts: dict[str, int], reasons: dict[str, str], said: str) -> str:
    found = {reason: counts[name] for name, reason in reasons.items() if counts.get(name)}
    parts = "; ".join(f"{n:,} {reason}" for reason, n in found.items())
    return f"{sum(found.values()):,} {said}" + (f" ({parts})" if parts else "")


def _shortened(system: dict[str, Any]) -> int | None:
    """Items of a task that lost tokens of their prompt, in one of two ways."""
    if "cut_items" not in system:
        return None
    return system["cut_items"] + system.get("shortened", {}).get("prompts", 0)
