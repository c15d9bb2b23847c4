"""Runs parts one after the other, each in a process of its own and within its time.

A part that fails, hangs or breaks the GPU's context ends alone, and the figures that it gave before
are kept.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import psutil

from tests.gpu.bench import Bench
from tests.gpu.report import Figure, Result

LEAST_SHARE = 0.4  # of a part's time must be left, or it is not begun
SOFT_SHARE = 0.8  # of its time after which a part begins no other round
SECONDS_TO_END = 10  # for a process whose part is done
MESSAGE_CHARACTERS = 200
CUT_OFF = "cut off: time"


@dataclass(frozen=True)
class Part:
    """One thing to measure."""

    name: str
    module: str  # in which its function lies
    function: str  # from a Bench to figures, one by one as they are known
    seconds: float  # that it may take
    needs: tuple[str, ...] = ()  # packages

    def load(self) -> Callable[[Bench], Iterator[Figure]]:
        """The function; only a process that runs it imports what it needs."""
        return getattr(__import__(self.module, fromlist=[self.function]), self.function)


def run_parts(
    parts: Sequence[Part],
    bench: Bench,
    seconds: float,
    on_result: Callable[[list[Result]], Any],
    preload: str,
) -> list[Result]:
    """Run the parts within `seconds` altogether; `on_result` gets all results so far after each.

    Args:
        preload: a module with what every part needs, imported once.
    """
    end = time.monotonic() + seconds
    context, imports = _context(bench, preload)
    results = [imports]
    on_result(results)
    for part in parts:
        results.append(_run_part(context, part, bench, end - time.monotonic()))
        on_result(results)
    return results


def _context(bench: Bench, preload: str) -> tuple[Any, Result]:
    """A way to start processes that have imported `preload` already; where the GPU does not work
    in such a process, one by which each imports for itself. And how that went.
    """
    start = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    process = context.Process(target=_touch, args=(bench.device,))
    process.start()
    process.join()
    result = Result("imports", "done", time.monotonic() - start)
    if process.exitcode:
        context = multiprocessing.get_context("spawn")
        result.status = "done: by each part for itself, since the GPU does not work after a fork"
    return context, result


def _touch(device: str) -> None:
    """Use a GPU once."""
    if device != "cpu":
        import torch

        torch.zeros(1, device=device).item()


def _run_part(context: Any, part: Part, bench: Bench, seconds_left: float) -> Result:
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return Result(part.name, f"not run: {', '.join(missing)} is not installed")
    if seconds_left < LEAST_SHARE * part.seconds:
        return Result(part.name, "not run: time")
    start = time.monotonic()
    seconds = min(part.seconds, seconds_left)
    receiver, sender = context.Pipe(duplex=False)
    bench = bench.until(start + SOFT_SHARE * seconds)
    process = context.Process(target=_work, args=(part, bench, sender))
    process.start()
    sender.close()
    result = Result(part.name, "")
    try:
        result.status = _collect(receiver, start + seconds, result.figures)
        if result.status != CUT_OFF:
            process.join(SECONDS_TO_END)
    finally:
        end_with_children(process.pid)
        process.join()
    if not result.status:
        result.status = f"failed: the process ended with status {process.exitcode}"
    result.seconds = time.monotonic() - start
    return result


def _collect(receiver: Connection, deadline: float, figures: list[Figure]) -> str:
    """Take in a part's figures until it says how it ended; "": it ended without a word."""
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            message = receiver.recv()
        except EOFError:
            return ""
        if isinstance(message, str):
            return message
        figures.append(message)
    return CUT_OFF


def _work(part: Part, bench: Bench, sender: Connection) -> None:
    """In the process of a part: send its figures, then how it ended. What it prints goes into the
    log.
    """
    log = os.open(bench.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    print(f"---- {part.name}", file=sys.stderr, flush=True)
    try:
        for figure in part.load()(bench):
            sender.send(figure)
        sender.send("done")
    except BaseException as error:  # also SystemExit, by which recipes end
        traceback.print_exc()
        sender.send(f"failed: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:MESSAGE_CHARACTERS]


def end_with_children(pid: int) -> None:
    """Kill a process of ours with all that it started: a launch's ranks have sessions of their
    own.
    """
    try:
        process = psutil.Process(pid)
        started = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
