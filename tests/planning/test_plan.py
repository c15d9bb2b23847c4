"""The plan before the bill: right sums, a command that exists, in under two seconds and without
torch.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from hfscale.arguments import ShapeArguments, shape_of
from hfscale.config import check_recipe_args, shipped
from hfscale.launch import accelerate_command, split_flags
from hfscale.new_models import meta_model, new_config
from hfscale.planning.counted import count_model
from hfscale.planning.flops import Shape, training_flops
from hfscale.planning.memory import Sharding, Step, step_memory_bytes
from hfscale.planning.plan import (
    Device,
    Machines,
    divisors,
    fastest,
    find_device,
    find_machines,
    gpt2_in_training,
    plan_launch,
    plan_launches,
    recommended,
)
from hfscale.planning.shapes import find_shape
from hfscale.process import InputError
from hfscale.traced_memory import memory_of
from recipes import plan

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
SMALL = Shape(12, 12, 768, 1024, 50257)
ROUND = Device(
    memory_gb=40,
    bf16_tflops=100,
    fp16_tflops=100,
    fp32_tflops=10,
    bandwidth_gb_s=1000,
    link_gb_s=100,
    power_w=500,
    source="round numbers",
)


def command_line(*words: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hfscale.cli", "plan", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **how,
    )


def test_it_starts_without_what_is_heavy():
    result = command_line("--config", "gpt2_small", "--gpu", "h100-80gb", "--num_gpus", "8")
    assert result.returncode == 0, result.stderr[-500:]
    imported = {
        line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()
    }
    assert "rich" in imported and not imported & {"torch", "transformers", "numpy", "accelerate"}


def test_the_command_it_prints_is_taken_by_the_recipe(capsys):
    plan.main(
        [
            *["--config", "pretrain/gpt2_xl", "--gpu", "a100-40gb", "--num_gpus", "4"],
            *["--learning_rate", "1e-4", "--tokens_per_step", "524288"],
        ]
    )
    words = re.search(r"^launch: hfscale (\w+) (.*)$", capsys.readouterr().out, re.M)
    assert words[1] == "pretrain" and "--num_processes 4" in words[2] and "gpu" not in words[2]
    flags, rest = split_flags(words[2].split())
    values = check_recipe_args(ROOT / "recipes" / "pretrain.py", rest)
    assert flags["accelerate"] in shipped("accelerate_configs", "*.yaml")
    assert values["learning_rate"] == 1e-4
    assert (
        4 * values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == 512
    )  # as in the config


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for d in ("pretrain", "finetune", "finetune_task")
        for path in (CONFIGS / d).glob("*.yaml")
    ),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_training_config_can_be_planned(path, capsys, tmp_path, monkeypatch):
    from transformers import GPT2Config

    monkeypatch.chdir(tmp_path)
    GPT2Config(n_layer=4, n_head=8, n_embd=256).save_pretrained(
        "runs/pretrain-tiny"
    )  # what tiny_cpu begins from
    plan.main(
        ["--config", f"{path.parent.name}/{path.stem}", "--vocab_size", "300", "--gpu", "h100-80gb"]
    )
    assert f"launch: hfscale {path.parent.name} --config" in capsys.readouterr().out


def test_numbers_by_hand():
    """Two GPUs, 4 x 2 rows each: 100 TFLOPS at half efficiency, then 2 x 4 bytes x parameters x 1/2
    at 100 GB/s.
    """
    step = Step(batch_size=4, max_length=1024, bf16=True)
    one = plan_launch(
        gpt2_in_training(SMALL, step), step, Sharding("ddp", 0, 2), ROUND, rows=8, efficiency=0.5
    )
    flops = training_flops(SMALL, 8 * 1024, 1024)
    seconds = flops / 50e12 + 4 * 124_439_808 / 100e9
    assert one["step_seconds"] == pytest.approx(seconds)
    assert one["tokens_per_second"] == pytest.approx(2 * 8 * 1024 / seconds)
    assert one["batch_size"] == 4 and one["gradient_accumulation_steps"] == 2 and one["fits"]
    assert one["memory_bytes"] == step_memory_bytes(
        SMALL, step._replace(accumulates=True), Sharding("ddp", 0, 2)
    )


def test_largest_batch_is_the_largest_that_fits():
    step, sharding = Step(batch_size=64, max_length=1024, bf16=True), Sharding()
    found = plan_launch(
        gpt2_in_training(SMALL, step), step, sharding, ROUND, rows=64, efficiency=0.5
    )

    def used(batch):
        parts = step_memory_bytes(
            SMALL, step._replace(batch_size=batch, accumulates=batch < 64), sharding
        )
        return sum(parts.values())

    assert found["batch_size"] == found["largest_batch_size"] < 64
    assert 64 % found["largest_batch_size"] == 0
    assert (
        used(found["largest_batch_size"]) + 1e9
        <= 40e9
        < used(2 * found["largest_batch_size"]) + 1e9
    )
    assert found["batch_size"] * found["gradient_accumulation_steps"] == 64
    none = plan_launch(
        gpt2_in_training(SMALL, step),
        step,
        sharding,
        ROUND._replace(memory_gb=2),
        rows=64,
        efficiency=0.5,
    )
    assert not none["fits"] and none["largest_batch_size"] is None


def test_the_fastest_that_fits():
    def one(seconds, stage, fits=True):
        return {"step_seconds": seconds, "stage": stage, "fits": fits}

    plans = {"a": one(1, 0, fits=False), "b": one(2, 3), "c": one(3, 1)}
    assert fastest(plans) == recommended(plans) == "b"
    plans = {"z": one(1.0, 3), "d": one(1.01, 0), "e": one(1.005, 0), "f": one(1.03, 0)}
    assert (fastest(plans), recommended(plans)) == (
        "z",
        "e",
    )  # the time of a step is not known so exactly
    assert (
        fastest({"a": one(1, 0, fits=False)}) is recommended({"a": one(1, 0, fits=False)}) is None
    )


def test_fastest_names_the_fastest(capsys):
    plan.main(["--config", "gpt2_xl", "--gpu", "h100-80gb", "--num_gpus", "8", "--tokens", "10e9"])
    out = capsys.readouterr().out
    rows = re.findall(r"^│ (\w+) +│ ([\d.]+) +│ [\d,]+ +│ [\d.]+", out, re.M)
    assert (
        min(rows, key=lambda row: float(row[1]))[0]
        == re.search(r"^fastest: (\w+)$", out, re.M)[1]
        == "zero1"
    )
    assert "taken: ddp, within 2% of it" in out and "--accelerate ddp" in out


def planned(words: str, capsys) -> tuple[str, dict, dict]:
    """What is printed, and of the line to launch the launcher's flags and the values that the
    recipe reads.
    """
    plan.main(words.split())
    out = capsys.readouterr().out
    recipe, line = re.search(r"^launch: hfscale (\w+) (.*)$", out, re.M).groups()
    flags, rest = split_flags(line.split())
    return out, flags, check_recipe_args(ROOT / "recipes" / f"{recipe}.py", rest)


def tokens_of(values: dict, processes: int) -> int:
    return (
        processes
        * values["per_device_train_batch_size"]
        * values.get("gradient_accumulation_steps", 1)
        * values["max_position_embeddings"]
    )


@pytest.mark.parametrize(
    ("words", "machines"),
    [
        ("--num_gpus 16", 2),
        ("--num_gpus 16 --num_machines 4", 4),
        ("--num_gpus 64 --network_gbit_s 3200", 8),
    ],
)
def test_several_machines_get_a_config_for_them(words, machines, capsys, monkeypatch):
    out, flags, values = planned(
        f"--config gpt2_xl --gpu h100-80gb --tokens_per_step 524288 {words}", capsys
    )
    processes = int(words.split()[1])
    assert flags["accelerate"] in {"multi_node_ddp", "multi_node_fsdp2", "multi_node_zero3"}
    assert (flags["num_machines"], flags["num_processes"], flags["machine_rank"]) == (
        machines,
        processes,
        0,
    )
    assert f"machines: {machines} with {processes // machines} GPUs each" in out
    assert (
        tokens_of(values, processes) == 524_288 and "change" not in out
    )  # as the config has it on eight GPUs
    monkeypatch.setattr(
        "hfscale.launch.find_spec", lambda name: True
    )  # DeepSpeed may be missing here
    _, line = re.search(r"^launch: hfscale (\w+) (.*)$", out, re.M).groups()
    for rank in (0, machines - 1):
        flags, rest = split_flags(
            line.replace("--machine_rank 0", f"--machine_rank {rank}").split()
        )
        started, _ = accelerate_command(
            ROOT / "recipes/pretrain.py", rest, flags, False, processes // machines, 8
        )
        assert started[started.index("--num_processes") + 1] == str(processes)


@pytest.mark.parametrize(
    ("words", "tokens", "note"),
    [
        ("--num_gpus 16 --tokens_per_step 524288", 524_288, ""),
        ("--num_gpus 1 --tokens_per_step 524288", 524_288, ""),
        # Four rows each: below the config's micro-batch.
        ("--num_gpus 128 --tokens_per_step 524288", 524_288, ""),
        (
            "--num_gpus 24 --tokens_per_step 524288",
            516_096,
            "524,288 are asked for, 516,096 are planned on 24 GPUs",
        ),
        ("--num_gpus 8 --tokens_per_step 1048576", 1_048_576, ""),
        ("--num_gpus 16", 1_048_576, "grow with the GPUs, 65,536 on each"),
        ("--num_gpus 16 --gradient_accumulation_steps 1", 524_288, "grow with the GPUs, 32,768"),
        ("--num_gpus 1", 65_536, ""),
    ],
)
def test_tokens_of_a_step_are_those_that_are_asked_for_or_said_to_change(
    words, tokens, note, capsys
):
    out, flags, values = planned(f"--config pretrain/gpt2_small --gpu h100-80gb {words}", capsys)
    shown = int(re.search(r"^tokens per step +([\d,]+)$", out, re.M)[1].replace(",", ""))
    assert shown == tokens_of(values, flags.get("num_processes", 1)) == tokens
    notes = [
        line
        for line in out.splitlines()
        if line.startswith("tokens of a step") or " change: " in line
    ]
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_the_network_is_the_slowest_link():
    """Two machines: DDP's ring sends all but a sixteenth of the float32 gradients twice over the
    network; a network faster than the links inside the machines changes nothing.
    """
    step = Step(batch_size=4, max_length=1024, bf16=True)
    how = {"rows": 8, "efficiency": 0.5}
    slow = plan_launches(
        gpt2_in_training(SMALL, step), step, ROUND, Machines(16, 2, network_gb_s=10), **how
    )["multi_node_ddp"]
    seconds = training_flops(SMALL, 8 * 1024, 1024) / 50e12 + 2 * 4 * 124_439_808 * 15 / 16 / 10e9
    assert slow["step_seconds"] == pytest.approx(seconds)
    fast = plan_launches(
        gpt2_in_training(SMALL, step), step, ROUND, Machines(16, 2, network_gb_s=500), **how
    )["multi_node_ddp"]
    inside = plan_launch(gpt2_in_training(SMALL, step), step, Sharding("ddp", 0, 16), ROUND, **how)
    assert fast["step_seconds"] == inside["step_seconds"] < slow["step_seconds"]


def test_machines_share_the_gpus_evenly():
    assert find_machines(8, None, 100) == Machines(8, 1, 12.5)
    assert [find_machines(n, None, 8).number for n in (1, 9, 12, 16, 24, 11)] == [
        1,
        3,
        2,
        2,
        3,
        11,
    ]
    assert find_machines(16, 1, 8) == Machines(16, 1, 1)
    with pytest.raises(
        InputError, match="num_gpus 16: cannot be the same number on each of 3 machines"
    ):
        find_machines(16, 3, 8)
    assert divisors(12) == [12, 6, 4, 3, 2, 1] and divisors(1) == [1]


def test_finetuning_is_planned_as_it_is_configured(tmp_path, capsys):
    """The trained parameters are those that the recipe trains, and what it would refuse is refused
    here.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from hfscale.adapters import load_for_training
    from hfscale.arguments import AdapterArguments
    from hfscale.models import count_trained

    GPT2LMHeadModel(
        GPT2Config(n_layer=3, n_head=2, n_embd=32, n_inner=48, n_positions=2048, vocab_size=99)
    ).save_pretrained(tmp_path)
    for words, arguments in (
        ("", {}),
        ("--freeze_layers 2", {"freeze_layers": 2}),
        ("--lora_r 4", {"lora_r": 4}),
        (
            "--lora_r 4 --lora_target_modules c_fc --freeze_layers 1",
            {"lora_r": 4, "lora_target_modules": ["c_fc"], "freeze_layers": 1},
        ),
    ):
        out, _, _ = planned(f"--model {tmp_path} {words}", capsys)
        trained = int(re.search(r"^trained +([\d,]+)$", out, re.M)[1].replace(",", ""))
        assert trained == count_trained(
            load_for_training(AdapterArguments(model=str(tmp_path), **arguments), None)
        )
        assert re.search(
            r"^tokens per step +8,192$", out, re.M
        )  # rows of 1,024, finetune's own limit


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ("--config gpt2_xl", "pretrain"),
        ("--config gpt2_lora", "finetune"),
        ("--config dialogue", "finetune_task"),
        ("--config finetune_task/tiny_cpu", "finetune_task"),
        ("--config mine.yaml", "finetune"),
        ("--config extends.yaml", "finetune"),
        ("--recipe finetune_task --config mine.yaml", "finetune_task"),
        ("--model gpt2", "finetune"),
        ("--vocab_size 300", "pretrain"),
    ],
)
def test_the_recipe_is_that_of_the_config_or_of_the_names(
    words, recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: gpt2\nlora_r: 8\n")
    Path("extends.yaml").write_text("extends: mine.yaml\nlearning_rate: 1e-4\n")
    _, _, values = planned(words, capsys)
    assert check_recipe_args(ROOT / "recipes" / "plan.py", words.split())["recipe"] == recipe
    assert "gpu" not in values


def test_a_task_from_random_weights_has_its_tokenizer_and_new_tokens(capsys):
    """512 words to be trained, and two that the config adds; GPT-2's own where it goes on."""
    new = Shape(3, 4, 128, 256, 514).parameters()
    out, _, values = planned("--config finetune_task/dialogue", capsys)
    assert re.search(rf"^parameters +{new:,}$", out, re.M) and values["model"] == "new"
    out, _, _ = planned("--config finetune_task/code --model gpt2 --tokenizer null", capsys)
    assert re.search(r"^parameters +124,439,808$", out, re.M)
    assert re.search(r"^tokens per step +16,384$", out, re.M)  # 16 rows of GPT-2's context


def test_four_bits_are_not_planned_where_weights_are_split(capsys):
    out, flags, _ = planned("--config finetune/qlora --num_gpus 8 --gpu l4", capsys)
    assert "zero2" in out and "fsdp" not in out and "zero3" not in out
    assert flags["accelerate"] in ("ddp", "zero1", "zero2")


def test_fp16_runs_at_its_own_rate(capsys):
    seconds = []
    for more in (["--fp16", "true"], []):
        plan.main(
            [
                *["--config", "gpt2_small", "--gpu", "t4", "--num_gpus", "8", "--bf16", "false"],
                *more,
            ]
        )
        out = capsys.readouterr().out
        seconds.append(float(re.search(r"│ ddp +│ ([\d.]+) +│ [\d,]+ +│ [\d.]+", out)[1]))
    assert seconds[0] < seconds[1] / 4  # 65 TFLOPS against 8


def test_a_model_too_large_for_one_gpu_is_split(capsys):
    """GPT-2 XL's 25 GB of state do not fit on 24 GB cards; eight of them share it."""
    xl = Shape(48, 25, 1600, 1024, 50257)
    step = Step(1, 1024, bf16=True, activation_checkpointing=True)
    plans = plan_launches(
        gpt2_in_training(xl, step),
        step,
        find_device("rtx-4090"),
        Machines(8),
        rows=1,
        efficiency=0.4,
    )
    assert not plans["ddp"]["fits"] and plans["fsdp2"]["fits"] and plans["zero2"]["fits"]
    assert fastest(plans) != "ddp"
    assert set(plans) == {
        "ddp",
        "fsdp2",
        "fsdp2_offload",
        "zero1",
        "zero2",
        "zero3",
        "zero3_offload",
        "zero3_nvme",
    }
    alone = plan_launches(
        gpt2_in_training(xl, step),
        step,
        find_device("rtx-4090"),
        Machines(1),
        rows=1,
        efficiency=0.4,
    )
    assert not alone["single_gpu"]["fits"] and alone["zero3_offload"]["fits"]


def test_an_average_of_the_weights_is_counted_and_not_split():
    step = Step(1, 512)
    machines = Machines(2)
    device = find_device("a100-80gb")
    plain = plan_launches(
        gpt2_in_training(SMALL, step), step, device, machines, rows=1, efficiency=0.4
    )
    step = step._replace(averages_weights=True)
    averaged = plan_launches(
        gpt2_in_training(SMALL, step), step, device, machines, rows=1, efficiency=0.4
    )
    assert "zero2" in plain and set(averaged) == {"ddp"}
    copy = averaged["ddp"]["memory_bytes"]["optimizer"] - plain["ddp"]["memory_bytes"]["optimizer"]
    assert copy == 4 * SMALL.parameters()


def test_every_accelerator_has_a_source_and_sane_numbers():
    names = [
        "a100-40gb",
        "a100-80gb",
        "h100-80gb",
        "h100-pcie",
        "h200",
        "l4",
        "l40s",
        "a10g",
        "v100-16gb",
        "v100-32gb",
        "t4",
        "rtx-3090",
        "rtx-4090",
        "mi300x",
    ]
    for name in names:
        device = find_device(name)
        assert (
            re.match(r"(NVIDIA|AMD) .*\b20\d\d\b", device.source) and 8 <= device.memory_gb <= 200
        )
        assert (device.bf16_tflops or device.fp16_tflops) > device.fp32_tflops > 5


@pytest.mark.parametrize(
    ("name", "units", "matrix_ghz", "matrix_flops", "fp32_ghz", "fp32_flops"),
    [
        ("a100-80gb", 108, 1.41, 2048, 1.41, 128),
        ("h100-80gb", 132, 1.83, 4096, 1.98, 256),
        ("h100-pcie", 114, 1.62, 4096, 1.755, 256),
        ("l4", 58, 2.04, 1024, 2.04, 256),
        ("l40s", 142, 2.52, 1024, 2.52, 256),
        ("a10g", 80, 1.71, 512, 1.71, 256),
        ("v100-32gb", 80, 1.53, 1024, 1.53, 128),
        ("t4", 40, 1.59, 1024, 1.59, 128),
        ("rtx-3090", 82, 1.695, 512, 1.695, 256),
        ("rtx-4090", 128, 2.52, 512, 2.52, 256),
        ("mi300x", 304, 2.1, 2048, 2.1, 256),
    ],
)
def test_peak_rates_are_units_times_clock_times_width(
    name, units, matrix_ghz, matrix_flops, fp32_ghz, fp32_flops
):
    """Dense products, accumulated in float32, per multiprocessor and clock: sparsity would be off
    by two.
    """
    device = find_device(name)
    assert device.fp16_tflops == pytest.approx(units * matrix_ghz * matrix_flops / 1000, rel=0.02)
    assert device.fp32_tflops == pytest.approx(units * fp32_ghz * fp32_flops / 1000, rel=0.02)
    assert device.bf16_tflops in (device.fp16_tflops, None)


def test_a_device_of_your_own(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"mine": ROUND._asdict()}))
    assert find_device("mine", str(mine)) == ROUND
    assert find_device("h200", str(mine)).memory_gb == 141


