"""Damage: a file of a checkpoint is flipped, cut, emptied or deleted, and the run is resumed."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.kills import finish
from tests.faults.runs import Kind, kill_all, start, weights_of


def flip_a_bit(path: Path) -> None:
    """The bit in the middle of the file: what a disk or a memory does without a word."""
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Half of the file: a copy that was broken off."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    """Nothing but the name: a power cut before the data reached the disk."""
    path.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit flipped": flip_a_bit,
    "cut": cut,
    "emptied": empty,
    "deleted": Path.unlink,
}


def broken_off(kind: Kind, folder: Path, log: Path) -> None:
    """A run that was killed after its second checkpoint, of which the first is kept too."""
    run = start(kind.command(folder, "--save_total_limit", "3"), log)
    while run.poll() is None and not (folder / "checkpoint-6" / "manifest.json").is_file():
        time.sleep(0.01)
    time.sleep(0.2)
    kill_all(run)
    for later in folder.glob("checkpoint-*"):
        if later.name not in ("checkpoint-3", "checkpoint-6"):
            shutil.rmtree(later)


def damages(kind: Kind, place: Path) -> Iterator[dict[str, str]]:
    """What each damage of each file of the newest checkpoint led to.

    `named`: the damaged checkpoint was passed over with a line and the weights are equal;
    `refused`: exit status 2; `failed`: another exit status; `silent`: other weights.
    """
    source = place / f"broken-off-{kind.recipe}-{kind.engine}"
    broken_off(kind, source, source.with_suffix(".log"))
    checkpoint = source / "checkpoint-6"
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        name = path.relative_to(checkpoint)
        for damage, apply in DAMAGE.items():
            folder = place / f"damaged-{kind.recipe}-{kind.engine}"
            log = folder.with_suffix(".log")
            shutil.rmtree(folder, ignore_errors=True)
            log.unlink(missing_ok=True)
            shutil.copytree(source, folder)
            apply(folder / "checkpoint-6" / name)
            status = finish(kind, folder, log)
            yield {
                "file": str(name),
                "damage": damage,
                "result": _result(kind, folder, log, status),
            }


def _result(kind: Kind, folder: Path, log: Path, status: int) -> str:
    if status == 2:
        return "refused"
    if status != 0:
        return "failed"
    if weights_of(folder) != kind.weights:
        return "silent"
    return "named" if "is not whole" in log.read_text("utf-8") else "equal, unsaid"
