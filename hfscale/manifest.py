"""`manifest.json`: sizes and hashes of the files of a folder that was written whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def digests_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file below the folder, by its path there."""
    return {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _file_problem(folder: Path, name: str, expected: Any) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    digest = _digest(path)
    if digest == expected:
        return None
    if isinstance(expected, dict) and digest["bytes"] != expected.get("bytes"):
        return f"{name} has {digest['bytes']} bytes instead of {expected.get('bytes')}"
    return f"{name} was changed after it was written"


def folder_problem(folder: Path) -> str | None:
    """Why a folder with a manifest is not whole; None: it is."""
    try:
        record = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}: it was not finished"
    for name in ("files", "config"):
        if not isinstance(record, dict) or not isinstance(record.get(name), dict):
            return f"{MANIFEST} has no {name}"
    problems = (_file_problem(folder, *item) for item in record["files"].items())
    return next((problem for problem in problems if problem), None)
