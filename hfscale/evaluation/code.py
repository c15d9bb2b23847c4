"""pass@k: does generated code pass its tests? Programs run one by one in a sandbox (see sandbox.py)."""

import json
import math
import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from typing import NamedTuple

from hfscale.config import InputError
from hfscale.evaluation import sandbox


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that of k programs drawn from n, of which c pass, at least one passes.

    The unbiased estimate of Chen et al., Evaluating Large Language Models Trained on Code, 2021; exact to the last bit
    by whole-number arithmetic. Raises InputError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise InputError(f"pass@{k}: {c} of {n} programs pass; expected 1 <= k <= n: sample at least k for each item")
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


class Outcome(NamedTuple):
    """What became of a program."""

    passed: bool  # it came to its end without an error
    timed_out: bool
    output: str  # the first bytes of stdout and stderr together, a traceback included


def run_program(program: str, *, allow_code_execution: bool = False, time_limit_s: float = 10.0,
                memory_limit_bytes: int = 2**30, file_limit_bytes: int = 2**22, process_limit: int = 8) -> Outcome:
    """Run Python source code, tests and all, where it can harm nothing; it and all that it started is gone after.

    Args:
        allow_code_execution: must be true: the one who starts the run decides that unknown code may run.
        time_limit_s: for the whole, and of CPU time for each process (rounded up).
        memory_limit_bytes: address space of each process.
        file_limit_bytes: output; each file; all files together.
        process_limit: processes and threads at a time.

    Raises:
        InputError: code execution is not allowed, or this machine cannot isolate the program; then it did not run.
    """
    if not allow_code_execution:
        raise InputError("allow_code_execution: pass@k runs code that a model wrote; set it to true to run it here")
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    limits = {"time_limit_s": time_limit_s, "memory_limit_bytes": memory_limit_bytes, "process_limit": process_limit,
              "file_limit_bytes": file_limit_bytes, "word": (word := secrets.token_hex(16)),
              "python": os.path.realpath(sys.executable), "packages": [os.path.realpath(sys.base_prefix), *packages]}
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as mark:
        limits |= {"root": root, "mark": mark.fileno()}
        status = subprocess.run([sys.executable, "-I", "-S", sandbox.__file__, json.dumps(limits)], env=env,
                                input=program.encode("utf-8", "replace"), stdout=output, stderr=output,
                                pass_fds=[mark.fileno()], start_new_session=True).returncode
        output.seek(0)
        mark.seek(0)
        text, marked = output.read(file_limit_bytes).decode("utf-8", "replace"), mark.read(100).decode()
    if not marked and status != sandbox.TIMED_OUT:
        raise InputError(f"allow_code_execution: this machine does not let a program be isolated ({text.strip()}); "
                         "nothing was run; see docs/metrics.md")
    return Outcome(marked.endswith(word), status == sandbox.TIMED_OUT, text)
