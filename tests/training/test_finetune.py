"""recipes/finetune.py end to end: what it records, what other recipes can load, and equal runs in
other settings.
"""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hfscale.models import load_model
from hfscale.process import InputError
from recipes import finetune, generate, pretrain, score

ROOT = Path(__file__).parents[2]
QUIET = [
    "--disable_tqdm",
    "--report_to",
    "none",
    "--save_strategy",
    "no",
    "--bf16",
    "false",
    "--use_cpu",
]
TUNE = [
    *QUIET,
    *[
        "--max_steps",
        "8",
        "--per_device_train_batch_size",
        "4",
        "--learning_rate",
        "1e-2",
        "--sample_by",
        "line",
    ],
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a new domain, an old one, and a model of the old one."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "old.txt").write_text("\n".join(f"line {i} counts to {i * 3}" for i in range(80)))
    (folder / "new.txt").write_text(
        "\n".join(f"{i}: red, green and {'blue' * (i % 3)}" for i in range(80))
    )
    pretrain.main(
        [
            "--source",
            str(folder / "old.txt"),
            "--sample_by",
            "line",
            "--tokenizer",
            "train:300",
            "--num_hidden_layers",
            "2",
            "--num_attention_heads",
            "2",
            "--hidden_size",
            "32",
            "--max_position_embeddings",
            "32",
            "--max_steps",
            "30",
            "--learning_rate",
            "1e-2",
            "--output_dir",
            str(folder / "base"),
            *QUIET,
        ]
    )
    return folder


def tune(place: Path, name: str, *words: str) -> Path:
    finetune.main(
        [
            "--model",
            str(place / "base"),
            "--source",
            str(place / "new.txt"),
            "--output_dir",
            str(place / name),
            *TUNE,
            *words,
        ]
    )
    return place / name


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def lora(place) -> Path:
    return tune(place, "lora", "--lora_r", "4", "--add_tokens", "<|im_start|>")


def test_run_says_what_was_gained_and_forgotten(place):
    record = record_of(
        tune(place, "gained", "--lora_r", "4", "--forget_source", str(place / "old.txt"))
    )
    metrics = record["metrics"]
    assert metrics["eval_loss"] < metrics["before_eval_loss"] - 0.5
    assert metrics["eval_forget_loss"] > metrics["before_eval_forget_loss"]
    assert metrics["before_eval_tokens"] == metrics["eval_tokens"]
    old = record_of(place / "base")[
        "metrics"
    ]  # split as pretraining did: the very text that it held out
    assert metrics["before_eval_forget_loss"] == pytest.approx(old["eval_loss"], abs=1e-5)
    assert metrics["eval_forget_tokens"] == old["eval_tokens"]
    model, layers = record["model"], 2 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))
    assert (model["architecture"], model["adapter"], model["trained_parameters"]) == (
        "GPT2LMHeadModel",
        "LORA",
        4 * layers,
    )


def test_every_recipe_takes_the_adapter(lora, tmp_path, capsys):
    assert not (lora / "model.safetensors").exists()
    score.main(["--model", str(lora), "--output_dir", str(tmp_path)])  # on what the run held out
    [found] = json.loads((tmp_path / "scores.json").read_text())["systems"]
    assert found["metrics"]["eval_documents"] == record_of(lora)["data"]["documents"]["validation"]
    capsys.readouterr()
    generate.main(["--model", str(lora), "--prompts", "3: red", "--max_new_tokens", "4", "--json"])
    assert len(json.loads(capsys.readouterr().out)["completions"]) == 1


def test_an_adapter_knows_the_weights_that_it_was_trained_on(place, lora, tmp_path):
    """A base model trained anew in the same folder has the same shape, and would give nonsense
    without a word.
    """
    shutil.copytree(place / "base", tmp_path / "base")
    shutil.copytree(lora, tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(place / "base"), str(tmp_path / "base")))
    (tmp_path / "lora" / "manifest.json").unlink()  # it was changed by hand
    load_model(str(tmp_path / "lora"))  # the same weights elsewhere
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["transformer.ln_f.bias"] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError,
        match="its base model .*/base has other weights than those that it was trained on",
    ):
        load_model(str(tmp_path / "lora"))


