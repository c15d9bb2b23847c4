"""Files that one process at a time holds. The system lets go of them when that process ends,
however it ends.

Nothing heavy is imported.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def held_file(path: Path, *, wait: bool, waiting: str = "") -> Iterator[TextIO]:
    """A file, made if it is not there, open for appending UTF-8, which no other process holds.
    `waiting` is said on stderr before it is waited for.

    The locks are those of POSIX: a child process inherits none (workers can outlive a killed
    parent), and network file systems know them. Where a file system has none, nothing is held.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    while True:
        with path.open("a", encoding="utf-8") as file:
            _lock(file, wait, waiting)
            if not _is_there(path, file):
                continue  # who held it has moved or deleted it
            yield file
            return


def _lock(file: TextIO, wait: bool, waiting: str) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        if error.errno not in HELD_BY_ANOTHER:
            raise
        if not wait:
            raise BlockingIOError(*error.args) from None
        if waiting:
            print(waiting, file=sys.stderr)
        fcntl.lockf(file, fcntl.LOCK_EX)


def _is_there(path: Path, file: TextIO) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
