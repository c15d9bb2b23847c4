"""scores.json, predictions.jsonl and the tables on the terminal: what systems scored, and which is better."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hfscale.config import InputError, write_text
from hfscale.evaluation.intervals import compare
from hfscale.evaluation.metrics import metric_values
from hfscale.evaluation.systems import System, data_fingerprint
from hfscale.report.tables import cell, show_records, show_table
from hfscale.run_record import versions

PER_TOKEN = ("loss", "perplexity")  # not comparable where two tokenizers cut the text into other tokens
NOT_SHOWN = ("name", "metrics", "notes", "model", "predictions")  # of a system, in the table


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
            values = partial(metric_values, metric, **first.options.get(metric, {}))
            with np.errstate(all="ignore"):
                results = compare(columns, other, values, seed=seed)
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
    systems = record["systems"]
    columns = [system["metrics"] | {key: value for key, value in system.items() if key not in NOT_SHOWN}
               for system in systems]
    names = [name for name in columns[0] if not name.endswith(("_ci95", "_stderr"))]
    show_table(["", *(system["name"] for system in systems)],
               ([name, *(cell(column, name, digits=6) for column in columns)] for name in names))
    better = {"second": "yes", "first": "no, the first is", None: "not shown"}
    if record["comparisons"]:
        show_records([{"metric": row["metric"], "second - first": f"{row['second']} - {row['first']}",
                       "difference": row["difference"], "difference_ci95": row["difference_ci95"],
                       "p": row["p_value"], "second is better": better[row["better"]]}
                      for row in record["comparisons"]])
    for system in systems:
        for name, note in system["notes"].items():
            print(f"{system['name']}: {name}: {note}")
    print(f"data {record['data']['fingerprint']}; written to {path}")
