"""scores.json, predictions.jsonl and the tables on the terminal: what systems scored, and which is better."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hfscale.config import InputError, write_text
from hfscale.evaluation.intervals import compare
from hfscale.evaluation.systems import System, data_fingerprint
from hfscale.run_record import versions

PER_TOKEN = ("loss", "perplexity")  # not comparable where two tokenizers cut the text into other tokens


def compare_systems(systems: Sequence[System], seed: int) -> list[dict[str, Any]]:
    """Each later system against the first, metric by metric, on the same items (see `intervals.compare`).

    Raises InputError: files of predictions with different references."""
    found, first = [], systems[0]
    for second in systems[1:]:
        if first.settings.get("references") != second.settings.get("references"):
            raise InputError(f"predictions {first.name}, {second.name}: their references differ, so they cannot be "
                             "compared; give files on the same items, in the same order, or score each alone")
        for metric, columns in first.columns.items():
            other = second.columns[metric]
            left_out = () if metric != "perplexity" or np.array_equal(columns[:, 1], other[:, 1]) else PER_TOKEN
            with np.errstate(all="ignore"):
                results = compare(columns, other, first.values(metric), seed=seed)
            found += [{"metric": f"eval_{name}", "first": first.name, "second": second.name, **result}
                      for name, result in results.items()
                      if name not in left_out and np.isfinite(result["difference_ci95"]).all()]
    return found


def write_scores(args: Any, argv: list[str] | None, data: Dataset | None, systems: Sequence[System]) -> dict[str, Any]:
    """Write the predictions and, last, `scores.json`; returns what it holds. Metrics get the prefix `eval_`."""
    folder, shown, files = Path(args.output_dir), [], {}
    for number, system in enumerate(systems, 1):
        name = "predictions.jsonl" if len(systems) == 1 else f"predictions-{number}.jsonl"
        if system.records:
            files[name] = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in system.records)
        shown.append({"name": system.name, **system.settings, "predictions": name if system.records else None,
                      "metrics": {f"eval_{key}": value for key, value in system.metrics.items()},
                      "notes": {f"eval_{key}": note for key, note in system.notes.items()}})
    references = systems[0].settings.get("references")
    source = args.task_source or args.source or args.lm_eval or args.predictions or f"held out by {args.model[0]}"
    record = {"schema_version": 1, "recipe": "score",
              "command": shlex.join(["score.py", *(sys.argv[1:] if argv is None else argv)]), "config": asdict(args),
              "data": {"source": source, "fingerprint": data_fingerprint(data, args) or references},
              "versions": versions(),
              "systems": shown, "comparisons": compare_systems(systems, args.seed)}
    folder.mkdir(parents=True, exist_ok=True)
    files["scores.json"] = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in files.items():
        write_text(folder / name, text)
    shutil.rmtree(folder / "unfinished", ignore_errors=True)
    return record


def show_scores(record: dict[str, Any], path: Path) -> None:
    """Print what `scores.json` holds: metrics with intervals, what they depend on, and the comparisons."""
    from rich.console import Console
    from rich.table import Column, Table

    systems, console = record["systems"], Console()
    table = Table("", *(Column(system["name"], overflow="fold") for system in systems))
    for name in systems[0]["metrics"]:
        if not name.endswith(("_ci95", "_stderr")):
            table.add_row(name, *(_shown(system["metrics"], name) for system in systems))
    rows = [key for key in systems[0] if key not in ("name", "metrics", "notes", "model", "predictions")]
    for key in [*rows, *sorted(set().union(*(system["notes"] for system in systems)))]:
        table.add_row(key, *(_words(system.get(key, system["notes"].get(key, ""))) for system in systems))
    console.print(table)
    if record["comparisons"]:
        columns = ("second - first", "difference", "95 % interval", "p", "second is better")
        table = Table(Column("metric", overflow="fold"), *columns)
        for row in record["comparisons"]:
            table.add_row(row["metric"], f"{row['second']} - {row['first']}", f"{row['difference']:.6g}",
                          " to ".join(f"{end:.6g}" for end in row["difference_ci95"]), f"{row['p_value']:.3f}",
                          {"second": "yes", "first": "no, the first is"}.get(row["better"], "not shown"))
        console.print(table)
    console.print(f"data {record['data']['fingerprint']}; written to {path}", soft_wrap=True)


def _shown(metrics: dict[str, Any], name: str) -> str:
    value, interval = metrics[name], metrics.get(f"{name}_ci95")
    if value is None or isinstance(value, int):
        return "none" if value is None else f"{value:,}"
    return f"{value:.6g}" + (f" [{interval[0]:.6g}, {interval[1]:.6g}]" if interval else "")


def _words(value: Any) -> str:
    return "\n".join(f"{key}: {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
