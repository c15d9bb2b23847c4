"""What a harness makes happen inside a rank: moments are told, the disk is slow, the clock jumps.

A moment is the n-th time that a rank does something: a file operation in the folder of its run, or
an event of Trainer's. Each is reported by Python itself (`sys.addaudithook`), so that no function
of the recipes is replaced.
"""

import collections
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

PLAN = "HFSCALE_FAULTS"  # the environment variable with the plan, as JSON
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
TRIAL = re.compile(r"\.hfscale-\w+")  # names that are never the same twice


def install() -> None:
    """Do what the plan in the environment says, if this process is a rank and there is one.

    The plan's names, each of which may be missing:
        folder: the run's folder, whose file operations count.
        sources: files outside of it that count too.
        record: the file that gets all moments of all ranks, one JSON list a line: rank, seconds
            (of a clock that all share), operation, path, the how-manieth time.
        moment: [rank, operation, path, number], which is told through the named pipe `fifo`.
        freeze: whether the rank stops there until SIGCONT.
        slow_seconds: how much longer each fsync and each opened file takes.
        jumps_seconds: how far the clock jumps, there and back, at each of its readings.
    """
    if PLAN not in os.environ or "HFSCALE_COMMAND" not in os.environ:
        return
    plan = json.loads(os.environ[PLAN])
    watch = Watch(plan)
    if "folder" in plan:
        sys.addaudithook(watch.on_audit)
        _report_fsync()
    if "jumps_seconds" in plan:
        _let_the_clock_jump(plan["jumps_seconds"])


class Watch:
    """Counts what this rank does and tells the moment that the plan names."""

    def __init__(self, plan: dict[str, Any]):
        self.plan = plan
        self.rank = int(os.environ.get("RANK", "0"))
        self.pid = os.getpid()
        self.counts: collections.Counter = collections.Counter()
        self.sees_trainer = False
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.record = os.open(plan["record"], flags, 0o644) if "record" in plan else -1

    def on_audit(self, event: str, args: tuple) -> None:
        """Python's report of an operation."""
        if os.getpid() != self.pid:
            return  # a worker that the rank forked
        if event == "hfscale.faults":
            self.count(*args)
        elif event in FILE_EVENTS:
            self._on_file(event, args)

    def _on_file(self, event: str, args: tuple) -> None:
        if not self.sees_trainer:
            self._see_trainer()
        path = args[1] if event == "os.rename" else args[0]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = TRIAL.sub(".hfscale-trial", os.path.abspath(os.fsdecode(path)))
        folder = self.plan["folder"]
        if name in self.plan.get("sources", ()):
            self.count("read", "source")
        elif name.startswith(folder):
            operation = event.removeprefix("os.")
            if event == "open":
                operation = "read" if _is_reading(args) else "write"
                time.sleep(self.plan.get("slow_seconds", 0))
            self.count(operation, name.removeprefix(folder).lstrip("/") or ".")

    def _see_trainer(self) -> None:
        """Let Trainer's events be reported too, once it is imported."""
        module = sys.modules.get("transformers.trainer_callback")
        handler = getattr(module, "CallbackHandler", None)
        if handler is None:
            return
        self.sees_trainer = True
        call_event = handler.call_event

        def reported(handler: Any, event: str, *args: Any, **kwargs: Any) -> Any:
            sys.audit("hfscale.faults", "trainer", event)
            return call_event(handler, event, *args, **kwargs)

        handler.call_event = reported

    def count(self, operation: str, path: str) -> None:
        """One more of these; tell it if it is the plan's moment."""
        if operation == "fsync":
            time.sleep(self.plan.get("slow_seconds", 0))
        self.counts[operation, path] += 1
        moment = [self.rank, operation, path, self.counts[operation, path]]
        if self.record >= 0:
            line = json.dumps([self.rank, time.monotonic(), *moment[1:]])
            os.write(self.record, line.encode() + b"\n")
        if moment == self.plan.get("moment"):
            self._tell()

    def _tell(self) -> None:
        pipe = os.open(self.plan["fifo"], os.O_WRONLY)
        os.write(pipe, f"{self.pid}\n".encode())
        os.close(pipe)
        if self.plan.get("freeze"):
            os.kill(self.pid, signal.SIGSTOP)


def _is_reading(args: tuple) -> bool:
    _, mode, flags = args
    if isinstance(mode, str):
        return not set(mode) & set("wax+")
    return (flags or 0) & os.O_ACCMODE == os.O_RDONLY


def _report_fsync() -> None:
    """Python does not report it."""
    fsync = os.fsync

    def reported(descriptor: Any) -> None:
        sys.audit("hfscale.faults", "fsync", "")
        fsync(descriptor)

    os.fsync = reported


def _let_the_clock_jump(seconds: float) -> None:
    """There and back by up to so many seconds, at each reading of the time of day."""
    now = time.time
    draw = random.Random(0)
    time.time = lambda: now() + draw.uniform(-seconds, seconds)


def read_record(path: Path) -> list[list]:
    """The moments in a record, in the order in which they came."""
    return [json.loads(line) for line in path.read_text().splitlines()]
