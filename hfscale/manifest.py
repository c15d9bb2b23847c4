"""`manifest.json`: sizes and hashes of the files of a folder that was written whole."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from hfscale.folders import LOADED_FILES, SMALL_MODEL_FILES, matches_any, write_atomically
from hfscale.process import InputError

MANIFEST = "manifest.json"
FILES = "files"  # {path below the folder: {"bytes": ..., "sha256": ...}}
EVERYTHING = ("**",)  # a pattern of `matches_any`
OWN_DIGEST = "sha256"  # of all else that the manifest says


def write_manifest(
    folder: str | Path, *, patterns: Sequence[str] = EVERYTHING, **facts: Any
) -> dict[str, Any]:
    """Write `manifest.json` into a folder, the last of its files, and return what it says. All of
    it lies on the disk then: a power cut loses what only memory holds.

    Each file is read and flushed once. For one process, once all others have written.

    Args:
        patterns: of the files to list; see `matches_any`.
        facts: more for the manifest to say, as JSON values.
    """
    folder = Path(folder)
    listed = [name for name in _files_below(folder) if matches_any(name, patterns)]
    with ThreadPoolExecutor(max_workers=1) as disk:  # which works while this thread hashes
        flushed = [disk.submit(flush_to_disk, folder / name) for name in listed]
        record = facts | {FILES: {name: _digest(folder / name) for name in listed}}
        for job in flushed:
            job.result()
    record[OWN_DIGEST] = _own_digest(record)
    write_atomically(folder / MANIFEST, json.dumps(record, indent=1))
    flush_to_disk(folder / MANIFEST)
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_to_disk(path)
    flush_to_disk(folder)
    return record


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, lie on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_manifest(
    folder: str | Path, *, sizes_only: bool = False, patterns: Sequence[str] = EVERYTHING
) -> str | None:
    """Why a folder is not as its manifest says, beginning with the file's name; None: it is.

    Args:
        sizes_only: read no file but the manifest.
        patterns: of the files that count; see `matches_any`.
    """
    found = problems_of(folder, sizes_only=sizes_only, patterns=patterns)
    return next(found, None)


def problems_of(
    folder: str | Path, *, sizes_only: bool = False, patterns: Sequence[str] = EVERYTHING
) -> Iterator[str]:
    """As `check_manifest`, all of them, file by file."""
    folder = Path(folder)
    try:
        files = read_manifest(folder)[FILES]
    except ValueError as error:
        yield str(error)
        return
    for name, expected in files.items():
        if not matches_any(name, patterns):
            continue
        if problem := file_problem(folder / name, expected, sizes_only):
            yield f"{name} {problem}"


def check_loaded(place: str, name: str, *, verify_digests: bool = False) -> None:
    """Raise InputError, beginning with `place`, for a folder of a model or tokenizer that has a
    manifest and is not as it was written. The sizes of its files always count and the content of
    the small ones; that of the weights, which takes as long as to read them, with `verify_digests`.

    Without a manifest there is nothing to compare, as in folders of others and for a Hub id: then
    `verify_digests` is an error.
    """
    if not os.path.isdir(name) or not has_manifest(name):
        if verify_digests:
            raise InputError(
                f"{place}: has no {MANIFEST}, so nothing says how its files were; leave "
                "--verify_digests out"
            )
        return
    problem = check_manifest(name, sizes_only=True, patterns=LOADED_FILES)
    patterns = LOADED_FILES if verify_digests else SMALL_MODEL_FILES
    problem = problem or check_manifest(name, patterns=patterns)
    if problem:
        raise InputError(
            f"{place}: {problem} (by its {MANIFEST}); put it back, or delete {MANIFEST} if you "
            "changed it yourself"
        )


def has_manifest(folder: str | Path) -> bool:
    """Whether a folder holds a manifest of ours, perhaps a damaged one. Other programs write files
    of that name, too.
    """
    try:
        record = json.loads(Path(folder, MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return os.path.lexists(Path(folder, MANIFEST))
    is_of_others = isinstance(record, dict) and FILES not in record and OWN_DIGEST not in record
    return not is_of_others


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What the manifest of a folder says.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        record = json.loads(Path(folder, MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing: it was not finished") from None
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{MANIFEST} cannot be read: it is damaged") from None
    if not isinstance(record, dict) or not _is_list_of_files(record.get(FILES)):
        raise ValueError(f"{MANIFEST} lists no files: it is damaged")
    # Of the first versions, it had none.
    if OWN_DIGEST in record and record[OWN_DIGEST] != _own_digest(record):
        raise ValueError(f"{MANIFEST} was changed after it was written")
    return record


def manifest_digest(folder: str | Path) -> str | None:
    """Equal for equal folders, as far as their manifests go (16 hexadecimal digits); None: there is
    none.
    """
    try:
        content = Path(folder, MANIFEST).read_bytes()
    except OSError:
        return None
    return hashlib.sha256(content).hexdigest()[:16]


def unlisted_files(folder: str | Path) -> list[str]:
    """Paths below a folder of the files that its manifest does not know.

    Raises:
        ValueError: see `read_manifest`.
    """
    listed = read_manifest(folder)[FILES]
    return [name for name in _files_below(Path(folder)) if name not in listed]


def _files_below(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name != MANIFEST)


def _is_list_of_files(files: Any) -> bool:
    if not isinstance(files, dict) or not files:
        return False
    return all(
        _is_below(name)
        and isinstance(expected, dict)
        and isinstance(expected.get("bytes"), int)
        and isinstance(expected.get("sha256"), str)
        for name, expected in files.items()
    )


def _is_below(name: str) -> bool:
    """Whether a path stays below the folder that it starts from."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def file_problem(path: Path, expected: dict[str, Any], sizes_only: bool = False) -> str | None:
    """Why a file is not what a manifest has about it; None: it is."""
    try:
        if not path.is_file():
            return "is missing"
        num_bytes = path.stat().st_size
        if num_bytes != expected["bytes"]:
            return f"has {num_bytes:,} bytes instead of {expected['bytes']:,}"
        if not sizes_only and _digest(path) != expected:
            return "was changed after it was written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": sha256}


def _own_digest(record: dict[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != OWN_DIGEST}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
