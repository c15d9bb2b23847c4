"""Parameters and operations of every architecture against the models themselves."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hfscale.architectures import ARCHITECTURES
from hfscale.new_models import meta_model, new_config, new_model
from hfscale.planning.counted import count_model
from hfscale.planning.flops import Shape, training_flops
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
