"""A full disk is told in one line, and never ends a run through its log.

Nothing heavy is imported.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

NO_SPACE = os.strerror(errno.ENOSPC)
# A full disk, a quota, a limit on a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNREADABLE = (errno.EIO, errno.EPIPE)  # of a log: its terminal was closed, its reader is gone
# How libraries that are not Python's say it: safetensors and tokenizers (Rust), torch.save and
# NumPy's tofile, which drop the reason.
WORDS = (
    *(os.strerror(number) for number in FULL),
    *(f"os error {number}" for number in FULL),
    "PytorchStreamWriter failed",
    "iostream error",
    "unexpected pos",
    "file write failed",
    "requested and",  # "1048576 requested and 990672 written"
)


class DiskFull(OSError):
    """A disk is full. The text says where, what is kept, and how to go on."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, is that of a full disk (a quota, a limit on a file's
    size).
    """
    return any(map(_says_full, _chain(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(words in str(error) for words in WORDS)


class _Log(io.FileIO):
    """A file descriptor to which writing fails without an error, where the error's number is one of
    `passed_over`: what is written then is lost.
    """

    passed_over: tuple[int, ...] = ()

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self.passed_over:
                raise
            return memoryview(data).nbytes


def pass_over_log_errors(name: str) -> None:
    """Let nothing that is written to `sys.stderr` or `sys.stdout` (by name) end the program from
    now on: a log on a full disk, a closed terminal, a reader that is gone.
    """
    stream = getattr(sys, name)
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return  # a test's own stream, or none at all
    raw = getattr(stream.buffer, "raw", None)
    if isinstance(raw, _Log):
        raw.passed_over = (*FULL, *UNREADABLE)
        return
    try:
        log = _Log(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):
        return
    try:
        stream.flush()
    except OSError:
        _drop_buffer(stream)
    log.passed_over = (*FULL, *UNREADABLE)
    replaced = io.TextIOWrapper(
        io.BufferedWriter(log),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or name == "stderr",
    )
    setattr(sys, name, replaced)


def _drop_buffer(stream: io.TextIOWrapper) -> None:
    """Empty a buffer that its file does not take, or the interpreter tries again at its end, and
    ends with a status of its own.
    """
    number = stream.fileno()
    kept = os.dup(number)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
        stream.flush()
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(nowhere)
