"""What is made from text and kept for later runs, in the cache of `datasets`: documents as they
were read, rows, tokenizers.

Each thing lies in a folder of its own, with a manifest, and is compared with that before it is
used. What was damaged, or not finished, is made anew.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Dataset, Features
from datasets.fingerprint import Hasher

from hfscale import __version__
from hfscale.data.files import check_cache
from hfscale.data.verified import problem_in
from hfscale.held_file import held_file
from hfscale.manifest import MANIFEST, unlisted_files, write_manifest

T = TypeVar("T")


def kept(kind: str, key: Any, make: Callable[[Path], T]) -> T:
    """What `make` gives; all that it writes lies in the folder that it is called with.

    It is called each time: with an empty folder, or with one that holds what an earlier call wrote,
    and then it is to read that. One process at a time is in here for the same key.

    Args:
        kind: the word for it in messages, and with which the folder's name begins.
        key: all that decides what is made.

    Raises:
        InputError: the cache cannot be written.
    """
    version = (__version__, datasets.__version__)
    folder = _root() / f"{kind}-{Hasher.hash([key, version])}"
    with _alone(folder):
        if not datasets.is_caching_enabled():
            shutil.rmtree(folder, ignore_errors=True)
        _remove_unless_whole(folder)
        try:
            folder.mkdir(exist_ok=True)
            made = make(folder)
            _record(folder)
        except BaseException:
            if not (folder / MANIFEST).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return made


def kept_by_library(folder: Path, load: Callable[[], T]) -> T:
    """What `load` gives from a cache folder of `datasets`' own, which may hold it already, and
    without a manifest: it gets one when it is first seen, and is compared from then on.
    """
    with _alone(folder):
        if (folder / MANIFEST).exists():
            _remove_unless_whole(folder)
        made = load()
        _record(folder)
    return made


def generated(
    generator: Callable, arguments: dict[str, Any], features: Features | None = None
) -> Dataset:
    """The rows of a generator function, called with arguments that decide them."""
    return kept(
        "text",
        [generator, arguments, features],
        lambda folder: Dataset.from_generator(
            generator, gen_kwargs=arguments, features=features, cache_dir=str(folder)
        ),
    )


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is needed only until it has been read."""
    with _naming_the_cache():
        _root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=_root()) as folder:
            yield Path(folder)


def stamps_of(paths: list[str]) -> list[tuple[str, int, int]]:
    """Path, size and time of files, as part of a key: one that changed is read again."""
    states = ((os.path.abspath(path), os.stat(path)) for path in paths)
    return [(path, state.st_size, state.st_mtime_ns) for path, state in states]


def _root() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE, "hfscale")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time."""
    waiting = f"waiting for another run, which writes {folder}"
    with _naming_the_cache():
        _root().mkdir(parents=True, exist_ok=True)
        with held_file(_root() / f"{folder.name}.lock", wait=True, waiting=waiting):
            yield


@contextmanager
def _naming_the_cache() -> Iterator[None]:
    """Raises InputError that names it, if it cannot be written."""
    try:
        yield
    except Exception as error:
        check_cache(error.__cause__ or error)
        raise


def _remove_unless_whole(folder: Path) -> None:
    if not folder.exists():
        return
    if problem := problem_in(folder):
        print(f"cache {folder}: {problem}; it is made anew", file=sys.stderr)
        shutil.rmtree(folder)


def _record(folder: Path) -> None:
    """Write the manifest, unless it knows all files. Libraries leave files there that they only
    lock.
    """
    if (folder / MANIFEST).is_file() and all(
        name.endswith(".lock") for name in unlisted_files(folder)
    ):
        return
    for lock in folder.rglob("*.lock"):
        lock.unlink()
    if any(path.is_file() for path in folder.rglob("*")):
        write_manifest(folder)
    else:  # what has no rows is not written
        shutil.rmtree(folder)