def test_the_picture_says_what_is_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    gpu = ["--gpu", "a100-40gb", "--num_gpus", "4"]
    plan.main(["--config", "gpt2_small", *gpu, "--picture", str(tmp_path / "plan.png")])
    (axes,) = figures[0].axes
    assert axes.get_title() == "Memory to train gpt2 with 0.124B parameters on 4 x a100-40gb"
    legend = axes.get_legend()
    assert legend.get_title().get_text() == "what fills a GPU"
    names = [text.get_text() for text in legend.get_texts()]
    assert "memory of one GPU, 40 GB" in names and "weights" in names
    drawn = {bars.get_label() for bars in axes.containers if any(bars.datavalues)}
    assert {*names} - {"memory of one GPU, 40 GB"} == drawn  # nothing that no bar has


def test_the_picture_and_the_prices(tmp_path, capsys):
    plan.main(
        [
            "--config",
            "gpt2_small",
            "--picture",
            str(tmp_path / "deep" / "plan.png"),
            "--price_per_gpu_hour",
            "2",
            "--price_per_kwh",
            "0.5",
            "--tokens",
            "1e9",
        ]
    )
    assert (tmp_path / "deep" / "plan.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert (
        "1,000,000,000" in shown and "price" in shown and "2,488,796,160" in shown
    )  # 20 x 124,439,808


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("/proc/plan.png", "picture /proc/plan.png: cannot be written ("),
        ("file/plan.png", "picture file/plan.png: file is not a folder that can be written to"),
        ("there.png", "picture there.png: exists; name another"),
        ("plan.txt", "picture plan.txt: expected a name that ends in .png"),
        ("folder", "ends in .png"),
    ],
)
def test_a_picture_that_cannot_be_written_is_found_before_the_table(
    place, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("there.png").write_text("a user's own")
    with pytest.raises(InputError) as error:
        plan.main(["--config", "gpt2_small", "--picture", place])
    assert says in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == "" and Path("there.png").read_text() == "a user's own"


def test_sizes_come_from_the_files_at_hand(tmp_path):
    args = ShapeArguments(num_hidden_layers=2, num_attention_heads=2, hidden_size=32)
    args.max_position_embeddings = 64
    sizes = shape_of(args)
    assert find_shape(None, sizes, "train:5000", None) == Shape(2, 2, 32, 64, 5000)
    assert find_shape("gpt2-xl", sizes, "train:300", None).parameters() == 1_557_611_200
    from datasets import Dataset

    from hfscale.data.tokenizer import train_bpe

    tokenizer = train_bpe(Dataset.from_dict({"text": ["some words"]}), 270)
    tokenizer.save_pretrained(tmp_path)
    assert find_shape(None, sizes, str(tmp_path), None).vocab_size == len(tokenizer)
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0)).save(
        str(tmp_path / "tokenizer.json")
    )
    assert find_shape(None, sizes, str(tmp_path), None).vocab_size == 3
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="its vocabulary is not known"):
        find_shape(None, sizes, str(tmp_path), None)


