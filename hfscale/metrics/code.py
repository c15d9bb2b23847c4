"""pass@k: does generated code pass its tests? Programs run one by one in a sandbox (see
sandbox.py).
"""

import marshal
import math
import os
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from hfscale.metrics import sandbox, sandboxed
from hfscale.metrics.system_calls import filter_rows
from hfscale.process import InputError


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that of k programs drawn from n, of which c pass, at
    least one passes.

    The unbiased estimate of Chen et al., Evaluating Large Language Models Trained on Code, 2021;
    exact to the last bit by whole-number arithmetic. Raises InputError unless 0 <= c <= n and 1 <=
    k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise InputError(
            f"pass@{k}: {c} of {n} programs pass; expected 1 <= k <= n: sample at least k for each "
            "item"
        )
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


def split_tests(template: str, *, tests_apart: bool = True) -> tuple[str, str]:
    """The template of a program, and that of its tests: what follows the model's answer from {test}
    on, or without that from the first line that is not indented. All before is the program, and all
    without `tests_apart`."""
    if not tests_apart:
        return template, ""
    before, answer, after = template.rpartition("{prediction}")
    start = after.find("{test}")
    if start < 0:
        unindented_line = re.search(r"\n(?=\S)", after)
        start = unindented_line.end() if unindented_line else len(after)
    return before + answer + after[:start], after[start:]


class Outcome(NamedTuple):
    """What became of a program."""

    passed: bool  # it and its tests came to their end without an error
    timed_out: bool
    output: str  # the first bytes of stdout and stderr together, a traceback included


def run_program(
    program: str,
    test: str = "",
    *,
    allow_code_execution: bool = False,
    time_limit_s: float = 10.0,
    memory_limit_bytes: int = 2**30,
    file_limit_bytes: int = 2**22,
    process_limit: int = 8,
) -> Outcome:
    """Run Python source code and its tests where they can harm nothing; all that they started is
    gone after.

    The tests run in a process of their own and see the program's functions and objects from outside
    (see `sandboxed.py`): nothing that the program does to itself makes a wrong result right. Tests
    that are part of `program` run in its process and hold only against programs that do not cheat.

    Args:
        test: code that raises an error unless the program is right. It uses the program's global
            names, and can hand over plain values (numbers, text, containers of them), functions,
            and what it got from the program; see docs/metrics.md.
        allow_code_execution: must be true: the one who starts the run decides that unknown code may
            run.
        time_limit_s: for the whole, and of CPU time for each process (rounded up).
        memory_limit_bytes: of all processes together, looked at every 20 ms; address space of each.
        file_limit_bytes: output; each file; all files together.
        process_limit: the program's processes and threads at a time.

    Raises:
        InputError: code execution is not allowed, or this machine cannot isolate the program; then
            it did not run.
    """
    if not allow_code_execution:
        raise InputError(
            "allow_code_execution: pass@k runs code that a model wrote; set it to true to run it "
            "here"
        )
    folder_names = ("site-packages", "dist-packages")
    packages = [path for path in sys.path if os.path.basename(path) in folder_names]
    limits = {
        "time_limit_s": time_limit_s,
        "memory_limit_bytes": memory_limit_bytes,
        "file_limit_bytes": file_limit_bytes,
        "process_limit": process_limit,
        "python": os.path.realpath(sys.executable),
        "library": os.path.realpath(sys.base_prefix),
        "packages": packages,
        "filter_rows": filter_rows(),
    }
    env = {}
    if "LD_LIBRARY_PATH" in os.environ:  # without it this Python may not start
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryFile() as output:
        # Not as JSON: to import it would take a tenth of the whole.
        argument = marshal.dumps(limits | {"root": root}).hex()
        status = subprocess.run(
            [sys.executable, "-I", "-S", sandbox.__file__, argument],
            env=env,
            input=sandboxed.written(program, test),
            stdout=output,
            stderr=output,
            start_new_session=True,
        ).returncode
        output.seek(0)
        text = output.read(file_limit_bytes).decode("utf-8", "replace")
    # Any other status is one of the sandbox itself.
    of_program = (sandboxed.PASSED, sandboxed.FAILED, sandbox.TIMED_OUT)
    if status not in of_program and status < sandbox.BY_SIGNAL:
        raise InputError(
            "allow_code_execution: this machine does not let a program be isolated "
            f"({text.strip()}); nothing was run; see docs/metrics.md"
        )
    return Outcome(status == sandboxed.PASSED, status == sandbox.TIMED_OUT, text)
