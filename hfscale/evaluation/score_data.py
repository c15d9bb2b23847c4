"""What the score recipe scores: text or a task's examples, and what became of the rest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from hfscale.data.sources import load_documents, load_run_splits
from hfscale.evaluation.training_runs import (
    TaskRun,
    held_out_fingerprint,
    same_sources,
    task_runs,
    training_runs,
)
from hfscale.metrics.texts import TEXT_METRICS, check_references
from hfscale.process import InputError
from hfscale.tasks.examples import load_task, make_examples
from hfscale.tasks.held_out import row_hash
from hfscale.tasks.programs import check_programs
from hfscale.tasks.sources import Row, read_task_rows

MADE_EXAMPLES = 500  # that an embedded task holds out, unless another number is asked for


@dataclass
class ScoreData:
    """What is scored, and what became of the rest."""

    unit: str  # what one row is: document, example, prediction
    rows: Dataset | None = None  # None: lm-eval reads them, or they lie with the predictions
    counts: Counter = field(default_factory=Counter)  # read, left out by reason, scored
    notes: list[str] = field(default_factory=list)  # what was held out, and why


def load_score_data(args: Any) -> ScoreData:
    """The documents or examples that `args` name.

    Raises InputError also for references that a metric cannot score against: not after hours of
    generating."""
    if args.lm_eval:
        return ScoreData("example")
    if args.task_source:
        return _task_data(args)
    if args.predictions:
        return ScoreData("prediction")
    return _given_text(args) if args.source else _held_out_text(args)


# ---- text


def _given_text(args: Any) -> ScoreData:
    names = ("text_column", "sample_by", "split", "dataset_config_name", "on_error")
    dropped: dict[str, int] = {}
    rows = load_documents(
        args.source, dropped=dropped, **{name: getattr(args, name) for name in names}
    )
    counts = Counter(dropped)
    counts.update(read=len(rows) + counts.total(), scored=len(rows))
    notes = []
    for name in args.model:
        for folder, record in training_runs(name):
            for source in same_sources(args.source, record["config"].get("source")):
                notes.append(
                    f"{folder} was trained on {source}; without --source what it held out is scored"
                )
    return ScoreData("document", rows, counts, notes)


def _held_out_text(args: Any) -> ScoreData:
    first, *others = args.model
    splits = load_run_splits(first)
    rows = splits["validation"]
    counts = Counter(read=len(rows), scored=len(rows))
    if isinstance(splits["train"], Dataset):  # of a stream nobody knows how long it is
        counts.update(read=len(splits["train"]), trained_on=len(splits["train"]))
    notes = [f"scored is what {first} held out of the text that it was trained on"]
    [(_, own), *_] = training_runs(first)
    for name in others:
        for folder, record in training_runs(name):
            shared = same_sources(own["config"]["source"], record["config"].get("source"))
            if shared and held_out_fingerprint(record) != held_out_fingerprint(own):
                notes.append(
                    f"{folder} held out another part of {', '.join(shared)}, so it was trained on "
                    "some of this"
                )
    return ScoreData("document", rows, counts, notes)


# ---- examples of a task


def _task_data(args: Any) -> ScoreData:
    sources = args.task_validation_source or args.task_source
    if sources[0].startswith("embedded:"):
        data = _made_examples(args)
    else:
        data = _examples_of_files(sources, args)
    data.counts["scored"] = len(data.rows)
    references, places = data.rows["references"][:], data.rows["place"][:]
    for metric in TEXT_METRICS:
        if metric in args.metrics:
            options = args.metric_options.get(metric, {})
            check_references(metric, references, places=places, **options)
    if "pass_at_k" in args.metrics and PartialState().is_main_process:
        check_programs(data.rows, allow_code_execution=args.allow_code_execution)
    return data


def _made_examples(args: Any) -> ScoreData:
    limit = args.validation_examples or MADE_EXAMPLES
    counts: dict[str, Counter] = {}
    made = load_task(replace(args, validation_examples=limit), seed=args.seed, counts=counts)
    note = f"{args.task_source[0]} makes these examples, and holds them out in training"
    return ScoreData("example", made["validation"], counts["validation"], [note])


def _examples_of_files(sources: Sequence[str], args: Any) -> ScoreData:
    """All of them in their order; of a file that a model was trained on what its run held out."""
    together = args.task_format == "parallel"  # two files are one source
    groups = [list(sources)] if together else [[source] for source in sources]
    runs = [] if args.predictions else task_runs(args.model)
    data, kept = ScoreData("example"), []
    for group in groups:
        rows = read_task_rows(group, args.task_format)
        data.counts["read"] += len(rows)
        for run in runs:
            rows = _without_training_rows(rows, group, run, data)
        kept += rows
    if runs and not data.counts["trained_on"]:
        folders = ", ".join(run.folder for run in runs)
        data.notes.append(f"nothing is held out: {folders} did not learn from {', '.join(sources)}")
    chosen = _at_most(kept, args.validation_examples)
    data.counts["beyond"] = len(kept) - len(chosen)
    data.rows = make_examples(chosen, args, data.counts)
    return data


def _without_training_rows(
    rows: list[Row], sources: list[str], run: TaskRun, data: ScoreData
) -> list[Row]:
    """The rows of some sources that a run held out, if it was trained on these; else all."""
    hashes = run.hashes_of(sources)
    names = ", ".join(sources)
    if not run.owns(sources, set(hashes.values())):
        seen = sum(value in run.trained for value in hashes.values())
        if seen:
            data.notes.append(
                f"{seen} examples of {names} are also among those that {run.folder} learned from"
            )
        return rows
    if run.args.task_validation_source:
        raise InputError(
            f"task_source {names}: {run.folder} was trained on all of it; score what it was judged "
            f"on: --task_source {' '.join(run.args.task_validation_source)}"
        )
    kept = [row for row in rows if hashes.get(row[0]) in run.held_out]
    data.counts["trained_on"] += len(rows) - len(kept)
    data.notes.append(f"{run.folder} was trained on {names}: only what it held out is scored")
    if run.has_changed():
        data.notes.append(
            f"{names} has changed since, so {run.folder} may have been trained on some of this"
        )
    return kept


def _at_most(rows: list[Row], most: int | None) -> list[Row]:
    """So many rows, always the same ones, in their order."""
    if most is None or len(rows) <= most:
        return rows
    chosen = set(map(id, sorted(rows, key=row_hash)[:most]))
    return [row for row in rows if id(row) in chosen]
