"""Parameter and FLOP counts by formula are those of the built model and of torch's own counter."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.adapters import load_for_training
from hfscale.arguments import SHAPE_NAMES, AdapterArguments, ShapeArguments, shape_of
from hfscale.config import check_recipe_args
from hfscale.models import count_parameters, count_trained
from hfscale.planning.flops import PUBLISHED, Shape, Trained, forward_flops, training_flops
from hfscale.planning.shapes import new_shape

ROOT = Path(__file__).parents[2]
PRETRAIN = sorted((ROOT / "recipes" / "configs" / "pretrain").glob("*.yaml"))
TINY = Shape(n_layer=3, n_head=2, n_embd=32, n_positions=24, vocab_size=101)


def build(shape: Shape, **config) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**shape._asdict(), bos_token_id=0, eos_token_id=0, **config))


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("vocab_size", [50257, 4097])
def test_parameters_of_every_shipped_model(path, vocab_size):
    values = check_recipe_args(ROOT / "recipes" / "pretrain.py", ["--config", str(path)])
    sizes = {name: value for name, value in values.items() if name in SHAPE_NAMES}
    shape = new_shape(shape_of(ShapeArguments(**sizes)), vocab_size)
    with torch.device("meta"):
        model = build(shape)
    assert shape.parameters() == model.num_parameters()
    assert shape.block_parameters() == sum(p.numel() for p in model.transformer.h[0].parameters())


def test_published_sizes():
    assert [Shape(*PUBLISHED[name], 1024, 50257).parameters() for name in PUBLISHED] == [
        124_439_808,
        354_823_168,
        774_030_080,
        1_557_611_200,
        81_912_576,
    ]


def counted(model, ids) -> tuple[int, int]:
    """FLOPs of the forward and of the backward pass, by torch's counter."""
    with FlopCounterMode(display=False) as forward:
        loss = model(ids, labels=ids, use_cache=False).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


# What a configuration can say, and what of the model is trained: nineteen ways that differ in
# parameters or FLOPs.
WIDE, NARROW = {"n_inner": 200}, {"n_inner": 20}
UNTIED, CROSS = {"tie_word_embeddings": False}, {"add_cross_attention": True}
CONFIGURATIONS = [
    ({}, {}),
    (WIDE, {}),
    (NARROW, {}),
    (UNTIED, {}),
    (CROSS, {}),
    (WIDE | UNTIED | CROSS, {}),
    ({"n_layer": 1, "n_head": 4}, {}),
    ({"n_positions": 40, "vocab_size": 257}, {}),
    ({"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, {}),
    ({}, {"freeze_layers": 1}),
    (UNTIED | NARROW, {"freeze_layers": 3}),
    ({}, {"lora_r": 4}),
    (WIDE | CROSS, {"lora_r": 2}),
    ({}, {"lora_r": 4, "target_modules": ("attn.c_attn",)}),
    ({}, {"lora_r": 4, "target_modules": ("c_proj",)}),
    (CROSS, {"lora_r": 3, "target_modules": ("c_attn", "c_fc")}),
    (NARROW, {"lora_r": 4, "target_modules": ("c_fc",), "freeze_layers": 1}),
    (UNTIED, {"lora_r": 4, "freeze_layers": 2}),
    ({}, {"lora_r": 4, "target_modules": ("h.1.attn.c_proj",)}),
]


def as_finetune_trains_it(shape: Shape, trained: dict, folder: Path, **config):
    """The model of a saved folder, frozen or with adapters by the library that finetune uses."""
    build(shape).save_pretrained(folder)
    args = AdapterArguments(
        model=str(folder),
        **{
            "lora_r": None,
            **{name: value for name, value in trained.items() if name != "target_modules"},
            "lora_target_modules": list(trained.get("target_modules", ())) or None,
        },
    )
    model = load_for_training(args, None).train()
    model.config._attn_implementation = "eager"
    return model


@pytest.mark.parametrize(
    ("config", "trained"), CONFIGURATIONS, ids=lambda value: "-".join(value) or "plain"
)
def test_parameters_and_flops_are_those_of_the_real_model(config, trained, tmp_path):
    """With and without checkpointing; torch's counter wants eager attention, where each product is
    one of its own.
    """
    shape = TINY._replace(**config)
    model = as_finetune_trains_it(shape, trained, tmp_path)
    adapters = shape.lora_parameters(*Trained(**trained))
    assert count_parameters(model)["parameters"] == shape.parameters() + adapters
    assert count_trained(model) == Trained(**trained).parameters(shape)
    for checkpointing, (rows, length) in ((False, (2, 24)), (False, (5, 7)), (True, (2, 24))):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        ids = torch.randint(0, shape.vocab_size, (rows, length))
        forward, backward = counted(model, ids)
        planned = training_flops(
            shape, rows * length, length, activation_checkpointing=checkpointing, **trained
        )
        assert forward + backward == planned
        if not adapters:
            assert forward == forward_flops(shape, rows * length, length)
    idle = sum(p.numel() for p in model.parameters() if p.requires_grad and p.grad is None)
    assert idle == Trained(**trained).idle_parameters(shape)


def test_six_times_parameters_times_tokens_is_near():
    """6ND (Kaplan et al. 2020) leaves out attention and counts the position embedding: 10 % off for
    GPT-2 small.
    """
    shape = Shape(*PUBLISHED["gpt2"], 1024, 50257)
    exact = training_flops(shape, 10**6, 1024)
    assert 1.05 < exact / (6 * shape.parameters() * 10**6) < 1.2
