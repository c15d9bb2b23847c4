"""Data preparation shard by shard, under datatrove's executors.

It takes the steps that one machine takes and gives the same data set. A shard is a contiguous part
of the documents in their order; what a later job needs of all shards (digests, signatures, links)
is small beside their texts.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, concatenate_datasets, load_from_disk

from hfscale.cleaning.duplicates import connect, first_of_equal, near_links, sketch, text_digests
from hfscale.cleaning.engines import PROBLEMS
from hfscale.cleaning.rules import CleaningArguments, advice_for
from hfscale.cleaning.stages import Ledger, keep_first
from hfscale.cleaning.steps import (
    clean_texts,
    drop_copies,
    finish_texts,
    load_source,
    write_data_set,
)
from hfscale.data.files import find_files
from hfscale.folders import DATA_CARD, PREPARED_FILES, clear_disk_errors, write_atomically
from hfscale.manifest import check_manifest, write_manifest
from hfscale.process import InputError
from hfscale.stopping import end_with_parent
from hfscale.whole_folder import whole_folder

STARTS = 2  # of a task whose process is killed


def run_job(
    data: None,
    rank: int,
    world_size: int,
    *,
    name: str,
    job: Callable[[int, CleaningArguments, Path, int], None],
    args: CleaningArguments,
    work: Path,
    tasks: int,
) -> None:
    """One of the jobs below as a step of a datatrove pipeline.

    Raises InputError, also for a full disk or a process that was killed; its line is kept beside
    the job's logs until the task is done, for those who do not see this process end.
    """
    from loguru import logger

    datasets.disable_progress_bars()
    problem = work / "logs" / name / PROBLEMS / f"{rank:05d}"
    task = partial(job, rank, args, work, tasks)
    try:
        with clear_disk_errors(str(work), "finished tasks are kept for another run"):
            if _is_worker_of_pool():
                _in_own_process(f"job {name}, task {rank}", task)
            else:
                task()
    except InputError as error:
        logger.remove()  # datatrove would show a traceback beside our line
        problem.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(problem, f"{error}\n")
        raise
    problem.unlink(missing_ok=True)


def _is_worker_of_pool() -> bool:
    """Datatrove's pools, of local processes and in each of Ray's workers, are multiprocess'."""
    import multiprocess

    return multiprocess.current_process().daemon


def _in_own_process(place: str, task: Callable[[], None]) -> None:
    """A pool waits for ever when one of its workers is killed, as the system does if memory runs
    out. So the work is done by a process of its own, and begun once more if that is killed; all of
    them end with the pool's parent, so that no two write the same shard.
    """
    end_with_parent(os.getppid())
    for _ in range(STARTS):
        with ProcessPoolExecutor(
            1, get_context("fork"), initializer=end_with_parent, initargs=(os.getpid(),)
        ) as pool:
            try:
                return pool.submit(task).result()
            except BrokenProcessPool:
                continue
    raise InputError(
        f"{place}: its process was killed {STARTS} times, which the system does when memory runs "
        "out; take more tasks, or fewer workers at once"
    )


def try_shard(
    args: CleaningArguments, tasks: int, folder: Path, record: dict[str, Any]
) -> dict[str, Any]:
    """The card of what the first task of `tasks` reads, as if that were all."""
    ledger = Ledger(folder / "dropped.jsonl", advice=advice_for(args))
    groups, pieces = _share(0, args, tasks)
    documents = load_source(args, ledger, groups, pieces)
    documents = clean_texts(documents, args, ledger)
    documents = drop_copies(documents, args, ledger)
    documents = finish_texts(documents, args, ledger)
    return write_data_set(documents, args, ledger, folder, record)


def read_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """This task's part of the source."""
    ledger = Ledger(_file(work, "read", rank, ".jsonl"), shard=True)
    groups, pieces = _share(rank, args, tasks)
    documents = load_source(args, ledger, groups, pieces)
    _save(documents, ledger, work, "read", rank)


