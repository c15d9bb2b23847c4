"""One training, launched in every way, is the same training: equal loss curves, and checkpoints that go on or say no.

Real processes over gloo on the CPU, float32, no dropout. FSDP2 runs through fsdp_on_cpu.py (accelerate itself would
not shard there). Each way is launched with adapters, with all weights, and from its own checkpoint of half-way.
"""

import functools
import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
       "OMP_NUM_THREADS": "1"}
WAYS = {"cpu": 1, "cpu_2proc": 2, "fsdp2": 2, "zero1": 2, "zero2": 2, "zero3": 2}  # config: processes
STEPS = 30
# Optimizer state goes on only where the engine reads what the other wrote. Without DeepSpeed's universal format, which
# needs a conversion by hand, its shards fit the same stage and number of processes alone.
RESUMES = {("cpu", "cpu_2proc"), ("cpu_2proc", "cpu"), *((way, way) for way in WAYS)}
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra hfscale[deepspeed] is missing")]


def start(config: str, script: str, folder: Path, *words: str):
    processes = WAYS[config]
    batch = str(8 // processes)
    return subprocess.run(
        [sys.executable, "-m", "hfscale.cli", f"tests/launched_{script}.py", "--accelerate", config,
         f"--num_processes={processes}", "--use_cpu", "--bf16", "false", "--report_to", "none", "--disable_tqdm",
         "--output_dir", str(folder), "--sample_by", "line", "--per_device_train_batch_size", batch,
         "--per_device_eval_batch_size", batch, "--learning_rate", "3e-3", "--logging_steps", "1",
         "--lr_scheduler_type", "linear", "--eval_strategy", "no", *words],
        cwd=ROOT, env=ENV | {"RANK_NOTES": str(folder.parent)}, text=True, capture_output=True, timeout=400)


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    words = "the a cat dog bird sat ran on under mat tree and then saw one".split()
    draw, path = random.Random(0), tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=draw.randint(20, 40))) for _ in range(120)))
    return str(path)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, text):
    """pretrained(config): the folder of 30 steps with a checkpoint after 15, all weights, launched once per config."""
    shape = "--tokenizer char --n_layer 2 --n_head 2 --n_embd 192 --n_positions 32".split()

    @functools.cache
    def run(config: str) -> Path:
        folder = tmp_path_factory.mktemp(config) / "run"
        result = start(config, "pretrain", folder, "--source", text, *shape, "--max_steps", str(STEPS),
                       "--save_steps", str(STEPS // 2), "--save_total_limit", "2")
        assert result.returncode == 0, result.stderr[-3000:]
        return folder

    return run


@pytest.mark.parametrize("config", WAYS)
def test_all_weights_follow_the_curve_of_one_process(config, pretrained):
    expected, found = losses(pretrained("cpu")), losses(pretrained(config))
    assert len(found) == STEPS and expected[-1] < 0.9 * expected[0]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, text, pretrained):
    """adapted(config): LoRA on the saved model of the way before this one: each also reads another's weights."""

    @functools.cache
    def run(config: str) -> Path:
        ways = list(WAYS)
        base = pretrained(ways[ways.index(config) - 1])
        folder = tmp_path_factory.mktemp(f"lora-{config}") / "run"
        result = start(config, "finetune", folder, "--source", text, "--model", str(base), "--lora_rank", "4",
                       "--max_length", "32", "--max_steps", str(STEPS), "--save_strategy", "no")
        assert result.returncode == 0, result.stderr[-3000:]
        return folder

    return run


@pytest.mark.parametrize("config", WAYS)
def test_adapters_follow_the_curve_of_one_process(config, adapted):
    expected, found = losses(adapted("cpu")), losses(adapted(config))
    assert len(found) == STEPS
    assert found == pytest.approx(expected, abs=1e-4)


def half_way(folder: Path, source: Path) -> Path:
    """A run folder that stopped after the checkpoint of step 15."""
    import shutil

    shutil.copytree(source / f"checkpoint-{STEPS // 2}", folder / f"checkpoint-{STEPS // 2}")
    return folder


@pytest.mark.parametrize(("before", "now"), sorted(RESUMES - {("cpu", "cpu"), ("zero1", "zero1")}))  # as the others
def test_a_checkpoint_goes_on(before, now, pretrained, text, tmp_path):
    folder = half_way(tmp_path / "run", pretrained(before))
    result = start(now, "pretrain", folder, "--source", text, "--tokenizer", "char", "--n_layer", "2", "--n_head", "2",
                   "--n_embd", "192", "--n_positions", "32", "--max_steps", str(STEPS), "--save_strategy", "no",
                   "--resume", "auto")
    assert result.returncode == 0, result.stderr[-3000:]
    assert losses(folder) == pytest.approx(losses(pretrained("cpu")), abs=1e-4)


@pytest.mark.parametrize("now", ["cpu", "cpu_2proc", "fsdp2", "zero1", "zero2", "zero3"])
def test_a_checkpoint_of_another_engine_is_refused(now, pretrained, monkeypatch):
    """Every pair that is not in RESUMES, by the recipe's own check: the launch sets these variables."""
    from transformers import TrainingArguments

    from hfscale.config import InputError
    from hfscale.run_folder import newest_checkpoint

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", str("zero" in now).lower())
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", now[-1])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(now == "fsdp2").lower())
    for before in WAYS:  # this process is one, so that ZeRO's own shards for two are refused too
        if (before, now) not in RESUMES - {(way, way) for way in WAYS if "zero" in way}:
            args = TrainingArguments(output_dir=str(pretrained(before)), use_cpu=True)
            with pytest.raises(InputError, match="optimizer_state was "):
                newest_checkpoint(args)
