"""The memory of a step of the dense architectures against what torch's allocator reports, and of
GPT-2 against its formulas.
"""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments

from hfscale.architectures import ARCHITECTURES
from hfscale.new_models import meta_model, new_config
from hfscale.planning.flops import Shape
from hfscale.planning.memory import Sharding, Step, step_memory_bytes
from hfscale.traced_memory import find_memory, memory_of
from hfscale.training.preview import count_memory
from tests.planning.test_memory import allowed, peak_bytes, peak_of

SIZES = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "max_position_embeddings": 64,
}
WORDS = 300
OF_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
DENSE = [name for name in ARCHITECTURES if name not in ("gpt2", "qwen3_moe")]
STEP = Step(batch_size=8, max_length=64, eval_batch_size=8, on_cpu=True)
ROWS = Dataset.from_list([{"input_ids": [0] * 64, "position_ids": [*range(32), *range(32)]}])


def config_of(architecture, **fields):
    return new_config(architecture, vocab_size=WORDS, **SIZES, **fields)


def model_of(config, step=STEP):
    """With values, ready for training."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    model.loss_type = "ForCausalLM"
    if step.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def traced(config):
    return memory_of(config, meta_model(config).num_parameters())


@pytest.mark.parametrize(
    "change",
    [{"bf16": True, "masked": False}, {"activation_checkpointing": True, "muon": True}],
    ids="-".join,
)
@pytest.mark.parametrize("architecture", DENSE)
def test_prediction_is_what_the_allocator_reports(architecture, change):
    """Of four blocks, from two."""
    step = STEP._replace(**change)
    config = config_of(architecture)
    predicted = sum(traced(config)(step, Sharding()).values())
    measured = peak_bytes(lambda: model_of(config, step), WORDS, step)
    assert predicted == pytest.approx(measured, rel=allowed(step) / 2)


@pytest.mark.parametrize(
    ("change", "sharding"),
    [
        ({}, Sharding()),
        ({"bf16": True}, Sharding("ddp", 0, 2)),
        ({"accumulates": True, "activation_checkpointing": True}, Sharding()),
        ({"bf16": True}, Sharding("fsdp", 3, 4)),
        ({"bf16": True}, Sharding("deepspeed", 2, 4)),
        ({"averages_weights": True, "optimizer_bytes": 0}, Sharding()),
        ({"batch_size": 2, "eval_batch_size": 1}, Sharding("deepspeed", 3, 4)),
    ],
)
def test_gpt2_is_counted_as_its_formulas_count_it(change, sharding):
    """DeepSpeed's bucket, which is larger than all else, is left out."""
    step = STEP._replace(**change)
    shape = Shape(4, 4, 64, 64, WORDS)
    by_formulas = step_memory_bytes(shape, step, sharding)
    counted = traced(config_of("gpt2"))(step, sharding)
    for part in ("weights", "optimizer", "communication"):
        assert counted.pop(part) == pytest.approx(by_formulas.pop(part), rel=0.01)
    assert sum(counted.values()) == pytest.approx(sum(by_formulas.values()), rel=0.06)


@pytest.mark.parametrize("num_hidden_layers", [1, 3, 7])
def test_blocks_and_rows_that_were_not_run_are_counted(num_hidden_layers):
    sizes = SIZES | {"num_hidden_layers": num_hidden_layers}
    config = new_config("smollm3", vocab_size=WORDS, **sizes)
    step = STEP._replace(batch_size=5)
    predicted = sum(traced(config)(step, Sharding()).values())
    assert predicted == pytest.approx(peak_bytes(lambda: model_of(config), WORDS, step), rel=0.02)


def test_an_evaluation_keeps_one_block_at_a_time():
    """What the allocator reports of 64 rows and six blocks."""
    config = new_config("llama", vocab_size=WORDS, **SIZES | {"num_hidden_layers": 6})
    model = model_of(config).eval()
    ids = torch.zeros(64, 64, dtype=torch.long)
    positions = torch.arange(64) % 16
    inputs = {"input_ids": ids, "position_ids": positions.expand_as(ids), "use_cache": False}
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    )
    with profiler, torch.no_grad():
        model(**inputs)
    step = STEP._replace(batch_size=1, eval_batch_size=64)
    predicted = traced(config)(step, Sharding())
    lasting = predicted["weights"] + predicted["optimizer"]
    assert sum(predicted.values()) - lasting == pytest.approx(peak_of(profiler), rel=0.02)


def test_memory_of_experts_is_not_known():
    config = config_of("qwen3_moe", **OF_EXPERTS)
    assert find_memory(config, meta_model(config).num_parameters(), STEP) is None


def at_hand(model, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    return count_memory(model, args, ROWS)


def test_the_model_at_hand_is_counted_as_it_is(tmp_path):
    """What `--dry_run` shows and `run.json` keeps."""
    config = config_of("llama")
    model = model_of(config)
    assert at_hand(model, tmp_path) == (traced(config)(STEP, Sharding()), True)


def test_what_lasts_is_that_of_the_model_at_hand(tmp_path):
    """Of experts, and where a part is trained."""
    model = model_of(config_of("qwen3_moe", **OF_EXPERTS))
    memory, is_exact = at_hand(model, tmp_path)
    whole = model.num_parameters()
    assert (memory["weights"], memory["optimizer"], is_exact) == (4 * whole, 8 * whole, False)
    model.get_input_embeddings().requires_grad_(False)
    memory, _ = at_hand(model, tmp_path)
    trained = model.num_parameters(only_trainable=True)
    assert (memory["weights"], memory["optimizer"]) == (4 * whole, 8 * trained)
