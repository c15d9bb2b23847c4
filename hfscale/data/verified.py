"""Folders with a manifest, read through once in each process: prepared data, caches, tokenizers."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from hfscale.manifest import EVERYTHING, check_manifest, has_manifest
from hfscale.process import InputError


def check_written_folder(place: str, folder: Path, patterns: Sequence[str] = EVERYTHING) -> None:
    """Raise InputError, beginning with `place`, if a folder has a manifest and is not as that says.

    Args:
        patterns: of the files that count; see `folders.matches_any`.
    """
    if not has_manifest(folder):
        return
    if problem := problem_in(folder, patterns):
        raise InputError(
            f"{place}: it is damaged: {problem}; write it again, copy it again, or, if the change "
            "is wanted, delete its manifest.json"
        )


def check_source_folder(place: str, folder: Path) -> None:
    """As `check_written_folder`, also for one split of a prepared data set."""
    check_written_folder(place, folder)
    folder = folder.absolute()
    check_written_folder(place, folder.parent, [f"{folder.name}/**"])


def problem_in(folder: Path, patterns: Sequence[str] = EVERYTHING) -> str | None:
    """As `check_manifest`, whose answer is kept while sizes and times of the files stay.

    The first process of a machine reads all the files; the others, which go on after it (see
    `main_process_first`), look at sizes alone.
    """
    if not is_first_on_machine():
        return check_manifest(folder, sizes_only=True, patterns=patterns)
    return _read_through(folder.absolute(), tuple(patterns), _state_of(folder))


def is_first_on_machine() -> bool:
    """Whether the other processes of a launch on this machine wait for this one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@functools.lru_cache(maxsize=1000)
def _read_through(folder: Path, patterns: tuple[str, ...], state: frozenset) -> str | None:
    return check_manifest(folder, patterns=patterns)


def _state_of(folder: Path) -> frozenset[tuple[str, int, int]]:
    states = ((str(path), path.stat()) for path in folder.rglob("*") if path.is_file())
    return frozenset((name, state.st_size, state.st_mtime_ns) for name, state in states)
