"""Parameter and FLOP counts by formula are those of the built model and of torch's own counter."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.config import check_recipe_args
from hfscale.scaling.flops import PUBLISHED, Shape, forward_flops, training_flops

ROOT = Path(__file__).parents[1]
PRETRAIN = sorted((ROOT / "recipes" / "configs" / "pretrain").glob("*.yaml"))
TINY = Shape(n_layer=3, n_head=2, n_embd=32, n_positions=24, vocab_size=101)


def build(shape: Shape, **config) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**shape._asdict(), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0,
                                      eos_token_id=0, **config))


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("vocab_size", [50257, 4097])
def test_parameters_of_every_shipped_model(path, vocab_size):
    values = check_recipe_args(ROOT / "recipes" / "pretrain.py", ["--config", str(path)])
    shape = Shape(*(values[name] for name in Shape._fields[:-1]), vocab_size)
    with torch.device("meta"):
        model = build(shape)
    assert shape.parameters() == model.num_parameters()
    assert shape.block_parameters() == sum(p.numel() for p in model.transformer.h[0].parameters())


def test_published_sizes():
    assert [Shape(*PUBLISHED[name], 1024, 50257).parameters() for name in PUBLISHED] == [
        124_439_808, 354_823_168, 774_030_080, 1_557_611_200, 81_912_576]


def test_adapters_on_all_linear_layers():
    with torch.device("meta"):
        model = get_peft_model(build(TINY), LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=True))
    assert model.get_nb_trainable_parameters()[0] == TINY.lora_parameters(4)


def counted(model, ids) -> tuple[int, int]:
    """FLOPs of the forward and of the backward pass, by torch's counter."""
    with FlopCounterMode(display=False) as forward:
        loss = model(ids, labels=ids, use_cache=False).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(("rows", "length"), [(1, 24), (5, 7)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_what_torch_counts(rows, length, checkpointing):
    model, ids = build(TINY, attn_implementation="eager").train(), torch.randint(0, 101, (rows, length))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    forward, backward = counted(model, ids)
    tokens = rows * length
    assert forward == forward_flops(TINY, tokens, length)
    assert forward + backward == training_flops(TINY, tokens, length, activation_checkpointing=checkpointing)


def test_flops_with_adapters():
    """torch counts a little less: nothing needs the gradient of the first block's input."""
    model = get_peft_model(build(TINY, attn_implementation="eager"),
                           LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=True)).train()
    total = sum(counted(model, torch.randint(0, 101, (3, 24))))
    first_inputs = 2 * 72 * 3 * 32 * 32 + 2 * 72 * 4 * 32  # through c_attn, and through its first adapter matrix
    assert total == training_flops(TINY, 72, 24, lora_rank=4) - first_inputs


def test_six_times_parameters_times_tokens_is_near():
    """6ND (Kaplan et al. 2020) leaves out attention and counts the position embedding: 10 % off for GPT-2 small."""
    shape = Shape(*PUBLISHED["gpt2"], 1024, 50257)
    exact = training_flops(shape, 10**6, 1024)
    assert 1.05 < exact / (6 * shape.parameters() * 10**6) < 1.2
