"""The run.json of a finished run, read and checked."""

import contextlib
import json
from pathlib import Path
from typing import Any

from hfscale.folders import RUN_RECORD
from hfscale.manifest import check_manifest, has_manifest
from hfscale.process import InputError

# What a run's record must hold, and what it may.
NEEDED = {
    "recipe": str,
    "command": str,
    "config": dict,
    "data": dict,
    "model": dict,
    "metrics": dict,
}
OPTIONAL = {"hardware": dict, "versions": dict, "train": dict, "samples": list}


def read_record(folder: str, place: str) -> dict[str, Any]:
    """The run.json of a finished run; raises InputError, beginning with `place`: there is none, or
    it is damaged.
    """
    patterns = (RUN_RECORD, "trainer_state.json")
    if has_manifest(folder) and (problem := check_manifest(folder, patterns=patterns)):
        raise InputError(
            f"{place}: {folder}: {problem} (by its manifest.json); put it back, or delete "
            "manifest.json if you changed it yourself"
        )
    record = read_json(Path(folder, RUN_RECORD), place, "name a folder of a finished run")
    whole = {name: kind() for name, kind in OPTIONAL.items()} | record
    for name, kind in (NEEDED | OPTIONAL).items():
        if not isinstance(whole.get(name), kind):
            raise InputError(
                f"{place}: {folder} has no readable {RUN_RECORD} ({name} is missing or of another "
                "kind); name a folder of a finished run"
            )
    return whole


def read_json(path: Path, place: str, next_step: str) -> dict[str, Any]:
    """A JSON file's mapping; raises InputError, from `place` to the next step: it holds none."""
    record = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text("utf-8"))
    if not isinstance(record, dict):
        raise InputError(f"{place}: {path.parent} has no readable {path.name}; {next_step}")
    return record
