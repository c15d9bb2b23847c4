"""The score recipe's steps: arguments checked, data, what models or saved predictions score, files and tables."""

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.config import InputError, write_text
from hfscale.data.corpus import load_documents, load_run_splits, text_fingerprint
from hfscale.data.files import read_checked_rows
from hfscale.data.supervised import fit_examples, set_chat_template
from hfscale.data.tasks import load_task
from hfscale.evaluation import metrics
from hfscale.evaluation.batches import Journal
from hfscale.evaluation.code import split_tests
from hfscale.evaluation.intervals import (
    by_note,
    compare,
    drawn_floor,
    interval_note,
    interval_notes,
    paired_note,
)
from hfscale.evaluation.lm_harness import run_lm_eval
from hfscale.evaluation.metrics import TEXT_METRICS
from hfscale.evaluation.perplexity import perplexity_metrics, score_documents
from hfscale.evaluation.tasks import answer_task
from hfscale.evaluation.text_notes import text_notes
from hfscale.models import context_limit, count_parameters
from hfscale.report.tables import cell, show_records, show_table
from hfscale.run_record import versions

# What may change between a run and its continuation; the model is known by its weights.
MAY_CHANGE = ("model", "output_dir", "resume", "overwrite", "trust_remote_code")
RESAMPLES = 1000  # of a comparison
PER_TOKEN = ("loss", "perplexity")  # not comparable where two tokenizers cut the text into other tokens
NOT_SHOWN = ("name", "metrics", "notes", "model", "predictions")  # of a system, in the table
DECODING = ("do_sample", "seed", "temperature", "top_k", "top_p", "num_samples")  # the last four: of drawn answers


@dataclass
class System:
    """A model or a file of predictions, and what it scored."""

    name: str
    settings: dict[str, Any]  # what the numbers depend on: model, context, tokenizer, decoding, ...
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # metric: statistics of the items, (items, k)
    options: dict[str, dict] = field(default_factory=dict)  # metric: its options
    metrics: dict[str, Any] = field(default_factory=dict)  # name: value, with `_ci95` beside it
    notes: dict[str, str] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)  # one line each in predictions.jsonl


def check_score_args(args: Any) -> None:
    """Raise InputError for what cannot work together, or an output folder that holds scores. Nothing is changed."""
    folder = Path(args.output_dir)
    if next(p for p in (folder, *folder.absolute().parents) if p.exists()).is_file():
        raise InputError(f"--output_dir {folder}: is a file; name a folder")
    if args.resume and args.overwrite:
        raise InputError("--resume auto continues a run and --overwrite replaces it; give one of the two")
    if (folder / "scores.json").exists() and not args.overwrite:
        raise InputError(f"--output_dir {folder}: holds scores.json; name another or pass --overwrite")
    if (folder / "unfinished").exists() and not args.resume and not args.overwrite:
        raise InputError(f"--output_dir {folder}: holds an unfinished run; --resume auto goes on, --overwrite starts "
                         "anew")
    if args.lm_eval and (args.predictions or args.task_source or args.source) or args.source and args.task_source:
        raise InputError("lm_eval, predictions, source, task_source: give one of them")
    if args.lm_eval_data and not Path(args.lm_eval_data).is_file():
        raise InputError(f"lm_eval_data {args.lm_eval_data}: no such file; give a JSONL file")
    if args.task_source and not args.metrics:
        raise InputError(f"metrics: missing; a task is judged by {', '.join(TEXT_METRICS)}, accuracy or pass_at_k")
    if "pass_at_k" in args.metrics and not args.allow_code_execution:
        raise InputError("metrics: pass_at_k runs what the model wrote; pass --allow_code_execution to allow it")
    if args.num_samples < max(args.pass_at, default=0) or min(args.pass_at, default=1) < 1:
        raise InputError(f"pass_at: got {args.pass_at}, expected numbers from 1 to num_samples ({args.num_samples})")
    if args.num_samples > 1 and not args.do_sample:
        raise InputError(f"num_samples: got {args.num_samples}, but without --do_sample all of them are the same")


def load_score_data(args: Any) -> Dataset | None:
    """The documents, or the examples of the task; None: the data is lm-eval's, or lies with the predictions.

    Raises InputError also for references that a metric cannot score against: not after hours of generating."""
    if args.task_source:
        examples = load_task(args, seed=args.seed)["validation"]
        for metric in set(args.metrics) & {*TEXT_METRICS}:
            metrics.check_references(metric, examples["references"][:], **args.metric_options.get(metric, {}))
        return examples
    if args.lm_eval or args.predictions:
        return None
    names = ("text_column", "sample_by", "split", "dataset_config_name", "on_error")
    how = {name: getattr(args, name) for name in names}
    return load_documents(args.source, **how) if args.source else load_run_splits(args.model[0])["validation"]


