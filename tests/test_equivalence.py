"""One training, launched in every way, is the same training: equal loss curves, and checkpoints that go on or say no.

Real processes over gloo on the CPU, float32, no dropout. FSDP2 runs through fsdp_on_cpu.py (accelerate itself would
not shard there). Each way is launched with all weights, with adapters, and from its own checkpoint of half-way.
"""

import functools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
       "OMP_NUM_THREADS": "1"}
# config: processes, accelerate's type, the class that wraps the model, where parameters and AdamW's moments lie.
EXPECTED = {
    "cpu": (1, "NO", "GPT2LMHeadModel", "whole", "whole"),
    "single_gpu": (1, "NO", "GPT2LMHeadModel", "whole", "whole"),
    "cpu_2proc": (2, "MULTI_CPU", "DistributedDataParallel", "whole", "whole"),
    "ddp": (2, "MULTI_CPU", "DistributedDataParallel", "whole", "whole"),
    "fsdp2": (2, "FSDP", "FSDPGPT2LMHeadModel", "shards", "shards"),
    "zero1": (2, "DEEPSPEED", "DeepSpeedEngine", "whole", "shards"),
    "zero2": (2, "DEEPSPEED", "DeepSpeedEngine", "whole", "shards"),
    "zero3": (2, "DEEPSPEED", "DeepSpeedEngine", "gathered when used", "shards"),
}
WAYS = [config for config in EXPECTED if config not in ("single_gpu", "ddp")]  # on a CPU these are two of the others
STEPS = 30
# Optimizer state goes on only where the engine reads what the other wrote. Without DeepSpeed's universal format, which
# needs a conversion by hand, its shards fit the same stage and number of processes alone.
RESUMES = {("cpu", "cpu_2proc"), ("cpu_2proc", "cpu"), *((way, way) for way in WAYS)}
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra hfscale[deepspeed] is missing")]


def start(config: str, script: str, folder: Path, *words: str):
    processes = EXPECTED[config][0]
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


@pytest.mark.parametrize("config", EXPECTED)
def test_all_weights_follow_the_curve_of_one_process(config, pretrained):
    expected, found = losses(pretrained("cpu")), losses(pretrained(config))
    assert len(found) == STEPS and expected[-1] < 0.9 * expected[0]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("config", EXPECTED)
def test_config_is_what_it_says(config, pretrained):
    notes = sorted(pretrained(config).parent.glob("rank*.json"))
    ranks = [json.loads(path.read_text()) for path in notes]
    processes, distributed_type, wrapper, parameters, moments = EXPECTED[config]
    assert [rank["world_size"] for rank in ranks] == [processes] * processes
    assert {(rank["distributed_type"], rank["wrapper"]) for rank in ranks} == {(distributed_type, wrapper)}
    assert {rank["steps"] for rank in ranks} == {STEPS}

    whole = ranks[0]["parameters"]
    share = {"whole": [whole] * processes, "shards": [whole // 2] * processes}
    assert [rank["local_moments"] for rank in ranks] == pytest.approx(share[moments], rel=0.01)
    if parameters == "gathered when used":  # between uses only what is too small to be worth sharding stays
        assert all(0 < rank["local_parameters"] < 0.2 * whole for rank in ranks)
    else:
        assert [rank["local_parameters"] for rank in ranks] == pytest.approx(share[parameters], rel=0.01)
    assert {rank["dtensors"] for rank in ranks} == {ranks[0]["tensors"] if config == "fsdp2" else 0}
    stage = int(config[-1]) if "zero" in config else None
    assert {rank["zero_stage"] for rank in ranks} == {stage}
    if stage in (1, 2):
        assert {rank["partition_gradients"] for rank in ranks} == {stage == 2}


@pytest.mark.parametrize("config", EXPECTED)
def test_same_batches_give_the_same_model(config, pretrained):
    """One process with batches of 8 and two with 4 each: the losses, the saved weights and the record agree."""
    from safetensors.numpy import load_file

    reference, folder = pretrained("cpu"), pretrained(config)
    expected, record = (json.loads((path / "run.json").read_text()) for path in (reference, folder))
    for name in ("eval_loss", "eval_perplexity", "eval_bits_per_byte"):
        assert record["metrics"][name] == pytest.approx(expected["metrics"][name], abs=1e-4)
    assert record["metrics"]["eval_loss"] < 0.8 * math.log(20)  # it has learned: untrained, near log(vocabulary)
    assert record["metrics"]["eval_tokens"] == expected["metrics"]["eval_tokens"]
    assert record["model"] == expected["model"]
    assert record["train"]["tokens"] == expected["train"]["tokens"]
    assert record["hardware"]["world_size"] == EXPECTED[config][0]
    weights, same = load_file(folder / "model.safetensors"), load_file(reference / "model.safetensors")
    tied = weights.pop("lm_head.weight", weights["transformer.wte.weight"])  # FSDP and ZeRO write it twice
    assert (tied == weights["transformer.wte.weight"]).all()
    assert weights.keys() == same.keys()
    assert max(abs(weights[name] - same[name]).max() for name in same) < 5e-4  # a sixth of the first step


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, text, pretrained):
    """adapted(config): LoRA on the saved model of the way before this one: each also reads another's weights."""

    @functools.cache
    def run(config: str) -> Path:
        base = pretrained(WAYS[WAYS.index(config) - 1])
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


@pytest.mark.parametrize("now", WAYS)
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
