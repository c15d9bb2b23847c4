"""Parts for the tests of the runner, in a module that a new process imports in no time."""

import os
import subprocess
import time
from collections.abc import Iterator

from tests.gpu.bench import Bench
from tests.gpu.report import Figure


def two_figures(bench: Bench) -> Iterator[Figure]:
    print("a word for the log")
    yield Figure("first", "value", 1.5)
    yield Figure("second", "value", 2.5)


def fail_after_one(bench: Bench) -> Iterator[Figure]:
    yield Figure("only", "value", 1.0)
    raise ValueError("it went\nwrong | here")


def hang_after_one(bench: Bench) -> Iterator[Figure]:
    yield Figure("only", "value", 1.0)
    subprocess.run(["sleep", "600"])


def die(bench: Bench) -> Iterator[Figure]:
    yield Figure("only", "value", 1.0)
    time.sleep(0.5)  # until it was read
    os._exit(7)
