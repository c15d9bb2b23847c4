"""What models or saved predictions score, and whether one is better than another."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.evaluation.lm_eval import run_lm_eval
from hfscale.evaluation.predictions import read_predictions
from hfscale.evaluation.score_args import UNFINISHED
from hfscale.evaluation.score_data import ScoreData
from hfscale.generation.texts import end_ids
from hfscale.metrics.batches import Journal
from hfscale.metrics.code import split_tests
from hfscale.metrics.evaluate_metrics import compute_with_intervals, whole_value_notes
from hfscale.metrics.intervals import (
    Statistics,
    compare_paired,
    drawn_floor,
    interval_note,
    interval_notes,
    paired_note,
)
from hfscale.metrics.perplexity import perplexity_metrics, score_documents
from hfscale.metrics.text_notes import text_notes
from hfscale.metrics.texts import (
    check_reference_lists,
    check_references,
    metric_values,
    tie_shares,
)
from hfscale.metrics.user_metrics import UserMetric, try_user_metrics
from hfscale.models import context_limit, count_parameters, weights_fingerprint
from hfscale.process import InputError
from hfscale.tasks.answers import answer_task
from hfscale.tasks.chat_templates import set_chat_template
from hfscale.tasks.fitting import fit_examples
from hfscale.tasks.programs import check_programs

RESAMPLES = 1000  # of a comparison
# Not comparable where two tokenizers cut the text into other tokens.
PER_TOKEN = ("loss", "perplexity")
# Settings of greedy answers and of drawn ones, as they are reported.
GREEDY = ("do_sample", "seed")
DECODING = (*GREEDY, "temperature", "top_k", "top_p", "num_samples")
ONE_PROCESS = (
    "programs ran in one process with their tests (tests_apart is false, or no tests follow "
    "{prediction}); one that cheats can pass"
)


@dataclass
class System:
    """A model or a file of predictions, and what it scored."""

    name: str
    # What the numbers depend on: model, context, tokenizer, decoding, ...
    settings: dict[str, Any]
    # {metric: what it kept of each item}
    statistics: dict[str, Statistics] = field(default_factory=dict)
    # {name: value}, with its interval beside it as `_ci95`
    metrics: dict[str, Any] = field(default_factory=dict)
    # {name of a value: why it is missing, or what it leaves out}
    notes: dict[str, str] = field(default_factory=dict)
    # One line each in predictions.jsonl
    records: list[dict[str, Any]] = field(default_factory=list)
    # Of minimal pairs: {what groups them: {group: what it scored}}
    groups: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


def describe_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> System:
    """A model with what its numbers depend on; nothing is scored yet."""
    vocabulary = _digest(sorted(tokenizer.get_vocab().items()))
    settings = {
        "model": {
            "architecture": type(model).__name__,
            **count_parameters(model),
            "dtype": str(model.dtype),
            "fingerprint": weights_fingerprint(name),
        },
        "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {vocabulary}",
    }
    return System(name, settings)


def open_journal(
    output_dir: str, system: System, settings: dict[str, Any], *, overwrite: bool
) -> Journal:
    """Where this model's finished batches are kept. Nothing is written yet, but those of a run to
    be replaced go.

    `settings` are the arguments that must be the same when a run goes on.
    """
    folder = Path(output_dir, UNFINISHED, _digest(system.name))
    state = PartialState()
    if overwrite and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    return Journal(folder, settings | system.settings)


def score_text(
    system: System,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None,
    stride: int | None,
    batch_size: int,
    seed: int,
    journal: Journal,
) -> None:
    """Perplexity and its kin of documents; see `score_documents`."""
    scores = score_documents(
        model,
        tokenizer,
        texts,
        max_length=max_length,
        stride=stride,
        batch_size=batch_size,
        progress=True,
        journal=journal,
    )
    system.settings |= {
        "context": scores.max_length,
        "stride": scores.stride,
        "prefix_token": scores.prefix_token,
    }
    system.metrics, system.notes = perplexity_metrics(scores, seed=seed)
    values = partial(metric_values, "perplexity")
    system.statistics = {"perplexity": Statistics(scores.sums, values)}


def score_task(
    system: System,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    task: TaskArguments,
    metrics: evaluate.CombinedEvaluations,
    *,
    decoding: dict[str, Any],
    batch_size: int,
    allow_code_execution: bool,
    journal: Journal,
) -> None:
    """A task's metrics of what the model answers.

    Args:
        task: how an example is asked, and its metrics by name.
        metrics: those of `load_metrics`, combined.
        decoding: a value for each of DECODING.
    """
    fitted, shortened = fit_prompts(model, tokenizer, examples, task)
    inputs, system.records = answer_task(
        model,
        tokenizer,
        fitted,
        task,
        journal=journal,
        batch_size=batch_size,
        allow_code_execution=allow_code_execution,
        **decoding,
    )
    system.settings["context"] = context_limit(model) or 2**31
    system.settings["cut_items"] = sum(record["cut_tokens"] > 0 for record in system.records)
    if set(task.metrics) != {"accuracy"}:
        names = DECODING if decoding["do_sample"] else GREEDY
        system.settings |= {
            "max_new_tokens": task.max_new_tokens,
            "stop_strings": task.stop_strings,
            "end_tokens": tokenizer.convert_ids_to_tokens(end_ids(model, tokenizer)),
            **{name: decoding[name] for name in names},
            "shortened": shortened,
        }
    references = examples["references"][:]
    measure_items(system, metrics, inputs, references, task.metric_options, decoding["seed"])
    has_tests = split_tests(task.test_program, tests_apart=task.tests_apart)[1]
    if "pass_at_k" in task.metrics and not has_tests:
        system.notes["pass_at_k"] = ONE_PROCESS


def fit_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    task: TaskArguments,
) -> tuple[Dataset, dict[str, int]]:
    """The examples as the model is asked, and how many prompts lost how many tokens on the way.
    Choices alone stay whole: what they are too long for is cut from the left."""
    if "messages" in examples.column_names:
        set_chat_template(tokenizer, task.chat_template)
    if set(task.metrics) == {"accuracy"}:
        return examples, {"prompts": 0, "tokens": 0}
    context = context_limit(model) or 2**31
    fitted, shortened = fit_examples(
        DatasetDict(validation=examples), tokenizer, task, context, for_training=False
    )
    return fitted["validation"], shortened["validation"]


def score_lm_eval(
    system: System,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    data: str | None,
    include: str | None,
    limit: int | None,
    batch_size: int,
    seed: int,
    journal: Journal,
) -> None:
    """Metrics of lm-eval's tasks; see `run_lm_eval`."""
    system.metrics, facts = run_lm_eval(
        model,
        tokenizer,
        tasks,
        data=data,
        seed=seed,
        include=include,
        batch_size=batch_size,
        limit=limit,
        journal=journal,
    )
    # lm-eval gives a perplexity no interval.
    intervals = {name: value for name, value in system.metrics.items() if value is not None}
    system.notes = interval_notes(intervals)
    system.settings |= facts | {"context": context_limit(model), "seed": seed}