def _share(
    rank: int, args: CleaningArguments, tasks: int
) -> tuple[list[tuple[list[str], int]], int]:
    """Groups and pieces for `load_source`: whole files, or a part of one when there are fewer files
    than tasks.
    """
    names: list[str] = []
    for name in args.source:
        files = find_files(name)
        names += [str(file) for file in files] if files else [name]
    pieces = -(-tasks // len(names))  # of each, rounded up: at least one for each task
    num_parts = len(names) * pieces
    parts = range(rank * num_parts // tasks, (rank + 1) * num_parts // tasks)
    if pieces == 1:
        return [([names[part] for part in parts], 0)], 1
    return [([names[part // pieces]], part % pieces) for part in parts], pieces


def clean_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """`clean_texts`, and what the search for copies needs."""
    ledger = Ledger(_file(work, "clean", rank, ".jsonl"), shard=True)
    documents = _load(work, "read", [rank])
    # Numbered through all shards.
    first_id = sum(len(_load(work, "read", [earlier], sizes_only=True)) for earlier in range(rank))
    ids = first_id + np.arange(len(documents))
    documents = documents.remove_columns("id").add_column("id", ids)
    documents = clean_texts(documents, args, ledger)
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
    if not args.near_duplicates:
        return
    kept = np.unique(first_of_equal(_array(work, "clean", "digests", tasks)))
    documents = _load(work, "clean", range(tasks), sizes_only=True).select(kept)
    signatures = _array(work, "clean", "signatures", tasks)[kept]
    links = near_links(
        documents, signatures, threshold=args.near_duplicate_threshold, part=rank, parts=tasks
    )
    np.savez(_file(work, "link", rank, ".npz"), links=links)


def finish_shard(rank: int, args: CleaningArguments, work: Path, tasks: int) -> None:
    """Drop this shard's copies of any document, then `finish_texts`."""
    ledger = Ledger(_file(work, "finish", rank, ".jsonl"), shard=True)
    documents = _load(work, "clean", [rank])
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
    rank: int,
    args: CleaningArguments,
    work: Path,
    tasks: int,
    *,
    output_dir: str,
    overwrite: bool,
    record: dict[str, Any],
) -> None:
    """One task: all shards as one data set with one card; the shards go."""
    with whole_folder(
        output_dir, overwrite=overwrite, last_file=DATA_CARD, written=PREPARED_FILES
    ) as folder:
        ledger = Ledger(folder / "dropped.jsonl", advice=advice_for(args))
        for job in ("read", "clean", "finish"):
            ledger.merge([_file(work, job, task, ".jsonl") for task in range(tasks)])
        documents = _load(work, "finish", range(tasks))
        write_data_set(documents, args, ledger, folder, record)
    for job in ("read", "clean", "link", "finish"):
        shutil.rmtree(work / job, ignore_errors=True)


def _file(work: Path, job: str, rank: int, suffix: str = "") -> Path:
    (work / job).mkdir(exist_ok=True)
    return work / job / f"{rank:05d}{suffix}"


def _save(documents: Dataset, ledger: Ledger, work: Path, job: str, rank: int) -> None:
    shutil.rmtree(_file(work, job, rank), ignore_errors=True)  # of a task that was stopped
    documents.save_to_disk(_file(work, job, rank), num_shards=1)  # also of no documents
    write_manifest(_file(work, job, rank))
    ledger.remove_scratch()
    ledger.save()


def _load(work: Path, job: str, ranks: Iterable[int], sizes_only: bool = False) -> Dataset:
    """The documents of these tasks; raises InputError for a shard that was damaged. Sizes alone are
    looked at where each task needs all shards, whose own tasks read them through.
    """
    shards = []
    for rank in ranks:
        folder = _file(work, job, rank)
        if problem := check_manifest(folder, sizes_only=sizes_only):
            raise _damaged(work, f"{folder}: {problem}")
        shards.append(load_from_disk(str(folder)))
    return concatenate_datasets(shards)


def _array(work: Path, job: str, name: str, tasks: int) -> np.ndarray:
    arrays = []
    for task in range(tasks):
        file = _file(work, job, task, ".npz")
        try:
            with np.load(file) as saved:
                arrays.append(saved[name])
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise _damaged(work, f"{file}: cannot be read: {error}") from None
    return np.concatenate(arrays)


def _damaged(work: Path, problem: str) -> InputError:
    return InputError(f"{problem}; delete {work} to start anew")
