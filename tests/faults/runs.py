"""Small runs of each training recipe, started as a user starts them, that faults are tried on."""

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.inside import PLAN
from tests.warm import WarmPopen

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"  # its sitecustomize lets engines for GPUs run on a CPU
STEPS, SAVE_STEPS = 12, 3
LIMIT_SECONDS = 120  # of a run that takes seconds; it hangs
TRAINING = [
    *("--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--save_total_limit", "1"),
    *("--per_device_train_batch_size", "2", "--logging_steps", "1", "--learning_rate", "1e-2"),
    *("--eval_strategy", "steps", "--eval_steps", "4", "--ddp_timeout", "20"),
    *("--report_to", "none", "--disable_tqdm", "true", "--bf16", "false"),
]
SHAPE = [
    *(
        "--num_hidden_layers",
        "2",
        "--num_attention_heads",
        "2",
        "--hidden_size",
        "32",
        "--max_position_embeddings",
        "64",
    ),
    *("--model_config", "resid_pdrop=0.1"),  # so that a lost random state shows in the weights
]
TASK = ["--prompt", "{q}", "--target", " {a}", "--max_new_tokens", "4"]
LORA = ["--lora_r", "2", "--lora_dropout", "0.1"]
ENGINES = ("cpu", "cpu_2proc", "zero2", "fsdp2")
RECIPES = ("pretrain", "finetune", "finetune_lora", "finetune_task", "finetune_preference")
# Who writes to a terminal or a log finds it full, and none of that may wait in a buffer.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    # Caches lie beside the run, so that one start can have others than the next.
    "HF_HOME": "/proc/self/cwd/caches",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(SITE)]),
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Kind:
    """One recipe on one engine, and what its uninterrupted run left."""

    recipe: str
    engine: str
    place: Path  # where its texts and models lie
    seconds: dict[bool, float] = field(default_factory=dict)  # of a warm and of a cold run
    weights: dict[str, str] = field(default_factory=dict)
    moments: list = field(default_factory=list)  # of the uninterrupted run, see moments.py

    def __str__(self) -> str:
        return f"{self.recipe}-{self.engine}"

    @property
    def ranks(self) -> int:
        """How many processes train."""
        return 1 if self.engine == "cpu" else 2

    @property
    def finished(self) -> Path:
        """The folder of the uninterrupted run."""
        return self.place / "references" / str(self)

    def command(self, output_dir: Path, *more: str) -> list[str]:
        """The command line that starts this kind of run into a folder."""
        name, *words = self._words()
        own = [*words, *TRAINING, "--output_dir", str(output_dir), *more]
        launch = ["--accelerate", self.engine]
        if self.engine in ("zero2", "fsdp2"):
            launch += ["--num_processes", "2", "--use_cpu", "true"]
        return [*HFSCALE, name, *launch, *own]

    def _words(self) -> list[str]:
        text = ["--source", str(self.place / "text.txt"), "--sample_by", "line"]
        base = ["--model", str(self.place / "base"), "--max_length", "64"]
        task = ["--task_source", str(self.place / "task.jsonl"), *TASK]
        pairs = ["--source", str(self.place / "pairs.jsonl")]
        return {
            "pretrain": ["pretrain", *text, *SHAPE, "--tokenizer", "train:300"],
            "finetune": ["finetune", *text, *base],
            "finetune_lora": ["finetune", *text, *base, *LORA],
            "finetune_task": ["finetune_task", *task, *base],
            "finetune_preference": ["finetune_preference", *pairs, *base],
        }[self.recipe]


HFSCALE = [sys.executable, "-m", "hfscale.cli"]


