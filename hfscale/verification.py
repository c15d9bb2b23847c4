"""Every file of a folder compared with its manifest, and what is wrong shown."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from hfscale.folders import (
    CONVERTED,
    MODEL_CARD,
    REPLAY_RECORD,
    SAVING,
    TRAINING_ARGUMENTS,
    WORD_CHECKPOINT,
    matches_any,
)
from hfscale.lock import LOCK
from hfscale.manifest import (
    FILES,
    MANIFEST,
    file_problem,
    has_manifest,
    read_manifest,
    unlisted_files,
)
from hfscale.process import InputError

# Beside the files of a manifest: what comes after it, what people edit, and what has its own.
NEVER_LISTED = (
    LOCK,
    MODEL_CARD,
    TRAINING_ARGUMENTS,
    REPLAY_RECORD,
    "report.html",
    "runs/**",
    "wandb/**",
    "checkpoint-[0-9]*/**",
    f"{WORD_CHECKPOINT}[0-9]*/**",
    f"{SAVING}/**",
    f"{CONVERTED}/**",
    "*/cache-*.arrow",
)


def parts_of(folder: Path) -> list[Path]:
    """A folder and, of a run, its checkpoints: those that have, or should have, a manifest.

    Raises:
        InputError: no such folder, or no manifest in any of them.
    """
    if not folder.is_dir():
        raise InputError(f"folders: {folder} is no folder; name one that a recipe wrote")
    checkpoints = sorted(folder.glob("checkpoint-[0-9]*"), key=_step_of)
    checkpoints += sorted(folder.glob(f"{WORD_CHECKPOINT}[0-9]*"))
    if not any(map(has_manifest, [folder, *checkpoints])):
        raise InputError(
            f"folders: {folder} has no {MANIFEST}, nor has a checkpoint in it, so nothing says how "
            "its files were; name a folder that a recipe wrote"
        )
    is_finished = has_manifest(folder) or (folder / "run.json").is_file()
    return [folder, *checkpoints] if is_finished else checkpoints


def _step_of(checkpoint: Path) -> tuple[int, str]:
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1, checkpoint.name


def verify_part(folder: Path, *, sizes_only: bool = False) -> bool:
    """Print a line for each file that is not as the folder's manifest says, or one for the whole
    folder; whether it is whole.

    Args:
        sizes_only: read no file but the manifest.
    """
    try:
        files = read_manifest(folder)[FILES]
    except ValueError as error:
        print(f"{folder}: {error}")
        return False
    num_bytes = sum(expected["bytes"] for expected in files.values())
    is_whole = True
    bar: Any = tqdm(
        total=num_bytes, unit="B", unit_scale=True, desc=str(folder), leave=False, disable=None
    )
    with bar:
        for name, expected in files.items():
            if problem := file_problem(folder / name, expected, sizes_only):
                is_whole = False
                bar.write(f"{folder}: {name} {problem}")
            bar.update(expected["bytes"])
    if is_whole:
        print(f"{folder}: whole ({len(files)} files, {num_bytes / 1e6:,.1f} MB)")
    foreign = [name for name in unlisted_files(folder) if not matches_any(name, NEVER_LISTED)]
    for name in foreign:
        print(f"{folder}: {name} was not there when {MANIFEST} was written")
    return is_whole