def score_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset | None,
                args: Any) -> System:
    """What a model scores on lm-eval's tasks, on a task, or on a text; finished batches are kept on disk meanwhile."""
    weights = hashlib.sha256()  # over the first 64 numbers of each, which training changes
    for parameter in model.parameters():
        weights.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    vocabulary = _digest(sorted(tokenizer.get_vocab().items()))
    system = System(name, {
        "model": {"architecture": type(model).__name__, **count_parameters(model), "dtype": str(model.dtype),
                  "fingerprint": weights.hexdigest()[:16]},
        "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {vocabulary}"})
    score = _score_lm_eval if args.lm_eval else _score_task if args.task_source else _score_text
    score(system, model, tokenizer, data, args, journal=_journal(system, data, args))
    return system


def _journal(system: System, data: Dataset | None, args: Any) -> Journal:
    """Where this model's finished batches are kept. Nothing is written yet, but those of a run to be replaced go."""
    folder = Path(args.output_dir, "unfinished", _digest(system.name))
    state = PartialState()
    if args.overwrite and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    kept = {key: value for key, value in asdict(args).items() if key not in MAY_CHANGE}
    return Journal(folder, kept | system.settings | {"data": data_fingerprint(data, args)})


def _score_text(system: System, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Dataset,
                args: Any, journal: Journal) -> None:
    scores = score_documents(model, tokenizer, documents["text"][:], context=args.context, stride=args.stride,
                             batch_size=args.batch_size, progress=True, journal=journal)
    system.settings |= {"context": scores.context, "stride": scores.stride, "prefix_token": scores.prefix_token}
    system.columns = {"perplexity": scores.sums}
    system.metrics, system.notes = perplexity_metrics(scores, seed=args.seed)


def _score_task(system: System, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Dataset,
                args: Any, journal: Journal) -> None:
    context, asked, shown = context_limit(model) or 2**31, examples, {}
    if "messages" in examples.column_names:
        set_chat_template(tokenizer, args.chat_template)
    if set(args.metrics) != {"accuracy"}:  # the target's length does not matter
        fitted, cut = fit_examples(DatasetDict(validation=examples), tokenizer, args, context, for_training=False)
        asked, names = fitted["validation"], DECODING if args.do_sample else ("do_sample", "seed")
        shown = {"max_new_tokens": args.max_new_tokens, "stop_strings": args.stop_strings,
                 **{name: getattr(args, name) for name in names}, "shortened": cut["validation"]}
    decoding = {name: getattr(args, name) for name in DECODING}
    columns, system.records = answer_task(model, tokenizer, asked, args, pass_at=args.pass_at, journal=journal,
                                          batch_size=args.batch_size, allow_code_execution=args.allow_code_execution,
                                          **decoding)
    cut_items = sum(record["cut_tokens"] > 0 for record in system.records)
    system.settings |= {"context": context, "cut_items": cut_items, **shown}
    _judge_items(system, columns, examples["references"][:], args)
    if "pass_at_k" in args.metrics and not split_tests(args.program, tests_apart=args.tests_apart)[1]:
        system.notes["pass_at_k"] = ("programs ran in one process with their tests (tests_apart is false, or no tests "
                                     "follow {prediction}); one that cheats can pass")


def _score_lm_eval(system: System, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: None, args: Any,
                   journal: Journal) -> None:
    tasks = [task for words in args.lm_eval for task in words.split(",") if task]
    system.metrics, facts = run_lm_eval(model, tokenizer, tasks, data=args.lm_eval_data, seed=args.seed,
                                        include=args.lm_eval_include, batch_size=args.batch_size, limit=args.limit,
                                        journal=journal)
    system.settings |= facts | {"context": context_limit(model), "seed": args.seed}


def score_file(path: str, examples: Dataset | None, args: Any) -> System:
    """What saved predictions score, by all text metrics unless some are named. The file's lines have `prediction` and
    `references`, or `reference`; where these are missing, those of the examples count, in order.

    Raises InputError: not such a file, a missing column, another number of lines than of examples."""
    given = None if examples is None else examples["references"][:]
    rows = read_checked_rows("predictions", path, lambda row: isinstance(row.get("prediction"), str) and (
        given or row.get("references") or "reference" in row),
        "the texts prediction and reference, or references (a list), unless a task gives these")
    if given is not None and len(given) != len(rows):
        raise InputError(f"predictions {path}: {len(rows)} lines for {len(given)} examples of the task; give one line "
                         "per example, in their order")
    predictions = [row["prediction"] for row in rows]
    references = [row.get("references") or ([row["reference"]] if "reference" in row else given[i])
                  for i, row in enumerate(rows)]
    columns = metrics.text_statistics(predictions, references, args.metrics or TEXT_METRICS, args.metric_options)
    system = System(path, {"fingerprint": _digest(predictions), "references": _digest(references)})
    _judge_items(system, columns, references, args)
    return system