def score_predictions(
    path: str,
    data: ScoreData,
    metrics: evaluate.CombinedEvaluations,
    options: dict[str, dict[str, Any]],
    *,
    seed: int,
) -> System:
    """What a file of saved predictions scores; see `read_predictions`. Where the data is no task's
    examples, what is counted is the predictions.

    `options` are those of the metrics, by their names. Raises InputError as `read_predictions` and
    `check_all_references`.
    """
    predictions, references, places = read_predictions(path, data.rows)
    if not data.counts:
        data.counts = Counter(read=len(places), scored=len(places))
    check_all_references(metrics, references, places, options)
    system = System(path, {"fingerprint": _digest(predictions), "references": _digest(references)})
    inputs: dict[str, list] = {"predictions": predictions, "references": references}
    measure_items(system, metrics, inputs, references, options, seed)
    return system


def check_all_references(
    metrics: evaluate.CombinedEvaluations,
    references: Sequence[Sequence[str]],
    places: Sequence[str],
    options: dict[str, dict[str, Any]],
) -> None:
    """Raise InputError if one of the metrics that compare texts cannot score against these
    references; see `check_references`."""
    for metric in metrics.evaluation_modules:
        if isinstance(metric, UserMetric):
            check_reference_lists(metric.label, references, places)
        elif "predictions" in metric.inputs:
            metric_options = options.get(metric.label, {})
            check_references(metric.label, references, places=places, **metric_options)


