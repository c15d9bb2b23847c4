"""The plan before the bill: right sums, a command that exists, in under two seconds and without torch."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfscale.config import InputError, check_recipe_args
from hfscale.launch import shipped
from hfscale.scaling.flops import Shape, training_flops
from hfscale.scaling.memory import Sharding, Step, step_memory_bytes
from hfscale.scaling.plan import Accelerator, fastest, find_accelerator, find_shape, plan_launch, plan_launches
from recipes import plan

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "configs"
SMALL = Shape(12, 12, 768, 1024, 50257)
ROUND = Accelerator(memory_gb=40, bf16_tflops=100, fp16_tflops=100, fp32_tflops=10, bandwidth_gb_s=1000,
                    link_gb_s=100, power_w=500, source="round numbers")


def command_line(*words: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-X", "importtime", "-m", "hfscale.cli", "plan", *words], cwd=ROOT,
                          capture_output=True, text=True, timeout=60, **how)


def test_it_is_quick_and_needs_no_torch():
    seconds = []
    for _ in range(3):  # other work on the machine slows one run
        start = time.monotonic()
        result = command_line("--config", "gpt2_small", "--gpu", "h100-80gb", "--num_gpus", "8")
        seconds.append(time.monotonic() - start)
        assert result.returncode == 0, result.stderr[-500:]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "rich" in imported and not imported & {"torch", "transformers", "numpy", "accelerate"}
    assert min(seconds) < 2


def test_the_command_it_prints_is_taken_by_the_recipe(capsys):
    plan.main(["--config", "gpt2_xl", "--gpu", "a100-40gb", "--num_gpus", "4", "--learning_rate", "1e-4"])
    words = re.search(r"^launch: hfscale (\w+) (.*)$", capsys.readouterr().out, re.M)
    assert words[1] == "pretrain" and "--num_processes 4" in words[2] and "gpu" not in words[2]
    from hfscale.launch import split_flags

    flags, rest = split_flags(words[2].split())
    values = check_recipe_args(ROOT / "recipes" / "pretrain.py", rest)
    assert flags["accelerate"] in shipped("accelerate_configs", "*.yaml")
    assert values["learning_rate"] == 1e-4
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == 4 * 16  # as in the config


@pytest.mark.parametrize("path", sorted(path for d in ("pretrain", "finetune") for path in (CONFIGS / d).glob("*")),
                         ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_training_config_can_be_planned(path, capsys, tmp_path, monkeypatch):
    from transformers import GPT2Config

    monkeypatch.chdir(tmp_path)
    GPT2Config(n_layer=4, n_head=8, n_embd=256).save_pretrained("runs/pretrain-tiny")  # what tiny_cpu begins from
    plan.main(["--config", f"{path.parent.name}/{path.stem}", "--vocab_size", "300", "--gpu", "h100-80gb"])
    assert "launch: hfscale " + path.parent.name in capsys.readouterr().out


def test_numbers_by_hand():
    """Two GPUs, 4 x 2 rows each: 100 TFLOPS at half efficiency, then 2 x 4 bytes x parameters x 1/2 at 100 GB/s."""
    step = Step(batch_size=4, max_length=1024, bf16=True)
    one = plan_launch(SMALL, step, Sharding("ddp", 0, 2), ROUND, rows=8, efficiency=0.5)
    flops = training_flops(SMALL, 8 * 1024, 1024)
    seconds = flops / 50e12 + 4 * 124_439_808 / 100e9
    assert one["step_seconds"] == pytest.approx(seconds)
    assert one["tokens_per_second"] == pytest.approx(2 * 8 * 1024 / seconds)
    assert one["batch_size"] == 4 and one["gradient_accumulation_steps"] == 2 and one["fits"]
    assert one["memory_bytes"] == step_memory_bytes(SMALL, step._replace(accumulates=True), Sharding("ddp", 0, 2))


def test_largest_batch_is_the_largest_that_fits():
    step, sharding = Step(batch_size=64, max_length=1024, bf16=True), Sharding()
    found = plan_launch(SMALL, step, sharding, ROUND, rows=64, efficiency=0.5)

    def used(batch):
        parts = step_memory_bytes(SMALL, step._replace(batch_size=batch, accumulates=batch < 64), sharding)
        return sum(parts.values())

    assert found["batch_size"] == found["largest_batch_size"] < 64
    assert 64 % found["largest_batch_size"] == 0
    assert used(found["largest_batch_size"]) + 1e9 <= 40e9 < used(2 * found["largest_batch_size"]) + 1e9
    assert found["batch_size"] * found["gradient_accumulation_steps"] == 64
    none = plan_launch(SMALL, step, sharding, ROUND._replace(memory_gb=2), rows=64, efficiency=0.5)
    assert not none["fits"] and none["largest_batch_size"] is None


def test_the_fastest_that_fits():
    def one(seconds, stage, fits=True):
        return {"step_seconds": seconds, "stage": stage, "fits": fits}

    assert fastest({"a": one(1, 0, fits=False), "b": one(2, 3), "c": one(3, 1)}) == "b"
    assert fastest({"z": one(1.0, 3), "d": one(1.01, 0), "e": one(1.03, 0)}) == "d"
    assert fastest({"a": one(1, 0, fits=False)}) is None


def test_a_model_too_large_for_one_gpu_is_split(capsys):
    """GPT-2 XL's 25 GB of state do not fit on 24 GB cards; eight of them share it."""
    xl = Shape(48, 25, 1600, 1024, 50257)
    step = Step(1, 1024, bf16=True, activation_checkpointing=True)
    plans = plan_launches(xl, step, find_accelerator("rtx-4090"), 8, rows=1, efficiency=0.4)
    assert not plans["ddp"]["fits"] and plans["fsdp2"]["fits"] and plans["zero2"]["fits"]
    assert fastest(plans) != "ddp"
    assert set(plans) == {"ddp", "fsdp2", "fsdp2_offload", "zero1", "zero2", "zero3", "zero3_offload", "zero3_nvme"}
    alone = plan_launches(xl, step, find_accelerator("rtx-4090"), 1, rows=1, efficiency=0.4)
    assert not alone["single_gpu"]["fits"] and alone["zero3_offload"]["fits"]