def test_merge_writes_a_plain_model(place, lora):
    merged = tune(place, "merged", "--lora_r", "4", "--add_tokens", "<|im_start|>", "--merge")
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        plain, adapted = (load_model(str(folder)).eval() for folder in (merged, lora))
        assert isinstance(adapted, PeftModel) and not isinstance(plain, PeftModel)
        assert (plain(ids).logits - adapted(ids).logits).abs().max() < 1e-4
    assert not list(merged.glob("adapter*"))
    losses = [record_of(folder)["metrics"]["eval_loss"] for folder in (merged, lora)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_whole_model_with_frozen_layers(place):
    folder = tune(place, "frozen", "--freeze_layers", "1")
    before, after = (load_file(f / "model.safetensors") for f in (place / "base", folder))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {
        n
        for n in before
        if n.startswith(("transformer.wte", "transformer.wpe", "transformer.h.0."))
    }


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_accumulated_gradients_give_the_same_run(place, kind):
    """Rows of unequal numbers of targets: four at once, or one by one."""
    how = [
        "--packing",
        "bfd_split",
        "--max_steps",
        "3",
        *(["--lora_r", "4"] if kind == "lora" else []),
    ]
    whole = tune(place, f"{kind}-whole", *how)
    parts = tune(
        place,
        f"{kind}-parts",
        *how,
        "--per_device_train_batch_size",
        "1",
        "--gradient_accumulation_steps",
        "4",
    )
    losses = [record_of(folder)["metrics"]["eval_loss"] for folder in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
def test_resumed_adapter_run_is_the_same(place):
    whole = tune(place, "straight", "--lora_r", "4", "--add_tokens", "new")
    words = [
        "--lora_r",
        "4",
        "--add_tokens",
        "new",
        "--save_strategy",
        "steps",
        "--save_steps",
        "4",
    ]
    part = tune(place, "resumed", *words)
    expected = load_file(whole / "adapter_model.safetensors")
    (part / "adapter_model.safetensors").unlink()
    shutil.rmtree(part / "checkpoint-8")
    finetune.main(
        [
            "--model",
            str(place / "base"),
            "--source",
            str(place / "new.txt"),
            "--output_dir",
            str(part),
            *TUNE,
            *words,
            "--resume",
            "auto",
        ]
    )
    found = load_file(part / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "before_eval_loss" in record_of(part)["metrics"]


def test_another_adapter_does_not_continue_a_run(place):
    words = ["--lora_r", "4", "--save_strategy", "steps", "--save_steps", "4"]
    tune(place, "settled", *words)
    with pytest.raises(InputError, match=r"other settings \(lora_alpha was 32(.0)?, is 8"):
        tune(place, "settled", *words, "--lora_alpha", "8", "--resume", "auto")


def test_recomputed_activations_change_nothing(place):
    plain = tune(place, "stored", "--lora_r", "4")
    again = tune(place, "recomputed", "--lora_r", "4", "--activation_checkpointing")
    losses = [record_of(folder)["metrics"]["eval_loss"] for folder in (plain, again)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_dry_run_writes_nothing(place, capsys):
    folder = tune(place, "dry", "--lora_r", "4", "--dry_run")
    assert not folder.exists() and "dry run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--model", "missing"],
            "model missing: cannot be loaded|tokenizer missing: no such folder",
        ),
        (
            ["--lora_r", "4", "--lora_target_modules", "q_proj"],
            "q_proj ends the name of no linear layer",
        ),
        (["--max_length", "0"], "--max_length: got '0'"),
        (["--max_length", "33"], "max_length 33 is beyond the model's context of 32"),
        (["--forget_source", "missing.txt"], "source missing.txt: no such file"),
        (["--load_in_4bit"], "load_in_4bit: works with --lora_r or --peft_type"),
    ],
)
def test_bad_input_leaves_nothing(place, words, says):
    with pytest.raises(InputError, match=says) as error:
        tune(place, "refused", *words)
    assert "\n" not in str(error.value) and not (place / "refused").exists()


def test_new_tokens_of_an_adapter_are_refused_where_weights_are_sharded(place, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        InputError, match="add_tokens: an adapter cannot hold new tokens where weights are sharded"
    ):
        tune(place, "sharded", "--lora_r", "4", "--add_tokens", "new")


# ---- two processes

LAUNCHES = ["zero3", "fsdp2"]


@pytest.mark.slow
@pytest.mark.parametrize("config", LAUNCHES)
def test_adapters_of_two_processes_load(config, place, run_warm):
    """Sharded base model, one adapter: it loads, gives the loss that the run measured, and that of
    one process.
    """
    if config == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("the extra hfscale[deepspeed] is missing")
    folder = place / config
    words = [
        "--model",
        str(place / "base"),
        "--source",
        str(place / "new.txt"),
        "--output_dir",
        str(folder),
        *TUNE,
        "--per_device_train_batch_size",
        "2",
        "--lora_r",
        "4",
    ]
    env = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    result = run_warm(
        [
            sys.executable,
            "-m",
            "hfscale.cli",
            "tests/launched_finetune.py",
            "--accelerate",
            config,
            "--num_processes",
            "2",
            *words,
        ],
        env=env,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    record = record_of(folder)
    assert record["hardware"]["world_size"] == 2
    assert record["hardware"]["distributed_type"] == ("DEEPSPEED" if config == "zero3" else "FSDP")
    one = record_of(tune(place, f"{config}-one", "--lora_r", "4"))
    assert record["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], abs=2e-4)
    saved, alone = (
        load_file(f / "adapter_model.safetensors") for f in (folder, place / f"{config}-one")
    )
    assert saved.keys() == alone.keys()
    assert max((saved[name] - alone[name]).abs().max() for name in saved) < 2e-3
    assert isinstance(load_model(str(folder)), PeftModel)
