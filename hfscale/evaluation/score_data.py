"""What the score recipe scores: text or a task's examples, and what became of the rest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from datasets import Dataset

from hfscale.arguments import SourceArguments, TaskArguments
from hfscale.data.sources import load_documents
from hfscale.data.splits import load_run_splits
from hfscale.evaluation.training_runs import (
    TaskRun,
    held_out_fingerprint,
    same_sources,
    task_runs,
    training_runs,
)
from hfscale.process import InputError
from hfscale.tasks.examples import load_task, make_examples
from hfscale.tasks.held_out import row_hash
from hfscale.tasks.minimal_pairs import read_pairs
from hfscale.tasks.sources import Row, read_task_rows

MADE_EXAMPLES = 500  # that an embedded task holds out, unless another number is asked for
SHOWN_PLACES = 3


@dataclass
class ScoreData:
    """What is scored, and what became of the rest."""

    unit: str  # what one row is: document, example, prediction
    rows: Dataset | None = None  # None: lm-eval reads them, or they lie with the predictions
    counts: Counter = field(default_factory=Counter)  # read, left out by reason, scored
    notes: list[str] = field(default_factory=list)  # what was held out, and why

    @property
    def scored_rows(self) -> Dataset:
        """The rows, where they are documents or examples."""
        if self.rows is None:
            raise ValueError(f"{self.unit}s are not read here")
        return self.rows


# ---- text


def load_text(source: SourceArguments, *, split: str, models: Sequence[str]) -> ScoreData:
    """The documents of a source, and which of the models were trained on some of it."""
    dropped: dict[str, int] = {}
    rows = load_documents(
        source.source,
        dataset_config_name=source.dataset_config_name,
        text_column=source.text_column,
        sample_by=source.sample_by,
        on_error=source.on_error,
        split=split,
        dropped=dropped,
    )
    counts = Counter(dropped)
    counts.update(read=len(rows) + counts.total(), scored=len(rows))
    notes = []
    for name in models:
        for folder, record in training_runs(name):
            notes += [
                f"{folder} was trained on {trained_on}; without --source what it held out is scored"
                for trained_on in same_sources(source.source, record["config"].get("source"))
            ]
    return ScoreData("document", rows, counts, notes)


def load_held_out_text(models: Sequence[str], *, trust_remote_code: bool = False) -> ScoreData:
    """The text that the first model's run held out, and which of the others saw some of it.

    Raises InputError as `load_run_splits`."""
    first, *others = models
    splits = load_run_splits(first, trust_remote_code=trust_remote_code)
    rows = splits["validation"]
    counts = Counter(read=len(rows), scored=len(rows))
    if isinstance(splits["train"], Dataset):  # of a stream nobody knows how long it is
        counts.update(read=len(splits["train"]), trained_on=len(splits["train"]))
    notes = [f"scored is what {first} held out of the text that it was trained on"]
    _, first_record = next(training_runs(first))
    for name in others:
        for folder, record in training_runs(name):
            shared = same_sources(first_record["config"]["source"], record["config"].get("source"))
            if shared and held_out_fingerprint(record) != held_out_fingerprint(first_record):
                notes.append(
                    f"{folder} held out another part of {', '.join(shared)}, so it was trained on "
                    "some of this"
                )
    return ScoreData("document", rows, counts, notes)


# ---- examples of a task


def load_examples(
    task: TaskArguments, *, models: Sequence[str], limit: int | None, seed: int
) -> ScoreData:
    """A task's examples, but those of a file that one of the models was trained on.

    Args:
        models: names of folders, or Hub ids.
        limit: at most so many examples, always the same ones; None: all, or of an embedded task
            MADE_EXAMPLES.
        seed: of the examples that an embedded task makes.
    """
    sources = task.task_validation_source or task.task_source or []
    if sources[0].startswith("embedded:"):
        data = _made_examples(task, sources[0], limit or MADE_EXAMPLES, seed)
    else:
        data = _examples_of_files(task, sources, models, limit)
    data.counts["scored"] = len(data.scored_rows)
    return data


def _made_examples(task: TaskArguments, source: str, limit: int, seed: int) -> ScoreData:
    counts: dict[str, Counter] = {}
    made = load_task(replace(task, validation_examples=limit), seed=seed, counts=counts)
    note = f"{source} makes these examples, and holds them out in training"
    return ScoreData("example", made["validation"], counts["validation"], [note])


def _examples_of_files(
    task: TaskArguments, sources: Sequence[str], models: Sequence[str], limit: int | None
) -> ScoreData:
    """All of them in their order; of a file that a model was trained on what its run held out."""
    is_one_source = task.task_format == "parallel"  # two files, line by line
    groups = [list(sources)] if is_one_source else [[source] for source in sources]
    runs = task_runs(models)
    data = ScoreData("example")
    kept: list[Row] = []
    for group in groups:
        rows = read_task_rows(group, task.task_format)
        data.counts["read"] += len(rows)
        for run in runs:
            rows = _without_training_rows(rows, group, run, data)
        kept += rows
    if runs and not data.counts["trained_on"]:
        folders = ", ".join(run.folder for run in runs)
        data.notes.append(f"nothing is held out: {folders} did not learn from {', '.join(sources)}")
    chosen = _at_most(kept, limit)
    data.counts["beyond"] = len(kept) - len(chosen)
    data.rows = make_examples(chosen, task, data.counts)
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


# ---- minimal pairs


def load_pairs(
    sources: Sequence[str],
    *,
    columns: str | Sequence[str] | None,
    group_column: str | None,
    limit: int | None,
) -> ScoreData:
    """Minimal pairs as choices without a prompt, of which the first is right, each with its `group`
    and `linguistics_term` (see `read_pairs`); those of one sentence twice are left out.

    `limit`: at most so many of each group, always the same ones; None: all.
    """
    pairs = read_pairs(sources, columns=columns, group_column=group_column)
    same_places = []
    by_group: dict[str, list[Row]] = {}
    for place, pair in pairs:
        good, bad = pair["choices"]
        if good == bad:
            same_places.append(place)
        else:
            by_group.setdefault(pair["group"], []).append((place, pair))
    if not by_group:
        raise InputError(
            f"minimal_pairs {', '.join(sources)}: each pair is one sentence twice; give others"
        )
    scored = [
        {"place": place, **pair, "prompt": "", "answer": 0, "references": pair["choices"][:1]}
        for group in by_group.values()
        for place, pair in _at_most(group, limit)
    ]
    counts = Counter(
        read=len(pairs),
        identical=len(same_places),
        beyond=len(pairs) - len(same_places) - len(scored),
        scored=len(scored),
    )
    notes = [_about_identical(same_places)] if same_places else []
    return ScoreData("minimal pair", Dataset.from_list(scored), counts, notes)


def _about_identical(places: Sequence[str]) -> str:
    shown = ", ".join(places[:SHOWN_PLACES])
    more = len(places) - SHOWN_PLACES
    if more > 0:
        shown += f" and {more:,} more"
    are = "pair is" if len(places) == 1 else "pairs are"
    return f"{len(places):,} {are} one sentence twice, which no model can tell apart: {shown}"
