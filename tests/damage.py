"""What a disk, a copy or a power cut does to a file."""

from collections.abc import Callable
from pathlib import Path


def flip_a_bit(path: Path) -> None:
    """The bit in the middle of the file: what a disk or a memory does without a word."""
    content = bytearray(path.read_bytes())
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
