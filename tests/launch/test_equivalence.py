"""One training, launched in every way, is the same training: equal loss curves, and checkpoints
that go on or say no.

Real processes over gloo on the CPU (forks of one that has imported everything), float32, no dropout. FSDP2 runs through fsdp_on_cpu.py
(accelerate itself would not shard there). Each way is launched with all weights, with adapters, and
from checkpoints of half-way, its own and others', also with another number of processes.
"""

import functools
import json
import math
import os
import random
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
# config: processes, accelerate's type, the class that wraps the model, where parameters and AdamW's
# moments lie.
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
WAYS = [
    config for config in EXPECTED if config not in ("single_gpu", "ddp")
]  # on a CPU these are two of the others
STEPS = 30
# Of the checkpoints written by two processes: who goes on, and with how many. Each engine's files
# are read and written at least once, as they are and rewritten (docs/launching.md has the whole
# table).
RESUMES = [
    ("cpu_2proc", "cpu", 1),
    ("cpu_2proc", "cpu_2proc", 4),
    ("fsdp2", "fsdp2", 4),
    ("zero2", "zero2", 2),
    ("zero2", "zero2", 1),
    ("zero3", "zero3", 4),
    ("zero1", "fsdp2", 2),
    ("fsdp2", "zero3", 2),
    ("cpu_2proc", "zero1", 2),
    ("zero3", "cpu_2proc", 2),
]
# Of other architectures: who writes the checkpoint, and who goes on; what was run by hand is in
# docs/architectures.md. One has grouped heads, one experts whose files have other names than the
# model and whose router loss is a mean over the ranks, one no weights without decay.
ARCHITECTURES = [
    ("llama", "fsdp2", None),
    ("qwen3_moe", "cpu_2proc", "zero3"),
    ("nanochat", "zero2", "cpu_2proc"),
]
EXPERTS = ["num_experts=4", "num_experts_per_tok=2", "router_aux_loss_coef=0.1"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="the extra hfscale[deepspeed] is missing"
    ),
]