def test_dense_architectures_are_planned_like_gpt2(capsys):
    words = (
        "--config gpt2_small --architecture llama --vocab_size 1000 --num_hidden_layers 3 "
        "--num_gpus 8 --gpu a100-40gb --per_device_train_batch_size 512"
    )
    out, flags, values = planned(words, capsys)
    config = new_config("llama", vocab_size=1000, num_hidden_layers=3)
    parameters = meta_model(config).num_parameters()
    assert f"{parameters:,}" == re.search(r"^parameters +(\S+)$", out, re.M)[1]
    memory = memory_of(config, parameters)

    def fits(batch_size: int) -> bool:
        step = Step(batch_size, 1024, 8, bf16=True, accumulates=batch_size < 1024)
        return sum(memory(step, Sharding("ddp", 0, 8)).values()) + 1e9 <= 40e9

    [(batch_size, passes)] = re.findall(r"^│ ddp +│ .* │ (\d+) x (\d+) +│", out, re.M)
    assert int(batch_size) * int(passes) == 1024
    assert fits(int(batch_size)) and not fits(2 * int(batch_size))
    assert {"ddp", "fsdp2", "zero2", "zero3"} <= set(re.findall(r"^│ (\w+)", out, re.M))
    assert flags["accelerate"] == "ddp" and values["architecture"] == "llama"


