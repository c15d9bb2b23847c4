"""The score recipe's steps: its arguments checked, its data, and what a model or file of predictions scores on it."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.config import InputError
from hfscale.data.corpus import load_documents, load_run_splits, text_fingerprint
from hfscale.data.supervised import fit_examples, set_chat_template
from hfscale.data.tasks import load_task
from hfscale.evaluation.batches import Journal
from hfscale.evaluation.intervals import interval_notes
from hfscale.evaluation.json_lines import read_rows
from hfscale.evaluation.lm_harness import run_lm_eval
from hfscale.evaluation.metrics import TEXT_METRICS, check_references, judge, signature, text_statistics
from hfscale.evaluation.perplexity import perplexity_metrics, score_documents
from hfscale.evaluation.tasks import answer_task
from hfscale.models import context_limit, count_parameters

# What may change between a run and its continuation; the model is known by its weights.
MAY_CHANGE = ("model", "output_dir", "resume", "overwrite")


@dataclass
class System:
    """A model or a file of predictions, and what it scored."""

    name: str
    settings: dict[str, Any]  # what the numbers depend on: model, context, tokenizer, decoding, ...
    metrics: dict[str, Any]  # name: value, with `_ci95` beside it
    notes: dict[str, str] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # metric: statistics of the items, (items, k)
    options: dict[str, dict] = field(default_factory=dict)  # metric: its options
    records: list[dict] = field(default_factory=list)  # one line each in predictions.jsonl


def check_score_args(args: Any) -> None:
    """Raise InputError for what cannot work together, or an output folder that holds scores. Nothing is changed."""
    folder, given = Path(args.output_dir), [name for name in ("predictions", "lm_eval") if getattr(args, name)]
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
        raise InputError(f"{', '.join([*given, 'source, task_source'])}: give one of them")
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
        for metric in (metric for metric in args.metrics if metric in TEXT_METRICS):
            check_references(metric, examples["references"][:], **args.metric_options.get(metric, {}))
        return examples
    if args.lm_eval or args.predictions:
        return None
    names = ("text_column", "sample_by", "split", "dataset_config_name", "on_error")
    how = {name: getattr(args, name) for name in names}
    return load_documents(args.source, **how) if args.source else load_run_splits(args.model[0])["validation"]


def score_text(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Dataset,
               args: Any) -> System:
    """Perplexity, bits per byte and per-word perplexity."""
    settings = _settings(model, tokenizer)
    journal = _journal(name, settings, documents, args)
    scores = score_documents(model, tokenizer, documents["text"][:], context=args.context, stride=args.stride,
                             batch_size=args.batch_size, progress=True, journal=journal)
    settings |= {"context": scores.context, "stride": scores.stride, "prefix_token": scores.prefix_token}
    return System(name, settings, *perplexity_metrics(scores, seed=args.seed), {"perplexity": scores.sums})


def score_task(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Dataset,
               args: Any) -> System:
    """The metrics of a task."""
    context, settings = context_limit(model) or 2**31, _settings(model, tokenizer)
    decoding = {key: getattr(args, key) for key in ("do_sample", "temperature", "top_k", "top_p", "seed")}
    if args.task_format == "chat":
        set_chat_template(tokenizer, args.chat_template)
    asked, cut = examples, {}
    if set(args.metrics) != {"accuracy"}:  # the target's length does not matter
        bare = examples.remove_columns("target").add_column("target", [""] * len(examples))
        fitted, cut = fit_examples(DatasetDict(validation=bare), tokenizer, args, context)
        asked = fitted["validation"]
    columns, records = answer_task(model, tokenizer, asked, args, **decoding,
                                   num_samples=args.num_samples, pass_at=args.pass_at, batch_size=args.batch_size,
                                   allow_code_execution=args.allow_code_execution,
                                   journal=_journal(name, settings, examples, args))
    settings |= {"context": context, "cut_items": sum(record["cut_tokens"] > 0 for record in records)}
    if cut:
        shown = ("do_sample", "seed", *(("temperature", "top_k", "top_p", "num_samples") if args.do_sample else ()))
        settings |= {"max_new_tokens": args.max_new_tokens, "stop_strings": args.stop_strings,
                     **{key: getattr(args, key) for key in shown}, "shortened": cut["validation"]}
    return _judged(name, settings, columns, examples["references"][:], args, records)


def score_file(path: str, examples: Dataset | None, args: Any) -> System:
    """Predictions that were saved before, here or elsewhere; all text metrics unless some are named."""
    predictions, references = read_predictions(path, None if examples is None else examples["references"][:])
    columns = text_statistics(predictions, references, args.metrics or TEXT_METRICS, args.metric_options)
    settings = {"fingerprint": _digest(predictions), "references": _digest(references)}
    return _judged(path, settings, columns, references, args)


def score_lm_eval(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: None,
                  args: Any) -> System:
    """lm-eval's tasks, under its names; the intervals are from its standard errors."""
    settings = _settings(model, tokenizer)
    tasks = [task for words in args.lm_eval for task in words.split(",") if task]
    metrics, facts = run_lm_eval(model, tokenizer, tasks, data=args.lm_eval_data, include=args.lm_eval_include,
                                 batch_size=args.batch_size, seed=args.seed, limit=args.limit,
                                 journal=_journal(name, settings, None, args))
    return System(name, settings | facts | {"context": context_limit(model), "seed": args.seed}, metrics)


