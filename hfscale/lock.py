"""One run at a time in a folder: a lock of the kernel, which no end of a run leaves behind.

Nothing heavy is imported.
"""

import contextlib
import datetime
import errno
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from hfscale.process import InputError

LOCK = ".lock"


def claim_folder(place: str, folder: Path) -> bool:
    """Take the folder for this process, as long as it lives; whether it had not done so before.

    The lock is `flock`'s, on a file that says who holds it: it ends with the process, whatever
    ended that, so that the file may lie there without meaning anything. Where the file system knows
    no locks (or on Windows), a line says so and the run goes on.

    Raises:
        InputError: another process has it; the message begins with `place`.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                print(f"{place}: cannot be locked ({error.strerror})", file=sys.stderr)
                return True
            if (holder.get("pid"), holder.get("host")) == (os.getpid(), socket.gethostname()):
                return False
            raise InputError(f"{place}: {_describe(holder)}") from None
        if _is_same_file(descriptor, path):
            break
        os.close(descriptor)  # whoever had it before has just deleted it
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    # The descriptor stays open, and with it the lock, until this process ends.
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
    return True


def _holder(descriptor: int) -> dict[str, Any]:
    """Who wrote the file last; empty: that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        holder = json.loads(os.pread(descriptor, 1000, 0))
        if isinstance(holder, dict):
            return holder
    return {}


def _describe(holder: dict[str, Any]) -> str:
    who = "another run is in it"
    if holder:
        who = (
            f"process {holder.get('pid')} on {holder.get('host')} has been in it since "
            f"{holder.get('started')}"
        )
    return f"{who}; wait for its end (or end it), or name another folder"


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