def test_every_accelerator_has_a_source_and_sane_numbers():
    names = ("a100-40gb a100-80gb h100-80gb h100-pcie h200 l4 l40s a10g v100-16gb v100-32gb t4 rtx-3090 rtx-4090 "
             "mi300x").split()
    for name in names:
        device = find_accelerator(name)
        assert re.match(r"(NVIDIA|AMD) .*\b20\d\d\b", device.source) and 8 <= device.memory_gb <= 200
        assert (device.bf16_tflops or device.fp16_tflops) > device.fp32_tflops > 5


@pytest.mark.parametrize(("name", "units", "matrix_ghz", "matrix_flops", "fp32_ghz", "fp32_flops"), [
    ("a100-80gb", 108, 1.41, 2048, 1.41, 128), ("h100-80gb", 132, 1.83, 4096, 1.98, 256),
    ("h100-pcie", 114, 1.62, 4096, 1.755, 256), ("l4", 58, 2.04, 1024, 2.04, 256),
    ("l40s", 142, 2.52, 1024, 2.52, 256), ("a10g", 80, 1.71, 512, 1.71, 256), ("v100-32gb", 80, 1.53, 1024, 1.53, 128),
    ("t4", 40, 1.59, 1024, 1.59, 128), ("rtx-3090", 82, 1.695, 512, 1.695, 256),
    ("rtx-4090", 128, 2.52, 512, 2.52, 256), ("mi300x", 304, 2.1, 2048, 2.1, 256)])
def test_peak_rates_are_units_times_clock_times_width(name, units, matrix_ghz, matrix_flops, fp32_ghz, fp32_flops):
    """Dense products, accumulated in float32, per multiprocessor and clock: sparsity would be off by two."""
    device = find_accelerator(name)
    assert device.fp16_tflops == pytest.approx(units * matrix_ghz * matrix_flops / 1000, rel=0.02)
    assert device.fp32_tflops == pytest.approx(units * fp32_ghz * fp32_flops / 1000, rel=0.02)
    assert device.bf16_tflops in (device.fp16_tflops, None)


def test_a_device_of_your_own(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"mine": ROUND._asdict()}))
    assert find_accelerator("mine", str(mine)) == ROUND
    assert find_accelerator("h200", str(mine)).memory_gb == 141


def test_the_picture_and_the_prices(tmp_path, capsys):
    plan.main(["--config", "gpt2_small", "--picture", str(tmp_path / "deep" / "plan.png"),
               "--price_per_gpu_hour", "2", "--price_per_kwh", "0.5", "--tokens", "1e9"])
    assert (tmp_path / "deep" / "plan.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "1,000,000,000" in shown and "not given" not in shown and "2,488,796,160" in shown  # 20 x 124,439,808


def test_sizes_come_from_the_files_at_hand(tmp_path):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}
    assert find_shape(None, sizes, "unigram:5000", None) == Shape(2, 2, 32, 64, 5000)
    assert find_shape("gpt2-xl", sizes, "train:300", None).parameters() == 1_557_611_200
    from datasets import Dataset

    from hfscale.data.tokenizer import train_bpe

    tokenizer = train_bpe(Dataset.from_dict({"text": ["some words"]}), 270)
    tokenizer.save_pretrained(tmp_path)
    assert find_shape(None, sizes, str(tmp_path), None).vocab_size == len(tokenizer)
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0)).save(str(tmp_path / "tokenizer.json"))
    assert find_shape(None, sizes, str(tmp_path), None).vocab_size == 3
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="its vocabulary is not known"):
        find_shape(None, sizes, str(tmp_path), None)


@pytest.mark.parametrize(("words", "says"), [
    ("--gpu h1000", "--gpu h1000: not known; known: a100-40gb"),
    ("--num_gpus 0", "num_gpus: got 0, expected above 0"),
    ("--efficiency 1.5", "efficiency: got 1.5, expected above 0, at most 1"),
    ("--gpu t4 --bf16", "t4 has no bf16 matrix units; add --bf16 false"),
    ("--tokenizer char", "tokenizer char: its vocabulary is not known before it is there; give --vocab_size"),
    ("--model nowhere", "--model nowhere: not a folder of a saved GPT-2; known without files: gpt2, gpt2-medium"),
    ("--config gpt2_xl --gpu t4 --num_gpus 1 --bf16 false --activation_checkpointing false --n_layer 500",
     "nothing fits on 1 x t4"),
    ("--accelerators missing.yaml", "--accelerators missing.yaml: "),
    ("--gpu mine --accelerators mine.yaml", "mine: not of the form of accelerators.yaml"),
    ("--gpu low --accelerators mine.yaml", "low: memory_gb: expected a number above 0"),
    ("--num_gpu 2", "unknown name --num_gpu; did you mean num_gpus?"),
    ("--max_length 99999", "max_length 99999 is beyond the model's n_positions 1024"),
    ("--per_device_train_batch_size 0", "per_device_train_batch_size: got 0, expected above 0"),
])
def test_bad_input_is_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    low = ROUND._asdict() | {"memory_gb": -1}
    Path("mine.yaml").write_text(json.dumps({"mine": {"memory_gb": 3}, "low": low}))
    with pytest.raises(InputError) as error:
        plan.main(words.split())
    assert says in str(error.value) and "\n" not in str(error.value)
