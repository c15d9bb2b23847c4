"""Warm starts: a Python program begins as a fork of a process that has imported everything.

A cold start of a recipe takes ten seconds, nearly all of them for imports. The launcher is warm
too: what it starts by `subprocess.Popen` are forks, with the environment, the session and the
parent that they would have had.

As a program it does for other processes what `subprocess.run` does, a line of JSON in and one out:
a process with threads, such as a worker of pytest-xdist, cannot fork by itself.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hfscale.process import hide_bitsandbytes

COLD = subprocess.Popen._execute_child  # type: ignore[attr-defined]
ROOT = Path(__file__).parents[1]
FORKABLE = "jemalloc_bg_thd"  # pyarrow's; a fork starts it again
# What the recipes import when they run, all that takes time.
MODULES = """
torch torch.distributed.run torch.distributed.fsdp torch.distributed.elastic.multiprocessing.api
torch.distributed.checkpoint torch.distributed.tensor torch._dynamo torch.utils.data
transformers.trainer transformers.trainer_seq2seq transformers.models.gpt2.modeling_gpt2
transformers.integrations.peft transformers.modelcard
accelerate.commands.launch accelerate.utils.fsdp_utils
datasets evaluate peft peft.tuners.lora safetensors.torch matplotlib.figure psutil rich.table
huggingface_hub.repocard numpy scipy.stats scipy.io wandb
datasets.packaged_modules.generator.generator datasets.io.generator threadpoolctl
hfscale.cli hfscale.launch hfscale.training.trainer hfscale.training.running
hfscale.training.record hfscale.training.preview hfscale.training.steps
hfscale.training.training_args hfscale.models hfscale.adapters hfscale.data.packing
hfscale.data.mixture hfscale.data.splits hfscale.data.tokenizer hfscale.tasks.examples
hfscale.tasks.measures hfscale.tasks.preference_metrics hfscale.tasks.held_out
hfscale.generation.texts
""".split()
DEEPSPEED_MODULES = """
deepspeed deepspeed.ops.op_builder.all_ops deepspeed.runtime.zero.muon.original_muon
transformers.integrations.deepspeed
""".split()
PREFERENCE_MODULES = """
trl.trainer.dpo_trainer trl.trainer.dpo_config hfscale.tasks.preference_losses
""".split()


def import_all(engines: Iterable[str], recipes: Iterable[str]) -> None:
    """Import what runs on these will use; raises RuntimeError where that started a thread, which
    no fork has.
    """
    hide_bitsandbytes()
    # tqdm's own lock is one for all forks: one that is killed while it holds it stops the others.
    tqdm.set_lock(threading.RLock())
    names = list(MODULES)
    if "zero2" in engines:
        names += DEEPSPEED_MODULES
    if "finetune_preference" in recipes:
        names += PREFERENCE_MODULES
    for name in names:
        importlib.import_module(name)
    _save_a_model()
    gc.collect()
    gc.freeze()  # forks neither look at what is here nor copy it
    tasks = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    threads = tasks - {Path("/proc/self/comm").read_text().strip(), FORKABLE}
    if threads:
        raise RuntimeError(f"imports left threads, and forks would hang: {threads}")


def _save_a_model() -> None:
    """So that transformers' tables of renamed weights are built, which takes a quarter second."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)


class WarmPopen(subprocess.Popen):
    """`subprocess.Popen` for `python [-u] (-m MODULE | FILE) ARGUMENT ...` without a new program."""

    def _execute_child(self, args: Any, *details: Any) -> None:
        """Fork in the place of fork and exec; the order of `details` is that of Python's own."""
        is_python = isinstance(args, (list, tuple)) and args[0] == sys.executable
        if not is_python or args[1] == "-c":
            COLD(self, args, *details)
            return
        cwd, env = details[4], details[5]
        outputs = {0: details[9], 1: details[12], 2: details[14]}
        is_session = details[-2]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self._child_created = True
        if self.pid:
            self._close_pipe_fds(*details[9:15])  # type: ignore[attr-defined]
            return
        status = 70
        try:
            if is_session:
                os.setsid()
            if cwd:
                os.chdir(cwd)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            for number, descriptor in outputs.items():
                if descriptor != -1:
                    os.dup2(descriptor, number)
            for descriptor in (details[10], details[11], details[13]):  # the parent's ends
                if descriptor != -1:
                    os.close(descriptor)
            status = _run(list(args[1:]))
        finally:
            os._exit(status)


def _run(words: list[str]) -> int:
    """Be a fresh interpreter: signals, streams, path and arguments; the exit status."""
    _as_after_exec()
    while words[0] == "-u":
        words.pop(0)
    subprocess.Popen._execute_child = WarmPopen._execute_child  # type: ignore[attr-defined]
    _look_at_python_path()
    warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about what is imported already
    try:
        if words[0] == "-m":
            sys.argv = ["", *words[2:]]
            sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = _status(end.code)
    except KeyboardInterrupt:
        _print_traceback()
        _flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        _print_traceback()
        status = 1
    with contextlib.suppress(KeyboardInterrupt):
        threading._shutdown()
    return status if _flush() else 120


def _look_at_python_path() -> None:
    """As Python does at its start."""
    for folder in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.insert(0, folder)
        if Path(folder, "sitecustomize.py").is_file():
            runpy.run_path(str(Path(folder, "sitecustomize.py")))


def _as_after_exec() -> None:
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(os.devnull)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")


def _status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 255
    print(code, file=sys.stderr)
    return 1


def _print_traceback() -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full
        traceback.print_exc()


def _flush() -> bool:
    """Whether what was printed could be written."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    return True


class WarmStarts:
    """Programs of any process, warm: a process beside it imports everything and forks for it."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, args: list[str], *, cwd: Path = ROOT, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` with `capture_output` and `text`; raises subprocess.TimeoutExpired."""
        request = {"args": args, "cwd": str(cwd), "env": env, "timeout": timeout}
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"warm starts ended with status {self._server.wait()}")
        if answer == "late\n":
            raise subprocess.TimeoutExpired(args, timeout)
        return subprocess.CompletedProcess(args, **json.loads(answer))

    def end(self) -> None:
        self._server.communicate()


def serve() -> None:
    """Answer each request on standard input until its end."""
    requests, answers = sys.stdin, os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what imports print answers nothing
    import_all(["zero2"] if find_spec("deepspeed") else [], [])
    subprocess.Popen._execute_child = WarmPopen._execute_child  # type: ignore[attr-defined]
    for request in requests:
        try:
            done = subprocess.run(
                **json.loads(request), stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            answers.write("late\n")
            continue
        answer = {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    serve()
