"""Parameters and operations of every architecture against the models themselves."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MambaConfig, T5Config

from hfscale.architectures import ARCHITECTURES
from hfscale.new_models import meta_model, new_config, new_model
from hfscale.planning.counted import count_model, planned_model
from hfscale.planning.flops import Shape, training_flops
from hfscale.planning.memory import Step, sharding_of
from hfscale.planning.settings import Planned
from hfscale.process import InputError
from tests.tiny_runs import tiny_tokenizer
from tests.training.test_architectures import FIELDS, GROUPED, SIZES

LENGTH = 24


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_operations_are_those_that_torch_counts(architecture):
    fields = SIZES | FIELDS[architecture]
    vocab_size = len(tiny_tokenizer())
    counted = count_model(meta_model(new_config(architecture, vocab_size=vocab_size, **fields)))
    model = new_model(tiny_tokenizer(), architecture, **fields)
    # The counter does not see into the fused kernels.
    model.set_attn_implementation("eager")
    if architecture == "qwen3_moe":
        model.set_experts_implementation("eager")
    ids = torch.arange(2 * LENGTH).reshape(2, LENGTH)
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, use_cache=False).logits.sum()
    assert counter.get_total_flops() == counted.forward_flops(2 * LENGTH, LENGTH)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    trained = counted.training_flops(2 * LENGTH, LENGTH)
    assert counter.get_total_flops() == trained - counted.forward_flops(2 * LENGTH, LENGTH)
    assert counted.parameters == model.num_parameters()


def test_of_experts_those_count_as_active_that_read_a_token():
    model = meta_model(new_config("qwen3_moe", **SIZES, **GROUPED, num_experts=16))
    counted = count_model(model)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert counted.parameters - counted.active_parameters == experts // 2 > 0


def test_gpt2_is_counted_as_its_formulas_count_it():
    counted = count_model(meta_model(new_config("gpt2", vocab_size=50257)))
    shape = Shape(12, 12, 768, 1024, 50257)
    assert counted.parameters == shape.parameters() == counted.active_parameters
    assert counted.training_flops(7, 1024) == training_flops(shape, 7, 1024)


def saved_config(folder, architecture="llama", **fields):
    """A folder with a config.json alone; weights are not read."""
    new_config(architecture, vocab_size=300, **SIZES, **fields).save_pretrained(folder)
    return str(folder)


def finetune(model, **values):
    return Planned.from_values("finetune", {"model": model, **values})


def test_a_checkpoint_is_counted_as_the_new_model_of_its_sizes(tmp_path):
    checkpoint = planned_model(finetune(saved_config(tmp_path)), None)
    words = {"architecture": "llama", "tokenizer": "train:300"} | SIZES
    new = planned_model(Planned.from_values("pretrain", words), 300)
    step = Step(2, LENGTH, 2)
    assert checkpoint[:4] == new[:4]
    assert checkpoint.in_training(step)[:6] == new.in_training(step)[:6]
    one_process = sharding_of({}, 1)
    expected = new.in_training(step).memory(step, one_process)
    assert checkpoint.in_training(step).memory(step, one_process) == expected


@pytest.mark.parametrize("values", [{"lora_r": 4}, {"freeze_layers": 1}, {"add_tokens": ["<a>"]}])
def test_a_checkpoint_that_is_trained_in_part_is_refused(tmp_path, values):
    (name,) = values
    with pytest.raises(InputError, match=f"{name}: plan counts it for GPT-2 alone"):
        planned_model(finetune(saved_config(tmp_path), **values), None)


def test_a_model_without_attention_is_refused(tmp_path):
    MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="mamba: has no attention"):
        planned_model(finetune(str(tmp_path)), None)


def test_a_checkpoint_with_an_encoder_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config\.json: a model of the kind t5 has an encoder"):
        planned_model(finetune(str(tmp_path)), None)