def check_examples(
    examples: Dataset,
    task: TaskArguments,
    metrics: evaluate.CombinedEvaluations,
    allow_code_execution: bool,
) -> None:
    """Whether the metrics can judge answers to these examples: not after hours of generating.

    Raises InputError: as `check_all_references`, `try_user_metrics` and `check_programs`.
    """
    references = examples["references"][:]
    check_all_references(metrics, references, examples["place"][:], task.metric_options)
    try_user_metrics(metrics, references)
    if "pass_at_k" in task.metrics and PartialState().is_main_process:
        check_programs(examples, allow_code_execution=allow_code_execution)


def measure_items(
    system: System,
    metrics: evaluate.CombinedEvaluations,
    inputs: dict[str, list],
    references: Sequence[Sequence[str]],
    options: dict[str, dict[str, Any]],
    seed: int,
) -> None:
    """Put into the system the values of the metrics, with intervals and notes, what they keep of
    each item, and what the value of each depends on."""
    system.metrics = compute_with_intervals(metrics, inputs, seed)
    modules = metrics.evaluation_modules
    for metric in modules:
        if metric.statistics is not None:
            system.statistics[metric.label] = metric.statistics
    labels = [metric.label for metric in modules]
    system.notes = interval_notes(system.metrics)
    system.notes |= whole_value_notes(metrics)
    system.notes |= text_notes(references, labels, options)
    if "accuracy" in labels:
        system.metrics |= tie_shares([record["tied"] for record in system.records])
    system.metrics["items"] = len(references)
    system.settings["signatures"] = {
        metric.label: metric.signature(references) for metric in modules
    }


def fingerprint(data: ScoreData, lm_eval_data: str | None) -> str | None:
    """Of what is scored: the documents' text; all columns of a task's examples but those that say
    where and whence, not what; lm-eval's local file. None: it is not read here."""
    if data.unit == "document":
        return text_fingerprint(data.scored_rows)
    if data.rows is not None:
        told = [name for name in ("place", "columns") if name in data.rows.column_names]
        return _digest(list(data.rows.remove_columns(told)))
    return _digest(Path(lm_eval_data).read_text("utf-8")) if lm_eval_data else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def compare_systems(systems: Sequence[System], seed: int) -> list[dict[str, Any]]:
    """Each later system against the first, metric by metric, on the same items (see
    `intervals.compare_paired`); `note` says why a comparison cannot show much.

    Raises InputError: files of predictions with different references.
    """
    first = systems[0]
    comparisons = []
    for second in systems[1:]:
        if first.settings.get("references") != second.settings.get("references"):
            raise InputError(
                f"predictions {first.name}, {second.name}: their references differ, so they cannot "
                "be compared; give files on the same items, in the same order, or score each alone"
            )
        for metric in first.statistics:
            comparisons += _compare_metric(metric, first, second, seed)
    return comparisons


def _compare_metric(metric: str, first: System, second: System, seed: int) -> list[dict[str, Any]]:
    rows, values = first.statistics[metric]
    other_rows = second.statistics[metric].rows
    same_tokens = metric != "perplexity" or np.array_equal(rows[:, 1], other_rows[:, 1])
    # A perplexity can be larger than a float; such a difference is left out below.
    with np.errstate(all="ignore"):
        results = compare_paired(rows, other_rows, values, resamples=RESAMPLES, seed=seed)
    floor = drawn_floor(rows, other_rows, RESAMPLES)
    comparisons = []
    for name, result in results.items():
        interval = result["difference_ci95"]
        is_finite = np.isfinite([result["difference"], *(interval or [])]).all()
        is_comparable = same_tokens or name not in PER_TOKEN
        if not is_finite or not is_comparable:
            continue
        note = paired_note(rows, other_rows) or interval_note(interval)
        comparisons.append(
            {
                "metric": f"eval_{name}",
                "first": first.name,
                "second": second.name,
                **result,
                "p_value_floor": floor,
                "note": note or None,
            }
        )
    return comparisons