def _judge_items(system: System, columns: dict[str, np.ndarray], references: Sequence[Sequence[str]],
                 args: Any) -> None:
    """Metrics from the statistics of the items, and what the value of each depends on."""
    system.columns, system.options = columns, args.metric_options | {"pass_at_k": {"ks": args.pass_at}}
    system.metrics = metrics.judge(columns, system.options, args.seed)
    system.notes = interval_notes(system.metrics)
    system.notes |= text_notes(references, list(columns), system.options)
    if "accuracy" in columns:
        system.metrics |= metrics.tie_shares(columns["accuracy"])
    system.metrics["items"] = len(references)
    system.settings["signatures"] = {metric: metrics.signature(metric, references, **system.options.get(metric, {}))
                                     for metric in columns}


def data_fingerprint(data: Dataset | None, args: Any) -> str | None:
    """Of the documents' text; of all columns of a task's examples; of lm-eval's local file."""
    if data is not None and args.task_source:
        told = [name for name in ("place", "columns") if name in data.column_names]  # where and whence, not what
        return _digest(list(data.remove_columns(told)))
    if data is not None:
        return text_fingerprint(data)
    return _digest(Path(args.lm_eval_data).read_text("utf-8")) if args.lm_eval_data else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def compare_systems(systems: Sequence[System], seed: int) -> list[dict[str, Any]]:
    """Each later system against the first, metric by metric, on the same items (see `intervals.compare`); `note` says
    why a comparison cannot show much.

    Raises InputError: files of predictions with different references."""
    found, first = [], systems[0]
    for second in systems[1:]:
        if first.settings.get("references") != second.settings.get("references"):
            raise InputError(f"predictions {first.name}, {second.name}: their references differ, so they cannot be "
                             "compared; give files on the same items, in the same order, or score each alone")
        for metric in first.columns:
            found += _compare_metric(metric, first, second, seed)
    return found


def _compare_metric(metric: str, first: System, second: System, seed: int) -> list[dict[str, Any]]:
    columns, other = first.columns[metric], second.columns[metric]
    same_tokens = metric != "perplexity" or np.array_equal(columns[:, 1], other[:, 1])
    values = partial(metrics.metric_values, metric, **first.options.get(metric, {}))
    with np.errstate(all="ignore"):
        results = compare(columns, other, values, resamples=RESAMPLES, seed=seed)
    names = {"first": first.name, "second": second.name}
    floor = drawn_floor(columns, other, RESAMPLES)
    found = []
    for name, result in results.items():
        interval = result["difference_ci95"]
        if not np.isfinite([result["difference"], *(interval or [])]).all():
            continue
        if same_tokens or name not in PER_TOKEN:
            note = paired_note(columns, other) or interval_note(interval) or None
            found.append({"metric": f"eval_{name}", **names, **result, "p_value_floor": floor, "note": note})
    return found


def write_scores(args: Any, argv: list[str] | None, data: Dataset | None, systems: Sequence[System]) -> dict[str, Any]:
    """Write the predictions and, last, `scores.json`; returns what it holds. Metrics get the prefix `eval_`."""
    comparisons, folder, shown = compare_systems(systems, args.seed), Path(args.output_dir), []
    folder.mkdir(parents=True, exist_ok=True)
    for number, system in enumerate(systems, 1):
        name = "predictions.jsonl" if len(systems) == 1 else f"predictions-{number}.jsonl"
        if system.records:
            write_text(folder / name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in system.records))
        shown.append({"name": system.name, **system.settings, "predictions": name if system.records else None,
                      "metrics": {f"eval_{key}": value for key, value in system.metrics.items()},
                      "notes": {f"eval_{key}": note for key, note in system.notes.items()}})
    source = args.task_source or args.source or args.lm_eval or args.predictions or f"held out by {args.model[0]}"
    fingerprint = data_fingerprint(data, args) or systems[0].settings.get("references")
    record = {"schema_version": 1, "recipe": "score",
              "command": shlex.join(["score.py", *(sys.argv[1:] if argv is None else argv)]), "config": asdict(args),
              "data": {"source": source, "fingerprint": fingerprint}, "versions": versions(), "systems": shown,
              "comparisons": comparisons}
    write_text(folder / "scores.json", json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
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
    if record["comparisons"]:
        _show_comparisons(record["comparisons"])
    for system in systems:
        for note, about in by_note(system["notes"]).items():
            print(f"{system['name']}: {about}: {note}")
    print(f"data {record['data']['fingerprint']}; written to {path}")


def _show_comparisons(comparisons: Sequence[dict[str, Any]]) -> None:
    """A table, and below it why some of them cannot show much."""
    show_records([{key: value for key, value in result.items() if key != "note"} for result in comparisons])
    for second in dict.fromkeys(result["second"] for result in comparisons):
        mine = [result for result in comparisons if result["second"] == second and result["note"]]
        for note, about in by_note({result["metric"]: result["note"] for result in mine}).items():
            print(f"{mine[0]['first']} and {second}: {about}: {note}")
