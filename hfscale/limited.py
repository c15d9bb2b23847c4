"""What the code of others computes, such as a model's chat template: in a process of its own, with
limits on time and memory.
"""

import contextlib
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from hfscale.process import InputError
from hfscale.shown import one_line

ITEM = TypeVar("ITEM")
RESULT = TypeVar("RESULT")

SECONDS = 3.0  # of computing, for one item
MORE_BYTES = 2**29  # than the process has at its start
SHOWN_CHARACTERS = 300  # of an error
SETTING = "TOKENIZERS_PARALLELISM"


def each_limited(
    function: Callable[[ITEM], RESULT],
    items: Iterable[ITEM],
    *,
    place: str,
    seconds: float = SECONDS,
    more_bytes: int = MORE_BYTES,
) -> Iterator[RESULT]:
    """`function` of each item, in order, computed in a copy of this process (a fork) that runs
    ahead; results come back pickled.

    Args:
        place: what an error begins with, such as "the chat template".
        seconds: of computing that an item may take.
        more_bytes: of memory that the copy may take beside what this process has.

    Raises:
        InputError: the function raised one; or anything else, or went beyond a limit, said in one
            line that begins with `place`.
    """
    read_end, write_end = os.pipe()
    with _quiet_fork():
        child = os.fork()
    if child == 0:
        os.close(read_end)
        _answer(function, items, os.fdopen(write_end, "wb"), seconds, more_bytes)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as results:
            kind, value = _next_result(results)
            while kind == "result":
                yield value
                kind, value = _next_result(results)
    except GeneratorExit:  # no more results are wanted
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)  # nobody reads on: it ends
    if kind == "input error":
        raise InputError(value)
    if kind == "error":
        raise InputError(f"{place}: {value}")
    if kind != "end":
        raise InputError(f"{place}: {_reason(status, seconds)}")


def limited(function: Callable[[ITEM], RESULT], item: ITEM, *, place: str) -> RESULT:
    """`function` of one item. Raises as `each_limited`."""
    [result] = each_limited(function, [item], place=place)
    return result


def _next_result(results: BinaryIO) -> tuple[str, Any]:
    try:
        return pickle.load(results)
    except (EOFError, pickle.UnpicklingError):  # cut off: the copy was ended
        return "cut off", None


def _reason(status: int, seconds: float) -> str:
    """Why the copy ended before its work was done."""
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended_by == signal.SIGPROF:
        return f"stopped, for it computes longer than {seconds:g} s for one item"
    if ended_by:
        return f"its process was ended by {signal.Signals(ended_by).name}"
    return "its process ended before it was done"


def _answer(
    function: Callable, items: Iterable, out: BinaryIO, seconds: float, more_bytes: int
) -> None:
    """What the copy does; it never comes back, so that nothing of this process ends twice."""
    try:
        os.environ[SETTING] = "false"  # threads of before are not here
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        _limit_memory(more_bytes)
        with out:
            kind = "end"
            for item in items:
                signal.setitimer(signal.ITIMER_PROF, seconds)
                kind, value = _outcome(function, item, more_bytes)
                signal.setitimer(signal.ITIMER_PROF, 0)  # a full pipe is not its fault
                pickle.dump((kind, value), out)
                out.flush()  # who asks item by item waits for it
                if kind != "result":
                    break
            else:
                pickle.dump(("end", None), out)
    finally:
        os._exit(0)


def _outcome(function: Callable, item: Any, more_bytes: int) -> tuple[str, Any]:
    try:
        return "result", function(item)
    except InputError as error:
        return "input error", str(error)
    except MemoryError:
        return "error", f"stopped, for it needs more than {more_bytes / 2**20:,.0f} MiB of memory"
    except Exception as error:  # whatever others' code raises
        reason = one_line(str(error))[:SHOWN_CHARACTERS]
        return "error", f"{type(error).__name__}: {reason}"


def _limit_memory(more_bytes: int) -> None:
    """Of this process, where the system says how much it has."""
    sizes = Path("/proc/self/statm")
    if not sizes.is_file():
        return
    import resource  # not on Windows

    pages = int(sizes.read_text().split()[0])
    most = pages * resource.getpagesize() + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


@contextlib.contextmanager
def _quiet_fork() -> Iterator[None]:
    """Neither Python (of threads) nor tokenizers (of theirs) warns of a fork that only computes
    texts; the copy tokenizes with one thread.
    """
    before = os.environ.get(SETTING)
    os.environ[SETTING] = "false"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ[SETTING]
        else:
            os.environ[SETTING] = before