def test_of_experts_parameters_operations_time_and_what_lasts_are_planned(capsys):
    words = "--config gpt2_small --architecture qwen3_moe --vocab_size 1000 --num_gpus 8"
    plan.main([*words.split(), "--num_hidden_layers", "2", "--gpu", "a100-80gb"])
    out = capsys.readouterr().out
    config = new_config("qwen3_moe", vocab_size=1000, num_hidden_layers=2)
    counted = count_model(meta_model(config))
    figures = dict(re.findall(r"^([\w ()-]+?)  +(\S+)$", out, re.M))
    assert figures["parameters"] == f"{counted.parameters:,}"
    assert figures["active parameters"] == f"{counted.active_parameters:,}"
    tokens = 20 * counted.active_parameters
    flops = counted.training_flops(tokens, 1024)
    assert float(figures["FLOPs"]) == pytest.approx(flops, rel=1e-3)
    [hours] = re.findall(r"^hours: (\S+) on 8 GPUs at 40% of the bf16 peak", out, re.M)
    assert float(hours) == pytest.approx(flops / (0.4 * 312e12) / 3600 / 8, rel=1e-3)
    assert f"memory: {16 * counted.parameters / 1e9:,.2f} GB of weights" in out
    assert "activations and logits of qwen3_moe are not counted" in out


