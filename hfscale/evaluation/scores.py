"""What models or saved predictions score, and whether one is better than another."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.sources import text_fingerprint
from hfscale.evaluation.lm_eval import run_lm_eval
from hfscale.evaluation.lm_tasks import task_names
from hfscale.evaluation.predictions import read_predictions
from hfscale.evaluation.score_data import ScoreData
from hfscale.generation.texts import end_ids
from hfscale.metrics import texts as metrics
from hfscale.metrics.batches import Journal
from hfscale.metrics.code import split_tests
from hfscale.metrics.intervals import (
    compare,
    drawn_floor,
    interval_note,
    interval_notes,
    paired_note,
)
from hfscale.metrics.perplexity import perplexity_metrics, score_documents
from hfscale.metrics.text_notes import text_notes
from hfscale.metrics.texts import TEXT_METRICS
from hfscale.models import context_limit, count_parameters
from hfscale.process import InputError
from hfscale.tasks.answers import answer_task
from hfscale.tasks.chat_templates import set_chat_template
from hfscale.tasks.fitting import fit_examples

# What may change between a run and its continuation; the model is known by its weights.
MAY_CHANGE = ("model", "output_dir", "resume", "overwrite", "trust_remote_code")
RESAMPLES = 1000  # of a comparison
PER_TOKEN = (
    "loss",
    "perplexity",
)  # not comparable where two tokenizers cut the text into other tokens
DECODING = (
    "do_sample",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "num_samples",
)  # the last four: of drawn answers


@dataclass
class System:
    """A model or a file of predictions, and what it scored."""

    name: str
    settings: dict[str, Any]  # what the numbers depend on: model, context, tokenizer, decoding, ...
    columns: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # metric: statistics of the items, (items, k)
    options: dict[str, dict] = field(default_factory=dict)  # metric: its options
    metrics: dict[str, Any] = field(default_factory=dict)  # name: value, with `_ci95` beside it
    notes: dict[str, str] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)  # one line each in predictions.jsonl


def score_model(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: ScoreData,
    args: Any,
) -> System:
    """What a model scores on lm-eval's tasks, on a task, or on a text; finished batches are kept on
    disk meanwhile.
    """
    weights = hashlib.sha256()  # over the first 64 numbers of each, which training changes
    for parameter in model.parameters():
        weights.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    vocabulary = _digest(sorted(tokenizer.get_vocab().items()))
    system = System(
        name,
        {
            "model": {
                "architecture": type(model).__name__,
                **count_parameters(model),
                "dtype": str(model.dtype),
                "fingerprint": weights.hexdigest()[:16],
            },
            "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {vocabulary}",
        },
    )
    score = _score_lm_eval if args.lm_eval else _score_task if args.task_source else _score_text
    score(system, model, tokenizer, data.rows, args, journal=_journal(system, data.rows, args))
    return system


def _journal(system: System, data: Dataset | None, args: Any) -> Journal:
    """Where this model's finished batches are kept. Nothing is written yet, but those of a run to
    be replaced go.
    """
    folder = Path(args.output_dir, "unfinished", _digest(system.name))
    state = PartialState()
    if args.overwrite and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    kept = {key: value for key, value in asdict(args).items() if key not in MAY_CHANGE}
    return Journal(folder, kept | system.settings | {"data": data_fingerprint(data, args)})


def _score_text(
    system: System,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Dataset,
    args: Any,
    journal: Journal,
) -> None:
    scores = score_documents(
        model,
        tokenizer,
        documents["text"][:],
        max_length=args.max_length,
        stride=args.stride,
        batch_size=args.batch_size,
        progress=True,
        journal=journal,
    )
    system.settings |= {
        "context": scores.max_length,
        "stride": scores.stride,
        "prefix_token": scores.prefix_token,
    }
    system.columns = {"perplexity": scores.sums}
    system.metrics, system.notes = perplexity_metrics(scores, seed=args.seed)


def _score_task(
    system: System,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    args: Any,
    journal: Journal,
) -> None:
    asked, cut = fit_prompts(model, tokenizer, examples, args)
    context, shown = context_limit(model) or 2**31, {}
    if set(args.metrics) != {"accuracy"}:
        names = DECODING if args.do_sample else ("do_sample", "seed")
        shown = {
            "max_new_tokens": args.max_new_tokens,
            "stop_strings": args.stop_strings,
            "end_tokens": tokenizer.convert_ids_to_tokens(end_ids(model, tokenizer)),
            **{name: getattr(args, name) for name in names},
            "shortened": cut,
        }
    decoding = {name: getattr(args, name) for name in DECODING}
    columns, system.records = answer_task(
        model,
        tokenizer,
        asked,
        args,
        pass_at=args.pass_at,
        journal=journal,
        batch_size=args.batch_size,
        allow_code_execution=args.allow_code_execution,
        **decoding,
    )
    cut_items = sum(record["cut_tokens"] > 0 for record in system.records)
    system.settings |= {"context": context, "cut_items": cut_items, **shown}
    _judge_items(system, columns, examples["references"][:], args)
    if (
        "pass_at_k" in args.metrics
        and not split_tests(args.test_program, tests_apart=args.tests_apart)[1]
    ):
        system.notes["pass_at_k"] = (
            "programs ran in one process with their tests (tests_apart is false, or no tests "
            "follow {prediction}); one that cheats can pass"
        )


def fit_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Dataset, args: Any
) -> tuple[Dataset, dict[str, int]]:
    """The examples as the model is asked, and how many prompts lost how many tokens on the way.
    Choices alone stay whole: what they are too long for is cut from the left."""
    if "messages" in examples.column_names:
        set_chat_template(tokenizer, args.chat_template)
    if set(args.metrics) == {"accuracy"}:
        return examples, {"prompts": 0, "tokens": 0}
    context = context_limit(model) or 2**31
    fitted, cut = fit_examples(
        DatasetDict(validation=examples), tokenizer, args, context, for_training=False
    )
    return fitted["validation"], cut["validation"]


def _score_lm_eval(
    system: System,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: None,
    args: Any,
    journal: Journal,
) -> None:
    system.metrics, facts = run_lm_eval(
        model,
        tokenizer,
        task_names(args.lm_eval),
        data=args.lm_eval_data,
        seed=args.seed,
        include=args.lm_eval_include,
        batch_size=args.batch_size,
        limit=args.limit,
        journal=journal,
    )
    intervals = {name: value for name, value in system.metrics.items() if value is not None}
    system.notes = interval_notes(intervals)  # of a perplexity lm-eval gives none
    system.settings |= facts | {"context": context_limit(model), "seed": args.seed}


def score_file(path: str, data: ScoreData, args: Any) -> System:
    """What saved predictions score, by all text metrics unless some are named (see
    `read_predictions`).
    """
    predictions, references, places = read_predictions(path, data.rows)
    data.counts = data.counts or Counter(read=len(places), scored=len(places))
    asked = args.metrics or TEXT_METRICS
    for metric in asked:
        metrics.check_references(
            metric, references, places=places, **args.metric_options.get(metric, {})
        )
    columns = metrics.text_statistics(predictions, references, asked, args.metric_options)
    system = System(path, {"fingerprint": _digest(predictions), "references": _digest(references)})
    _judge_items(system, columns, references, args)
    return system


def _judge_items(
    system: System, columns: dict[str, np.ndarray], references: Sequence[Sequence[str]], args: Any
) -> None:
    """Metrics from the statistics of the items, and what the value of each depends on."""
    system.columns, system.options = (
        columns,
        args.metric_options | {"pass_at_k": {"ks": args.pass_at}},
    )
    system.metrics = metrics.metrics_of(columns, system.options, args.seed)
    system.notes = interval_notes(system.metrics)
    system.notes |= text_notes(references, list(columns), system.options)
    if "accuracy" in columns:
        system.metrics |= metrics.tie_shares([record["tied"] for record in system.records])
    system.metrics["items"] = len(references)
    system.settings["signatures"] = {
        metric: metrics.signature(metric, references, **system.options.get(metric, {}))
        for metric in columns
    }


def data_fingerprint(data: Dataset | None, args: Any) -> str | None:
    """Of the documents' text; of all columns of a task's examples; of lm-eval's local file."""
    if data is not None and args.task_source:
        told = [
            name for name in ("place", "columns") if name in data.column_names
        ]  # where and whence, not what
        return _digest(list(data.remove_columns(told)))
    if data is not None:
        return text_fingerprint(data)
    return _digest(Path(args.lm_eval_data).read_text("utf-8")) if args.lm_eval_data else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def compare_systems(systems: Sequence[System], seed: int) -> list[dict[str, Any]]:
    """Each later system against the first, metric by metric, on the same items (see
    `intervals.compare`); `note` says why a comparison cannot show much.

    Raises InputError: files of predictions with different references.
    """
    found, first = [], systems[0]
    for second in systems[1:]:
        if first.settings.get("references") != second.settings.get("references"):
            raise InputError(
                f"predictions {first.name}, {second.name}: their references differ, so they cannot "
                "be compared; give files on the same items, in the same order, or score each alone"
            )
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
            found.append(
                {"metric": f"eval_{name}", **names, **result, "p_value_floor": floor, "note": note}
            )
    return found
