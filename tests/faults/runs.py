"""Small runs of each training recipe, started as a user starts them, that faults are tried on."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"  # its sitecustomize lets engines for GPUs run on a CPU
STEPS, SAVE_STEPS = 12, 3
TRAINING = [
    *("--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--save_total_limit", "1"),
    *("--per_device_train_batch_size", "2", "--logging_steps", "1", "--learning_rate", "1e-2"),
    *("--report_to", "none", "--disable_tqdm", "true", "--bf16", "false"),
]
SHAPE = [
    *("--n_layer", "2", "--n_head", "2", "--n_embd", "32", "--n_positions", "64"),
    *("--resid_pdrop", "0.1"),  # so that a lost random state shows in the weights
]
ENGINES = ("cpu", "cpu_2proc", "zero2", "fsdp2")
RECIPES = ("pretrain", "finetune", "finetune_lora", "finetune_task", "finetune_preference")


@dataclass
class Kind:
    """One recipe on one engine, and what its uninterrupted run left."""

    recipe: str
    engine: str
    place: Path  # where its texts and models lie
    seconds: float = 0.0  # the uninterrupted run's
    weights: dict[str, str] = field(default_factory=dict)

    def command(self, output_dir: Path, *more: str) -> list[str]:
        """The command line that starts this kind of run into a folder."""
        name, *words = self._words()
        own = [*words, *TRAINING, "--output_dir", str(output_dir), *more]
        launch = ["--accelerate", self.engine]
        if self.engine in ("zero2", "fsdp2"):
            launch += ["--num_processes", "2", "--use_cpu", "true"]
        return [sys.executable, "-m", "hfscale.cli", name, *launch, *own]

    def _words(self) -> list[str]:
        text = ["--source", str(self.place / "text.txt"), "--sample_by", "line"]
        base = ["--model", str(self.place / "base")]
        length = ["--max_length", "64"]
        if self.recipe == "pretrain":
            return ["pretrain", *text, *SHAPE, "--tokenizer", "train:300"]
        if self.recipe == "finetune":
            return ["finetune", *text, *base, *length]
        if self.recipe == "finetune_lora":
            return ["finetune", *text, *base, *length, "--lora_r", "2", "--lora_dropout", "0.1"]
        if self.recipe == "finetune_task":
            task = ["--task_source", str(self.place / "task.jsonl")]
            asked = ["--prompt", "{q}", "--target", " {a}", "--max_new_tokens", "4"]
            return ["finetune_task", *task, *asked, *base, *length]
        pairs = ["--source", str(self.place / "pairs.jsonl")]
        return ["finetune_preference", *pairs, *base, *length]


def environment() -> dict[str, str]:
    """One thread, no network, no caches of others."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(SITE)]),
        "TOKENIZERS_PARALLELISM": "false",
    }


def start(command: list[str], log: Path) -> subprocess.Popen:
    """The run, in a process group of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all its ranks at once, as a machine that goes off."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a finished folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make_place(place: Path) -> None:
    """Texts, a task, pairs and a base model, the same each time."""
    place.mkdir(parents=True, exist_ok=True)
    lines = [f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}\n" for i in range(300)]
    (place / "text.txt").write_text("".join(lines))
    rows = [{"q": f"{i} and {i + 1}?", "a": str(2 * i + 1)} for i in range(80)]
    (place / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{i}?", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(80)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    if not (place / "base" / "run.json").is_file():
        shutil.rmtree(place / "base", ignore_errors=True)
        base = Kind("pretrain", "cpu", place)
        run = start(base.command(place / "base"), place / "base.log")
        if run.wait() != 0:
            raise RuntimeError(f"the base model was not trained; see {place / 'base.log'}")