def test_muon_is_planned_where_it_runs(capsys):
    out, flags, _ = planned("--config gpt2_small --optimizer muon --num_gpus 8", capsys)
    assert "ddp" in out and "fsdp2" in out and "zero" not in out
    assert flags["accelerate"] == "ddp"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--architecture lama", "architecture lama: neither a file nor one of gpt2"),
        ("--architecture llama --num_attention_heads 7", "(768) is not a multiple of the number"),
        ("--architecture llama --max_length 9999", "max_length 9999 is beyond the model's max_po"),
        ("--architecture qwen3_moe --picture a.png", "picture: shows memory, which is not planned"),
        (
            "--config distill/tiny_cpu",
            "a config of distill; plan takes those of pretrain, finetune,",
        ),
        ("--gpu h1000", "--gpu h1000: not known; known: a100-40gb"),
        ("--num_gpus 0", "--num_gpus: got '0', expected 1 to 10000000"),
        ("--efficiency 1.5", "--efficiency: got '1.5', expected 0.001 to 1"),
        ("--gpu t4 --bf16", "t4 has no bf16 matrix units; add --bf16 false"),
        (
            "--tokenizer char",
            "tokenizer char: its vocabulary is not known before it is there; give --vocab_size",
        ),
        (
            "--model nowhere",
            "--model nowhere: not a folder of a saved GPT-2; known without files: gpt2, "
            "gpt2-medium",
        ),
        (
            "--config gpt2_xl --gpu t4 --num_gpus 1 --bf16 false --activation_checkpointing false "
            "--num_hidden_layers 500",
            "nothing fits on 1 x t4",
        ),
        ("--accelerators missing.yaml", "--accelerators missing.yaml: "),
        ("--gpu mine --accelerators mine.yaml", "mine: not of the form of accelerators.yaml"),
        (
            "--accelerators list.yaml",
            "--accelerators list.yaml: a100-80gb: not of the form of accelerators.yaml",
        ),
        ("--hidden_size 1000000 --num_attention_heads 1", "nothing fits on 1 x a100-80gb"),
        ("--gpu low --accelerators mine.yaml", "low: memory_gb: expected a number above 0"),
        ("--num_gpu 2", "unknown name --num_gpu; did you mean num_gpus?"),
        (
            "--max_length 99999",
            "max_length 99999 is beyond the model's max_position_embeddings 1024",
        ),
        (
            "--per_device_train_batch_size 0",
            "per_device_train_batch_size: got 0, expected at least 1",
        ),
        (
            "--per_device_eval_batch_size -1",
            "per_device_eval_batch_size: got -1, expected at least 1",
        ),
        (
            "--num_gpus 16 --num_machines 3",
            "num_gpus 16: cannot be the same number on each of 3 machines",
        ),
        ("--num_machines 0", "--num_machines: got '0', expected at least 1"),
        ("--network_gbit_s -1", "--network_gbit_s: got '-1', expected 0.001 to"),
        ("--tokens inf", "--tokens: got 'inf', expected 1 to"),
        (
            "--config gpt2_small --num_gpus 1000 --tokens_per_step 524288",
            "tokens_per_step: 524,288 tokens are fewer than one row of 1,024",
        ),
        ("--num_attention_heads 7", "hidden_size 768 is not a multiple of num_attention_heads 7"),
        ("--num_hidden_layers 0", "--num_hidden_layers: got '0'"),
        ("--model_config resid_pdrop=1.5", "resid_pdrop: got 1.5, expected a number from 0"),
        ("--bf16 --fp16", "bf16, fp16: both are given"),
        ("--optim adafactor", "optim: got 'adafactor'; plan knows what adamw_torch"),
        ("--torch_compile true", "torch_compile: got True, which plan does not count"),
        ("--use_cpu true", "use_cpu: got True, which plan does not count"),
        (
            '--activation_checkpointing_kwargs {"every_n_layers":2}',
            "activation_checkpointing_kwargs: got",
        ),
        ("--model gpt2 --peft_type VERA", "peft_type: got 'VERA', which plan does not count"),
        ("--model gpt2 --lora_r 4 --use_dora", "use_dora: got True, which plan does not count"),
        (
            "--model gpt2 --lora_r 4 --lora_target_modules q_proj",
            "lora_target_modules: q_proj ends the name of no linear layer",
        ),
        (
            "--model gpt2 --lora_r 4 --freeze_layers 12",
            "freeze_layers: got 12, the model has 12 blocks",
        ),
        ("--model gpt2 --freeze_layers -1", "--freeze_layers: got '-1'"),
        ("--model gpt2 --load_in_4bit", "load_in_4bit: works with --lora_r"),
        ("--model gpt2 --lora_target_modules c_fc", "lora_target_modules: works with --lora_r"),
        (
            "--recipe finetune --model gpt2 --num_hidden_layers 3",
            "unknown name --num_hidden_layers",
        ),
        ("--model gpt2 --lora_r 4 --lora_dropout 1", "--lora_dropout: got '1'"),
        (
            "--recipe finetune_task --lora_r 4",
            "lora_r: works on a checkpoint; name it with --model",
        ),
        (
            "--recipe score",
            "--recipe: got 'score', expected one of pretrain, finetune, finetune_task",
        ),
        (
            "--config nowhere",
            "--config nowhere: no such file; shipped with pretrain: babylm_strict_small",
        ),
        ("--model gpt2 --lora_rr 4", "unknown name --lora_rr; did you mean lora_r?"),
        ("--config mine.yaml", "mine.yaml:1: unknown name mine"),
        ("--config gpu.yaml", "gpu.yaml:2: unknown name gpu"),
    ],
)
def test_bad_input_is_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    low = ROUND._asdict() | {"memory_gb": -1}
    Path("mine.yaml").write_text(json.dumps({"mine": {"memory_gb": 3}, "low": low}))
    Path("list.yaml").write_text("[]")
    Path("gpu.yaml").write_text("model: gpt2\ngpu: l4")
    with pytest.raises(InputError) as error:
        plan.main(words.split())
    assert says in str(error.value) and "\n" not in str(error.value)