def _settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a model is: its weights' fingerprint is over the first 64 numbers of each, which training changes."""
    weights = hashlib.sha256()
    for parameter in model.parameters():
        weights.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    vocabulary = _digest(sorted(tokenizer.get_vocab().items()))
    return {"model": {"architecture": type(model).__name__, **count_parameters(model), "dtype": str(model.dtype),
                      "fingerprint": weights.hexdigest()[:16]},
            "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {vocabulary}"}


def _journal(name: str, settings: dict[str, Any], data: Dataset | None, args: Any) -> Journal:
    """Where this model's finished batches are kept. Nothing is written yet, but those of a run to be replaced go."""
    folder = Path(args.output_dir, "unfinished", _digest(name))
    state = PartialState()
    if args.overwrite and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    kept = {key: value for key, value in asdict(args).items() if key not in MAY_CHANGE}
    return Journal(folder, kept | settings | {"data": data_fingerprint(data, args)})


def _judged(name: str, settings: dict[str, Any], columns: dict[str, np.ndarray], references: Sequence[Sequence[str]],
            args: Any, records: Sequence[dict] = ()) -> System:
    """The system with its metrics, computed from the statistics of the items, and what each one's value depends on."""
    options = args.metric_options | {"pass_at_k": {"ks": args.pass_at}}
    metrics = judge(columns, options, args.seed)
    signatures = {metric: signature(metric, references if metric in TEXT_METRICS else (), **options.get(metric, {}))
                  for metric in columns}
    return System(name, settings | {"signatures": signatures}, metrics | {"items": len(references)},
                  interval_notes(metrics), columns, options, records)


def data_fingerprint(data: Dataset | None, args: Any) -> str | None:
    """Of the documents' text; of all columns of a task's examples; of lm-eval's local file."""
    if data is not None:
        return _digest(list(data)) if args.task_source else text_fingerprint(data)
    return _digest(Path(args.lm_eval_data).read_text("utf-8")) if args.lm_eval_data else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_predictions(path: str, references: Sequence[Sequence[str]] | None) -> tuple[list[str], list[list[str]]]:
    """Predictions and references of a JSONL file: columns `prediction` and `references`, or `reference`; where they
    are missing, the given ones in their order.

    Raises InputError: not such a file, a missing column, another number of lines than of given references.
    """
    rows = read_rows("predictions", path, lambda row: isinstance(row.get("prediction"), str) and (
        references or row.get("references") or "reference" in row),
        "the texts prediction and reference, or references (a list), unless a task gives these")
    if references is not None and len(references) != len(rows):
        raise InputError(f"predictions {path}: {len(rows)} lines for {len(references)} examples of the task; give "
                         "one line per example, in their order")
    golds = [row.get("references") or ([row["reference"]] if "reference" in row else references[i])
             for i, row in enumerate(rows)]
    return [row["prediction"] for row in rows], golds
