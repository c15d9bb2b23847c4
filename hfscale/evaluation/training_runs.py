"""What a model was trained on and what was held out, as its run.json and those before it say."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hfscale.arguments import TaskArguments
from hfscale.data.files import find_files
from hfscale.data.fingerprints import text_fingerprint
from hfscale.folders import WORD_CHECKPOINT
from hfscale.process import InputError
from hfscale.tasks.examples import example_texts, load_task, split_rows
from hfscale.tasks.held_out import row_hash
from hfscale.tasks.sources import Row, read_task_rows


def training_runs(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Folder and run.json of the run that made a model (of a checkpoint too), and of those before
    it whose models it started from."""
    seen: set[Path] = set()
    while name and Path(name).is_dir() and (folder := Path(name).resolve()) not in seen:
        seen.add(folder)
        is_checkpoint = folder.name.startswith(("checkpoint-", WORD_CHECKPOINT))
        path = (folder.parent if is_checkpoint else folder) / "run.json"
        try:
            record = json.loads(path.read_text("utf-8"))
            model = record["config"].get("model")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        yield name, record
        name = model if isinstance(model, str) else ""


def same_sources(asked: Sequence[str], used: Sequence[str] | None) -> list[str]:
    """Those of the asked sources that are, or have files, among the used ones."""
    known = {part for source in used or [] for part in _parts_of(source)}
    return [source for source in asked if not known.isdisjoint(_parts_of(source))]


def _parts_of(source: str) -> set[str]:
    """The files of a source; of one without files, such as a Hub id, its name."""
    try:
        files = find_files(source)
    except InputError:
        files = []
    return {str(path.resolve()) for path in files} or {source}


def held_out_fingerprint(record: dict[str, Any]) -> str | None:
    """Of the text that a run was judged on, as its run.json says."""
    return record.get("data", {}).get("fingerprint", {}).get("validation")


@dataclass(frozen=True)
class TaskRun:
    """A run that learned a task from files: hashes of its rows, as they would be split today."""

    folder: str
    args: TaskArguments
    record: dict[str, Any]
    trained: frozenset[str]
    held_out: frozenset[str]

    def owns(self, sources: list[str], hashes: set[str]) -> bool:
        """Whether these sources, which hold rows of these hashes, are what it was trained on: the
        same files, or all of the same rows under another name."""
        if same_sources(sources, self.args.task_source):
            return True
        return bool(self.trained) and hashes == self.trained | self.held_out

    def hashes_of(self, sources: list[str]) -> dict[str, str]:
        """The hash of each row of some sources, by its place, read in this run's format."""
        return {row[0]: row_hash(row) for row in read_task_rows(sources, self.args.task_format)}

    def has_changed(self) -> bool:
        """Whether it would hold out other examples today than it did."""
        try:
            examples = load_task(self.args, seed=self.record["config"].get("seed", 0))
        except InputError:
            return True
        now = text_fingerprint(example_texts(examples)["validation"])
        return now != held_out_fingerprint(self.record)


def task_runs(models: Sequence[str]) -> list[TaskRun]:
    """The runs behind the models that learned a task from files, each once."""
    found: dict[Path, TaskRun] = {}
    for name in models:
        for folder, record in training_runs(name):
            sources = record["config"].get("task_source")
            if sources and not sources[0].startswith("embedded:"):
                found.setdefault(Path(folder).resolve(), _task_run(folder, record))
    return list(found.values())


def _task_run(folder: str, record: dict[str, Any]) -> TaskRun:
    names = {item.name for item in fields(TaskArguments)}
    config = {name: value for name, value in record["config"].items() if name in names}
    args = TaskArguments(**config)
    trained: list[Row] = []
    held_out: list[Row] = []
    with contextlib.suppress(InputError):  # its files are not there any more
        trained, held_out = split_rows(args)
    hashes = [frozenset(map(row_hash, rows)) for rows in (trained, held_out)]
    return TaskRun(folder, args, record, *hashes)