class Run:
    """A started command: a launcher and its ranks, which end together or are ended."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        place: Path,
        *,
        warm: bool = True,
        plan: dict[str, Any] | None = None,
        output: Any = None,
    ):
        """Start it.

        Args:
            command: Python's command line.
            log: gets all that is printed.
            place: the current folder, in which the folder `caches` lies.
            warm: as a fork of this process.
            plan: what happens inside the ranks, see inside.py; `moment` is told to `reached`.
            output: an open file in place of the log.
        """
        self.log = log
        self._told = b""
        self._freezes = bool(plan and plan.get("freeze"))
        self._fifo = -1
        environment = os.environ | ENVIRONMENT
        if plan is not None:
            if "moment" in plan:
                plan = plan | {"fifo": self._open_fifo()}
            environment = environment | {PLAN: json.dumps(plan)}
        kind = WarmPopen if warm else subprocess.Popen
        with log.open("ab") as file:
            self.launcher = kind(
                command,
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output or file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _open_fifo(self) -> str:
        path = self.log.with_suffix(".fifo")
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self._fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        return str(path)

    def reached(self, limit_seconds: float = LIMIT_SECONDS) -> int:
        """Wait for the plan's moment; the process id of the rank, 0: the run ended without."""
        until = time.monotonic() + limit_seconds
        while time.monotonic() < until:
            ended = self.ended
            if select.select([self._fifo], [], [], 0.005)[0]:
                self._told += os.read(self._fifo, 100)
            if self._told.endswith(b"\n"):
                return self._stopped(int(self._told))
            if ended:
                return 0
            time.sleep(0.001)
        return 0

    def _stopped(self, pid: int) -> int:
        """The rank that has told its moment, once it stands still, if that is the plan."""
        with contextlib.suppress(psutil.NoSuchProcess):
            while self._freezes and psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.001)
        return pid

    @property
    def ended(self) -> bool:
        """Whether the launcher has ended."""
        return self.launcher.poll() is not None

    def processes(self) -> list[psutil.Process]:
        """The launcher and all below it, parents first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.launcher.pid)
            return [launcher, *launcher.children(recursive=True)]
        return []

    def ranks(self) -> list[psutil.Process]:
        """The processes that the launcher started, in the order of their ranks."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self.launcher.pid).children(), key=lambda rank: rank.pid)
        return []

    def kill(self) -> None:
        """SIGKILL to the launcher and all its ranks at once, as a machine that goes off."""
        processes = [] if self.ended else self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.launcher.wait()
        wait_until_gone(processes)
        self.close()

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> int | None:
        """Its exit status; None: it had to be killed."""
        try:
            self.launcher.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self.close()
        return self.launcher.returncode

    def close(self) -> None:
        """Let the descriptor go."""
        if self._fifo >= 0:
            os.close(self._fifo)
            self._fifo = -1

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text("utf-8", errors="replace")

    @property
    def trained_steps(self) -> int:
        """How many steps it trained, each of which is logged."""
        return len(re.findall(r"\| loss ", self.text))


def let_run(run: Run, seconds: float) -> None:
    """Wait so long, or until it has ended."""
    until = time.monotonic() + seconds
    while not run.ended and time.monotonic() < until:
        time.sleep(0.002)


def wait_until_gone(processes: list[psutil.Process], limit_seconds: float = 10) -> bool:
    """Whether they have ended, reaped or not; a moment passes between a signal and that."""
    until = time.monotonic() + limit_seconds
    while any(map(is_alive, processes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs (or is stopped)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def start(
    kind: Kind,
    folder: Path,
    part: int = 0,
    *more: str,
    resume: bool | None = None,
    warm: bool = True,
    **how: Any,
) -> Run:
    """A run into a folder; each part but the first resumes, and has a log of its own."""
    resume = part > 0 if resume is None else resume
    words = ["--resume", "auto"] if resume else []
    log = log_of(kind, folder, part)
    log.unlink(missing_ok=True)
    return Run(kind.command(folder, *words, *more), log, kind.place, warm=warm, **how)


def log_of(kind: Kind, folder: Path, part: int) -> Path:
    """Where a part of a run into a folder prints to: never into a folder that may be harmed."""
    name = ".".join(folder.relative_to(kind.place).parts)
    return kind.place / "logs" / f"{name}.part{part}.log"


def resume_result(kind: Kind, folder: Path, part: int, *more: str, **how: Any) -> tuple[str, Run]:
    """Resume a run to its end: `equal`, `other` weights, `failed`, `hung`, or `repeated` work."""
    newest = newest_whole(folder)
    run = start(kind, folder, part, *more, **how)
    status = run.wait()
    if status is None:
        return "hung", run
    if status != 0:
        return "failed", run
    if weights_of(folder) != kind.weights:
        return "other", run
    return ("equal" if run.trained_steps == STEPS - newest else "repeated"), run


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a finished folder."""
    return {path.name: digest_of(path) for path in sorted(folder.glob("*.safetensors"))}


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def whole_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints whose files are all what their manifests say.

    Written apart from the library, which it judges.
    """
    steps = []
    for checkpoint in folder.glob("checkpoint-*"):
        manifest = checkpoint / "manifest.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            files = json.loads(manifest.read_text("utf-8"))["files"]
            digests = {name: digest_of(checkpoint / name) for name in files}
            if all(digests[name] == files[name]["sha256"] for name in files):
                steps.append(int(checkpoint.name.removeprefix("checkpoint-")))
    return sorted(steps)


def newest_whole(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0: there is none."""
    return max(whole_steps(folder), default=0)


def make_place(place: Path) -> None:
    """Texts, a task, pairs and a base model, the same each time."""
    for name in ("caches", "logs", "references", "runs"):
        (place / name).mkdir(parents=True, exist_ok=True)
    lines = [f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}\n" for i in range(300)]
    (place / "text.txt").write_text("".join(lines))
    rows = [{"q": f"{i} and {i + 1}?", "a": str(2 * i + 1)} for i in range(80)]
    (place / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{i}?", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(80)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    if not (place / "base" / "run.json").is_file():
        shutil.rmtree(place / "base", ignore_errors=True)
        base = Kind("pretrain", "cpu", place).command(place / "base")
        run = Run(base, place / "logs" / "base.log", place)
        if run.wait() != 0:
            raise RuntimeError(f"the base model was not trained; see {run.log}")