def start(
    run_warm, config: str, script: str, folder: Path, *words: str, processes: int | None = None
):
    processes = processes or EXPECTED[config][0]
    batch = str(8 // processes)
    return run_warm(
        [
            sys.executable,
            "-m",
            "hfscale.cli",
            f"tests/launched_{script}.py",
            "--accelerate",
            config,
            f"--num_processes={processes}",
            "--use_cpu",
            "--bf16",
            "false",
            "--report_to",
            "none",
            "--disable_tqdm",
            "--output_dir",
            str(folder),
            "--sample_by",
            "line",
            "--per_device_train_batch_size",
            batch,
            "--per_device_eval_batch_size",
            batch,
            "--learning_rate",
            "3e-3",
            "--logging_steps",
            "1",
            "--lr_scheduler_type",
            "linear",
            "--weight_decay",
            "0.1",
            "--eval_strategy",
            "no",
            *words,
        ],
        env=ENV | {"RANK_NOTES": str(folder.parent)},
        timeout=400,
    )


def logged(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log[name] for log in history if name in log]


def losses(folder: Path) -> list[float]:
    return logged(folder, "loss")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    words = [
        "the",
        "a",
        "cat",
        "dog",
        "bird",
        "sat",
        "ran",
        "on",
        "under",
        "mat",
        "tree",
        "and",
        "then",
        "saw",
        "one",
    ]
    draw, path = random.Random(0), tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "\n".join(" ".join(draw.choices(words, k=draw.randint(20, 40))) for _ in range(120))
    )
    return str(path)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, text, run_warm):
    """pretrained(config): the folder of 30 steps with a checkpoint after 15, all weights, launched
    once per config.
    """
    shape = [
        "--tokenizer",
        "char",
        "--num_hidden_layers",
        "2",
        "--num_attention_heads",
        "2",
        "--hidden_size",
        "192",
        "--max_position_embeddings",
        "32",
    ]

    @functools.cache
    def run(config: str) -> Path:
        folder = tmp_path_factory.mktemp(config) / "run"
        result = start(
            run_warm,
            config,
            "pretrain",
            folder,
            "--source",
            text,
            *shape,
            "--max_steps",
            str(STEPS),
            "--save_steps",
            str(STEPS // 2),
            "--save_total_limit",
            "2",
        )
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
    assert {(rank["distributed_type"], rank["wrapper"]) for rank in ranks} == {
        (distributed_type, wrapper)
    }
    assert {rank["steps"] for rank in ranks} == {STEPS}

    whole = ranks[0]["parameters"]
    share = {"whole": [whole] * processes, "shards": [whole // 2] * processes}
    assert [rank["local_moments"] for rank in ranks] == pytest.approx(share[moments], rel=0.01)
    if (
        parameters == "gathered when used"
    ):  # between uses only what is too small to be worth sharding stays
        assert all(0 < rank["local_parameters"] < 0.2 * whole for rank in ranks)
    else:
        assert [rank["local_parameters"] for rank in ranks] == pytest.approx(
            share[parameters], rel=0.01
        )
    assert {rank["dtensors"] for rank in ranks} == {ranks[0]["tensors"] if config == "fsdp2" else 0}
    stage = int(config[-1]) if "zero" in config else None
    assert {rank["zero_stage"] for rank in ranks} == {stage}
    if stage in (1, 2):
        assert {rank["partition_gradients"] for rank in ranks} == {stage == 2}


@pytest.mark.parametrize("config", EXPECTED)
def test_same_batches_give_the_same_model(config, pretrained):
    """One process with batches of 8 and two with 4 each: the losses, the saved weights and the
    record agree.
    """
    from safetensors.numpy import load_file

    reference, folder = pretrained("cpu"), pretrained(config)
    expected, record = (json.loads((path / "run.json").read_text()) for path in (reference, folder))
    for name in ("eval_loss", "eval_perplexity", "eval_bits_per_byte"):
        assert record["metrics"][name] == pytest.approx(expected["metrics"][name], abs=1e-4)
    assert record["metrics"]["eval_loss"] < 0.8 * math.log(
        20
    )  # it has learned: untrained, near log(vocabulary)
    assert record["metrics"]["eval_tokens"] == expected["metrics"]["eval_tokens"]
    for name in (
        "initial_fingerprint",
        "fingerprint",
    ):  # of files, and of weights that one rank has
        del record["model"][name], expected["model"][name]
    assert record["model"] == expected["model"]
    # All ranks together were given the same rows in each step.
    assert logged(folder, "batches") == logged(reference, "batches")
    assert len({*logged(folder, "batches")}) == STEPS
    assert record["train"]["batches_fingerprint"] == expected["train"]["batches_fingerprint"]
    assert record["train"]["tokens"] == expected["train"]["tokens"]
    assert record["hardware"]["world_size"] == EXPECTED[config][0]
    weights, same = (
        load_file(folder / "model.safetensors"),
        load_file(reference / "model.safetensors"),
    )
    tied = weights.pop(
        "lm_head.weight", weights["transformer.wte.weight"]
    )  # FSDP and ZeRO write it twice
    assert (tied == weights["transformer.wte.weight"]).all()
    assert weights.keys() == same.keys()
    assert (
        max(abs(weights[name] - same[name]).max() for name in same) < 5e-4
    )  # a sixth of the first step


@pytest.mark.parametrize("config", EXPECTED)
def test_a_checkpoint_is_a_whole_model(config, pretrained):
    from transformers import AutoModelForCausalLM

    half = f"checkpoint-{STEPS // 2}"
    same, model = (
        AutoModelForCausalLM.from_pretrained(pretrained(way) / half) for way in ("cpu", config)
    )
    expected, end = (
        same.state_dict(),
        AutoModelForCausalLM.from_pretrained(pretrained("cpu")).state_dict(),
    )
    assert max((w - expected[name]).abs().max() for name, w in model.state_dict().items()) < 5e-4
    assert (
        max((end[name] - w).abs().max() for name, w in expected.items()) > 5e-3
    )  # the end is another model


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, text, pretrained, run_warm):
    """adapted(config): LoRA on the saved model of the way before this one: each also reads
    another's weights.
    """

    @functools.cache
    def run(config: str) -> Path:
        base = pretrained(WAYS[WAYS.index(config) - 1])
        folder = tmp_path_factory.mktemp(f"lora-{config}") / "run"
        result = start(
            run_warm,
            config,
            "finetune",
            folder,
            "--source",
            text,
            "--model",
            str(base),
            "--lora_r",
            "4",
            "--max_length",
            "32",
            "--max_steps",
            str(STEPS),
            "--save_strategy",
            "no",
        )
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


@pytest.mark.parametrize(("before", "now", "processes"), RESUMES)
def test_a_checkpoint_goes_on(before, now, processes, pretrained, text, tmp_path, run_warm):
    """As if nothing had happened: the curve of one process that never stopped, in other hands from
    step 16 on.
    """
    folder = half_way(tmp_path / "run", pretrained(before))
    result = start(
        run_warm,
        now,
        "pretrain",
        folder,
        "--source",
        text,
        "--tokenizer",
        "char",
        "--num_hidden_layers",
        "2",
        "--num_attention_heads",
        "2",
        "--hidden_size",
        "192",
        "--max_position_embeddings",
        "32",
        "--max_steps",
        str(STEPS),
        "--save_strategy",
        "no",
        "--resume",
        "auto",
        processes=processes,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert losses(folder) == pytest.approx(losses(pretrained("cpu")), abs=1e-4)
    assert json.loads((folder / "run.json").read_text())["hardware"]["world_size"] == processes
    assert not (folder / "resuming").exists()


def test_rows_that_each_epoch_packs_anew_are_the_same_on_two_processes(tmp_path, text, run_warm):
    """... also from a checkpoint of one process on, which lies within the second epoch."""
    lines = Path(text).read_text().splitlines()[:34]
    (tmp_path / "text.txt").write_text("\n".join((line * 2)[:99] for line in lines))
    words = [
        *("--source", str(tmp_path / "text.txt"), "--repack_each_epoch", "--num_train_epochs", "3"),
        *("--tokenizer", "char", "--num_hidden_layers", "1", "--num_attention_heads", "2"),
        *("--hidden_size", "32", "--max_position_embeddings", "32"),
        *("--save_steps", str(STEPS // 2)),
    ]
    whole, shared, continued = (tmp_path / name / "run" for name in ("one", "two", "on"))
    resume = ["--resume", "auto", "--dataloader_num_workers", "1"]
    for folder, config, more in (
        (whole, "cpu", []),
        (shared, "cpu_2proc", []),
        (continued, "cpu_2proc", resume),
    ):
        if folder == continued:
            half_way(continued, whole)
        result = start(run_warm, config, "pretrain", folder, *words, *more)
        assert result.returncode == 0, result.stderr[-3000:]
    tokens = json.loads((whole / "run.json").read_text())["data"]["tokens"]["train"]
    # Steps of whole batches: accelerate fills the last of an epoch up on several processes.
    num_rows = math.ceil(tokens / 31)
    assert num_rows % 8 == 0 and num_rows / 8 < STEPS // 2 < 2 * num_rows / 8
    assert losses(shared) == pytest.approx(losses(whole), abs=1e-4)
    assert losses(continued) == pytest.approx(losses(whole), abs=1e-4)


def test_the_manifest_says_who_wrote_it(pretrained):
    engines = {
        way: json.loads((pretrained(way) / f"checkpoint-{STEPS}" / "manifest.json").read_text())[
            "config"
        ]["optimizer_state"]
        for way in WAYS
    }
    assert engines == {
        "cpu": "one process or DDP",
        "cpu_2proc": "one process or DDP",
        "fsdp2": "FSDP",
        **{f"zero{n}": f"ZeRO-{n} on 2 processes" for n in (1, 2, 3)},
    }


@pytest.mark.parametrize(("architecture", "engine", "then"), ARCHITECTURES)
def test_other_architectures_follow_one_process(
    architecture, engine, then, text, tmp_path, run_warm
):
    """With the same micro-batches, in each of which experts are balanced."""
    from safetensors.numpy import load_file

    def run(folder: Path, config: str, *words: str) -> Path:
        result = start(
            run_warm,
            config,
            "pretrain",
            folder,
            *("--source", text, "--tokenizer", "char", "--architecture", architecture),
            *("--num_hidden_layers", "2", "--num_attention_heads", "4", "--hidden_size", "64"),
            *("--num_key_value_heads", "2", "--max_position_embeddings", "32"),
            *(["--model_config", *EXPERTS] if architecture == "qwen3_moe" else []),
            *("--per_device_train_batch_size", "4", "--max_steps", "6"),
            *("--gradient_accumulation_steps", str(2 // EXPECTED[config][0])),
            *words,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return folder

    expected = run(tmp_path / "one" / "run", "cpu", "--save_strategy", "no")
    saving = ["--save_steps", "3"] if then else ["--save_strategy", "no"]
    folder = run(tmp_path / "two" / "run", engine, *saving)
    if then:
        half = tmp_path / "then" / "run"
        shutil.copytree(folder / "checkpoint-3", half / "checkpoint-3")
        folder = run(half, then, "--save_strategy", "no", "--resume", "auto")
    for name in ("loss", "router_loss"):
        assert logged(folder, name) == pytest.approx(logged(expected, name), abs=1e-4)
    assert len(logged(folder, "router_loss")) == (6 if architecture == "qwen3_moe" else 0)
    weights, same = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert weights.keys() == same.keys()
    assert max(abs(weights[name] - same[name]).max() for name in same) < 1e-4
