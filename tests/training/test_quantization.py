"""4-bit weights below an adapter, on a CPU: what is stored, computed, trained, kept and refused.

Equalities are against the same model in float32 whose linear weights were sent through 4 bits and
back.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from hfscale.adapters import load_for_training, merge_saved_adapter
from hfscale.arguments import AdapterArguments
from hfscale.models import count_parameters, count_trained, load_model
from hfscale.planning.flops import Shape
from hfscale.planning.memory import Sharding, Step, step_memory_bytes
from hfscale.process import InputError
from recipes import finetune, generate, pretrain, score
from tests.test_adapters import METHODS, SHAPE, save_base
from tests.training.test_finetune import QUIET, TUNE

bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="the extra hfscale[quantization] is missing"
)
ROOT = Path(__file__).parents[2]
IDS = torch.arange(3, 63).reshape(4, 15)
LARGEST_GAP = (
    0.152  # half the widest step of NF4's 16 values, as a share of a block's largest weight
)
NF4_ERROR = 0.092  # root mean square for normal weights in blocks of 64, as a share of their spread


def layers_of(model) -> dict[str, nn.Module]:
    return {
        name.removeprefix("base_model.model.").removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }


def unpacked(layer) -> torch.Tensor:
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """Biases that are not zero, so that a lost or rounded one shows."""
    folder = save_base(tmp_path_factory.mktemp("base"), n_embd=64)
    model = GPT2LMHeadModel.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rounded(base, tmp_path_factory) -> str:
    """The base in float32 with the weights that 4 bits keep."""
    folder = tmp_path_factory.mktemp("rounded")
    four, plain = four_bits(base), load_model(base)
    for name, layer in layers_of(four).items():
        plain.get_submodule(name).weight.data = unpacked(layer).T.contiguous()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def four_bits(base: str, **values) -> PeftModel:
    method = values if "peft_type" in values else {"lora_r": 4} | values
    torch.manual_seed(5)
    return load_for_training(
        AdapterArguments(model=base, load_in_4bit=True, **method),
        AutoTokenizer.from_pretrained(base),
    )


def logits_of(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids, use_cache=False).logits


def train(model, steps: int = 4) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(steps):
        losses.append(model.train()(IDS, labels=IDS, use_cache=False).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return [loss.item() for loss in losses]


# ---- what is stored and computed


def test_linear_layers_alone_are_in_four_bits_and_the_right_way_round(base):
    model, plain = four_bits(base), load_model(base)
    assert layers_of(model).keys() == {
        f"transformer.h.{i}.{layer}"
        for i in (0, 1)
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    for name, layer in layers_of(model).items():
        weight = plain.get_submodule(name).weight.detach().T
        error, largest = (
            (unpacked(layer) - weight).reshape(-1, 64),
            weight.reshape(-1, 64).abs().amax(1),
        )
        assert (
            error.abs().amax(1) <= LARGEST_GAP * largest + 0.02 * largest.max()
        ).all()  # scales are rounded too
        assert error.square().mean().sqrt() / weight.std() == pytest.approx(NF4_ERROR, rel=0.05)
        assert torch.equal(layer.bias, plain.get_submodule(name).bias)
    whole = model.get_base_model()
    assert whole.lm_head.weight.data_ptr() == whole.transformer.wte.weight.data_ptr()
    names = ["wte.weight", "wpe.weight", "h.0.ln_1.weight", "ln_f.bias"]
    assert all(
        torch.equal(whole.transformer.get_parameter(n), plain.transformer.get_parameter(n))
        for n in names
    )


def test_logits_are_those_of_the_rounded_weights(base, rounded):
    plain, four = logits_of(load_model(base)), logits_of(four_bits(base))
    assert torch.equal(four, logits_of(load_model(rounded)))
    assert 0.01 < (four - plain).square().mean().sqrt() / plain.std() < 0.15


def test_parameters_are_counted_as_of_the_plain_model(base):
    model = four_bits(base)
    added = count_trained(model)
    assert added == 2 * 4 * (4 + 2 + 5 + 5) * 64
    assert count_parameters(model) == {
        name: n + added for name, n in count_parameters(load_model(base)).items()
    }


# ---- training


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"GRALORA"}))
def test_training_is_that_of_the_adapter_on_the_rounded_weights(method, base, rounded, tmp_path):
    model = four_bits(base, **METHODS[method])
    frozen = {
        name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad
    }
    torch.manual_seed(5)
    reference = load_for_training(AdapterArguments(model=rounded, **METHODS[method]), None)
    losses = train(model)
    assert losses == pytest.approx(train(reference), abs=1e-5)
    assert losses[-1] < losses[0]
    assert all(
        torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen
    )
    expected = logits_of(model)
    assert (expected - logits_of(reference)).abs().max() < 1e-4
    model.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace(base, rounded))
    assert (logits_of(load_model(str(tmp_path))) - expected).abs().max() < 1e-5


def test_every_layer_learns_after_an_evaluation(base, monkeypatch):
    """Where a CPU multiplies bf16 (seen from bitsandbytes' flag), an evaluation would pack the
    weights anew, and training would go on with other numbers.
    """
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    fresh, evaluated = four_bits(base), four_bits(base)
    logits_of(evaluated)
    assert train(evaluated) == train(fresh)
    moved = [
        p for name, p in evaluated.named_parameters() if "lora_B" in name and p.abs().max() > 0
    ]
    assert len(moved) == 8


def test_bf16_run_computes_in_bf16_and_keeps_its_frozen_weights(base):
    model = four_bits(base)
    before, frozen = logits_of(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        half = logits_of(model)
    assert half.dtype == torch.bfloat16
    assert 0 < (half - before).abs().max() < 0.02
    assert all(
        torch.equal(p, frozen[name]) and p.dtype == frozen[name].dtype
        for name, p in model.named_parameters()
    )


# ---- kept


def test_saved_on_the_plain_model_merged_and_with_new_tokens(base, tmp_path):
    model, tokenizer = (
        four_bits(base, add_tokens=["<|im_start|>"]),
        AutoTokenizer.from_pretrained(base),
    )
    ids = torch.cat([IDS, torch.full((4, 1), 270)], dim=1)
    train(model)
    expected = logits_of(model, ids)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    on_plain = load_model(str(tmp_path))
    assert isinstance(on_plain, PeftModel) and not layers_of(on_plain)
    found = logits_of(on_plain, ids)
    assert (
        0 < (found - expected).square().mean().sqrt() / expected.std() < 0.15
    )  # what 4 bits lose, no more
    merge_saved_adapter(str(tmp_path))
    merged = load_model(str(tmp_path))
    assert type(merged) is GPT2LMHeadModel
    assert (logits_of(merged, ids) - found).abs().max() < 1e-4


# ---- the recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qlora")
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
            "64",
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


def same_model(record: dict) -> dict:
    """What a record says of the model, but for its numbers: quantized ones are others."""
    of_numbers = ("initial_fingerprint", "fingerprint")
    return {key: value for key, value in record["model"].items() if key not in of_numbers}


def tune(place: Path, name: str, *words: str) -> dict:
    finetune.main(
        [
            "--model",
            str(place / "base"),
            "--source",
            str(place / "new.txt"),
            "--output_dir",
            str(place / name),
            *TUNE,
            "--lora_r",
            "4",
            *words,
        ]
    )
    return json.loads((place / name / "run.json").read_text())


@pytest.mark.slow
def test_recipe_trains_records_resumes_and_its_folder_is_taken(place, tmp_path, capsys):
    plain = tune(place, "lora")
    words = ["--load_in_4bit", "--save_strategy", "steps", "--save_steps", "4"]
    record = tune(place, "qlora", *words)
    metrics = record["metrics"]
    assert metrics["eval_loss"] < metrics["before_eval_loss"] - 0.5
    assert 0 < abs(metrics["eval_loss"] - plain["metrics"]["eval_loss"]) < 0.1
    assert same_model(record) == same_model(plain)
    folder = place / "qlora"
    before = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "checkpoint-8" / "adapter_model.safetensors").unlink()
    resumed = tune(place, "qlora", *words, "--resume", "auto")
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert resumed["metrics"]["eval_loss"] == metrics["eval_loss"]
    score.main(["--model", str(folder), "--output_dir", str(tmp_path)])
    [system] = json.loads((tmp_path / "scores.json").read_text())["systems"]
    assert system["metrics"]["eval_documents"] == record["data"]["documents"]["validation"]
    capsys.readouterr()
    generate.main(
        ["--model", str(folder), "--prompts", "3: red", "--max_new_tokens", "4", "--json"]
    )
    assert len(json.loads(capsys.readouterr().out)["completions"]) == 1


def test_recomputed_activations_change_nothing(place):
    losses = [
        tune(place, name, "--load_in_4bit", *words)["metrics"]["eval_loss"]
        for name, words in (("stored", []), ("recomputed", ["--activation_checkpointing"]))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# ---- refused


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"n_embd": 32},
            "load_in_4bit: transformer.h.0.attn.c_attn has 32 inputs; on a CPU .* multiples of 64 "
            "alone",
        ),
        (
            {"n_embd": 64, "peft_type": "GRALORA"},
            "load_in_4bit: GRALORA cannot be trained on 4-bit layers",
        ),
    ],
    ids=["width", "method"],
)
def test_what_does_not_work(values, says, tmp_path):
    base = save_base(tmp_path, n_embd=values.pop("n_embd"))
    with pytest.raises(InputError, match=says) as error:
        four_bits(base, **values)
    assert "\n" not in str(error.value)


def test_sharded_weights(base, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        InputError, match="load_in_4bit: 4-bit weights are not sharded; take zero2 or ddp"
    ):
        four_bits(base)


def test_missing_package(base, monkeypatch):
    monkeypatch.setattr("hfscale.adapters.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'bitsandbytes is not installed: pip install "hfscale\[quantization\]"'
    ):
        four_bits(base)


ONE_PROCESS = """
import sys
from recipes import generate

plain, four_bits, texts = sys.argv[1:]
generate.main(["--model", plain, "--prompts", "a", "--max_new_tokens", "1", "--output_file", texts])
from hfscale.adapters import load_for_training
from hfscale.arguments import AdapterArguments
from hfscale.models import load_model

load_for_training(AdapterArguments(model=plain, lora_r=2), None)
print("not asked for:", sys.modules["bitsandbytes"])
print("by the folder:", type(load_model(four_bits).transformer.h[0].mlp.c_fc).__name__)
adapted = load_for_training(AdapterArguments(model=plain, lora_r=2, load_in_4bit=True), None)
print("by argument:", type(adapted.get_base_model().transformer.h[0].mlp.c_fc).__module__)
"""


@pytest.mark.slow
def test_it_is_imported_only_where_four_bits_are_asked_for(base, tmp_path):
    """Its import prints a warning on CPUs with bf16 instructions, and peft would import it at each
    start.
    """
    config = BitsAndBytesConfig(load_in_4bit=True)
    GPT2LMHeadModel.from_pretrained(base, quantization_config=config).save_pretrained(
        tmp_path / "four_bits"
    )
    words = [base, str(tmp_path / "four_bits"), str(tmp_path / "texts.jsonl")]
    result = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == [
        "not asked for: None",
        "by the folder: Linear4bit",
        "by argument: peft.tuners.lora.bnb",
    ]


# ---- memory


def stored_bytes(model) -> int:
    """Of all parameters and of what 4-bit ones need to be read, shared storage once."""
    tensors = list(model.parameters())
    for layer in layers_of(model).values():
        state = layer.weight.quant_state
        tensors += [state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "batch_size"),
    [(Shape(3, 4, 128, 128, 512), 8), (Shape(2, 4, 384, 128, 128), 1)],
    ids=["activations", "weights"],
)
def test_memory_is_what_was_planned(shape, batch_size, bf16, tmp_path):
    """Stored weights exactly but for bitsandbytes' tables (1 kB a layer); the peak as torch's
    allocator reports it, where activations take most, and where a layer's unpacked weights do.
    """
    step = Step(batch_size, 128, bf16=bf16, masked=False, lora_r=8, load_in_4bit=True)
    config = GPT2Config(**SHAPE | shape._asdict(), use_cache=False, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load_for_training(
        AdapterArguments(model=str(tmp_path), lora_r=8, load_in_4bit=True), None
    ).train()
    model.get_base_model().loss_type = "ForCausalLM"
    held, planned = stored_bytes(model), step_memory_bytes(shape, step, Sharding())
    tables = (
        4 * shape.n_layer * (16 + 256 + 1 + 1) * 4
    )  # NF4's values, the scales' values, their mean, rounding
    assert planned["weights"] <= held <= planned["weights"] + tables
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), fused=True)
    ids = torch.randint(0, shape.vocab_size, (2, step.batch_size, step.max_length))
    positions = torch.arange(step.max_length).expand(step.batch_size, -1)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        for batch in ids:
            with torch.autocast("cpu", torch.bfloat16, enabled=step.bf16):
                loss = model(batch, labels=batch, position_ids=positions, use_cache=False).loss
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    peak = held + max(itertools.accumulate(e.nbytes() for e in events))
    assert sum(planned.values()) == pytest.approx(peak, rel=0.1)
