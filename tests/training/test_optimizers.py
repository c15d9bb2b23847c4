"""Muon as torch's own where that can be compared, and on weights that hold several matrices."""

import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, get_scheduler

from hfscale.arguments import OptimizerArguments
from hfscale.process import InputError
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.optimizers import (
    MuonAdamW,
    MuonForModel,
    choose_optimizer,
    hidden_matrices,
    orthogonalize,
)
from hfscale.training.preview import memory_at_hand
from hfscale.training.running import run_training
from hfscale.training.training_args import training_arguments
from tests.tiny_models import LLAMA, TOGETHER, tiny_model
from tests.tiny_runs import tiny_trainer

SETTINGS = {
    "muon_learning_rate": 0.02,
    "muon_momentum": 0.95,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
}

QWEN3_MOE = LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=50)
    )


def gradients_for(model, seed):
    torch.manual_seed(seed)
    ids = torch.randint(0, 50, (3, 16))
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()


def test_singular_values_end_near_one():
    torch.manual_seed(0)
    for shape in ((3, 32, 32), (3, 32, 80), (3, 80, 32)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), torch.float32))
        assert values.min() > 0.3 and values.max() < 1.25


@pytest.mark.parametrize("shape", [(32, 32), (32, 80), (80, 32)])
def test_steps_are_those_of_torch(shape):
    """Which always multiplies in bfloat16."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    muon = MuonAdamW(
        [{"params": [ours], "num_matrices": 1, "outputs_dim": 0}], lr=0.02, weight_decay=0.1
    )
    muon.product_dtype = torch.bfloat16
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    assert (ours - theirs).norm() / (theirs - start).norm() < 2e-2  # bfloat16, in another order
    assert (ours - start).norm() > 0.1


def test_other_parameters_get_adamw():
    model, same = gpt2(), gpt2()
    muon = MuonForModel()(model, **SETTINGS)
    names = [name for name, _ in same.named_parameters() if name not in hidden_matrices(same)]
    named = dict(same.named_parameters())
    groups = [
        {"params": [named[name] for name in names if named[name].ndim > 1], "weight_decay": 0.1},
        {"params": [named[name] for name in names if named[name].ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    gradients_for(model, 1)
    gradients_for(same, 1)
    muon.step()
    adamw.step()
    moved = dict(model.named_parameters())
    for name in names:
        assert torch.equal(moved[name], named[name]), name


@pytest.mark.parametrize("num_matrices", [0, 1], ids=["adamw", "muon"])
def test_cautious_decay_is_where_step_and_weight_have_one_sign(num_matrices):
    """Beside an optimizer without decay, whose step it adds the decay to by hand."""
    torch.manual_seed(0)
    start = torch.randn(8, 6)
    params = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    group = {"num_matrices": num_matrices, "lr": 0.1}
    cautious, plain = (
        MuonAdamW([group | {"params": [param], "weight_decay": decay}], cautious=True)
        for param, decay in zip(params, (0.5, 0.0), strict=True)
    )
    for optimizer in (cautious, plain):
        optimizer.product_dtype = torch.float32
    decayed_places = []
    for _ in range(3):
        before = params[0].detach().clone()
        params[1].data.copy_(before)
        params[0].grad = torch.randn(8, 6)
        params[1].grad = params[0].grad.clone()
        cautious.step()
        plain.step()
        step = before - params[1].detach()  # what is subtracted
        agrees = step * before >= 0
        expected = params[1].detach() - 0.1 * 0.5 * torch.where(agrees, before, 0)
        assert torch.allclose(params[0], expected, atol=1e-6)
        decayed_places.append(agrees.float().mean().item())
    assert all(0.2 < share < 0.8 for share in decayed_places)


def test_cautious_adamw_is_adamw_where_nothing_decays():
    """All weights go through AdamW then, in upstream's groups."""
    model, same = gpt2(), gpt2()
    settings = SETTINGS | {"muon_learning_rate": None, "cautious": True}
    cautious = MuonForModel()(model, **settings)
    adamw = torch.optim.AdamW(same.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for seed in (1, 2):
        gradients_for(model, seed)
        gradients_for(same, seed)
        # Where no weight agrees with its step nothing decays: here all of them move outward.
        for each in (model, same):
            for param in each.parameters():
                param.grad = -param.detach().sign() * (param.grad.abs() + 1e-3)
        cautious.step()
        adamw.step()
    for here, there in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.allclose(here, there, atol=1e-6)
    assert {group["weight_decay"] for group in cautious.param_groups} == {0.0, 0.1}


def test_query_key_and_value_are_matrices_of_their_own():
    """A step on GPT-2's joined and transposed weight equals steps on the three it is made of."""
    torch.manual_seed(0)
    joined = torch.nn.Parameter(torch.randn(32, 96))  # inputs x (query, key, value)
    apart = [torch.nn.Parameter(part.T.clone()) for part in joined.detach().chunk(3, dim=1)]
    together = MuonAdamW(
        [{"params": [joined], "num_matrices": 3, "outputs_dim": 1}], lr=0.02, weight_decay=0.1
    )
    alone = MuonAdamW(
        [{"params": apart, "num_matrices": 1, "outputs_dim": 0}], lr=0.02, weight_decay=0.1
    )
    for optimizer in (together, alone):
        optimizer.product_dtype = torch.float32
    joined.grad = torch.randn(32, 96)
    for param, grad in zip(apart, joined.grad.chunk(3, dim=1), strict=True):
        param.grad = grad.T.clone()
    together.step()
    alone.step()
    assert torch.allclose(joined, torch.cat([part.T for part in apart], dim=1), atol=1e-5)


def test_experts_are_matrices_of_their_own():
    """A step on the joined weight of three experts (experts x gate and up x inputs) equals steps on
    the six matrices that it is made of.
    """
    torch.manual_seed(0)
    joined = torch.nn.Parameter(torch.randn(3, 16, 12))
    apart = [
        torch.nn.Parameter(part.clone()) for expert in joined.detach() for part in expert.chunk(2)
    ]
    together = MuonAdamW([{"params": [joined], "num_matrices": 2}], lr=0.02, weight_decay=0.1)
    alone = MuonAdamW([{"params": apart, "num_matrices": 1}], lr=0.02, weight_decay=0.1)
    for optimizer in (together, alone):
        optimizer.product_dtype = torch.float32
    joined.grad = torch.randn(3, 16, 12)
    for param, grad in zip(apart, joined.grad.reshape(6, 8, 12), strict=True):
        param.grad = grad.clone()
    together.step()
    alone.step()
    assert torch.allclose(joined, torch.stack([*apart]).reshape(3, 16, 12), atol=1e-5)


def test_of_a_mixture_of_experts_the_routers_stay_with_adamw():
    found = hidden_matrices(tiny_model("qwen3_moe", QWEN3_MOE, 270))
    block = "model.layers.0"
    assert found[f"{block}.mlp.experts.gate_up_proj"] == (2, 0)
    assert found[f"{block}.mlp.experts.down_proj"] == (1, 0)
    assert found[f"{block}.self_attn.q_proj.weight"] == (1, 0)
    assert len(found) == 2 * 6 and not any("gate.weight" in name for name in found)
    with pytest.raises(InputError, match="optimizer muon: how .*experts.gate_up_proj holds the"):
        hidden_matrices(tiny_model("gpt_oss", TOGETHER["gpt_oss"], 270))


def test_embeddings_and_the_output_layer_are_no_hidden_matrices():
    found = hidden_matrices(gpt2())
    assert found["transformer.h.0.attn.c_attn.weight"] == (3, 1)
    assert found["transformer.h.1.mlp.c_proj.weight"] == (1, 1)
    assert len(found) == 8
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        tie_word_embeddings=False,
    )
    found = hidden_matrices(LlamaForCausalLM(config))
    assert len(found) == 7 and set(found.values()) == {(1, 0)}


def test_both_rates_end_at_the_same_part_of_themselves():
    """`min_lr` is that of `learning_rate`; the default of torch would be taken for it."""
    optimizer = MuonForModel()(gpt2(), **SETTINGS)
    schedule = get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=0,
        num_training_steps=10,
        scheduler_specific_kwargs={"min_lr": 1e-4},
    )
    for _ in range(10):
        optimizer.step()
        schedule.step()
    least = [1e-4, 0.1 * SETTINGS["muon_learning_rate"]]
    assert sorted(set(schedule.get_last_lr())) == pytest.approx(least)


def test_its_state_goes_on_elsewhere():
    model = gpt2()
    optimizer = MuonForModel()(model, **SETTINGS)
    gradients_for(model, 1)
    optimizer.step()
    copy = gpt2()
    copy.load_state_dict(model.state_dict())
    again = MuonForModel()(copy, **SETTINGS)
    again.load_state_dict(deepcopy(optimizer.state_dict()))  # else they share its tensors
    for each, its_optimizer in ((model, optimizer), (copy, again)):
        gradients_for(each, 2)
        its_optimizer.step()
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- in a run


MUON = OptimizerArguments(optimizer="muon")


def upstream(folder, **values):
    given = {"output_dir": str(folder), "report_to": "none", "use_cpu": True}
    return training_arguments(given | values, width=32)


def muon_trainer(folder, args=MUON, **values):
    trainer = tiny_trainer(folder, **values)
    trainer.optimizer_cls_and_kwargs = choose_optimizer(args, trainer.args, trainer.model)
    return trainer


def test_the_momentum_asked_for_is_that_of_the_matrices(tmp_path):
    asked = replace(MUON, muon_momentum=0.8)
    make_optimizer, settings = choose_optimizer(asked, upstream(tmp_path), gpt2())
    groups = make_optimizer()(gpt2(), **settings).param_groups
    assert {group["momentum"] for group in groups if group["num_matrices"]} == {0.8}


@pytest.mark.parametrize(
    ("args", "rates"),
    [
        (MUON, {1e-2, MUON.muon_learning_rate}),
        (replace(MUON, cautious_weight_decay=True), {1e-2, MUON.muon_learning_rate}),
        (OptimizerArguments(cautious_weight_decay=True), {1e-2}),
    ],
    ids=["muon", "cautious muon", "cautious adamw"],
)
def test_a_continued_run_equals_one_without_a_pause(tmp_path, args, rates):
    values = {"max_steps": 6, "save_steps": 3, "weight_decay": 0.1, "learning_rate": 1e-2}
    whole = muon_trainer(tmp_path / "whole", args, **values)
    run_training(whole, None)
    assert isinstance(whole.optimizer.optimizer, MuonAdamW)
    assert {group["initial_lr"] for group in whole.optimizer.param_groups} == rates
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    again = muon_trainer(tmp_path / "run", args, **values)
    checkpoint = newest_checkpoint(again.args)
    assert checkpoint.endswith("checkpoint-3")
    run_training(again, checkpoint)
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_muon_cannot_train_is_one_line(tmp_path, monkeypatch):
    args = upstream(tmp_path)
    assert choose_optimizer(OptimizerArguments(), args, gpt2()) is None
    assert choose_optimizer(OptimizerArguments(optimizer="adamw"), args, gpt2()) is None
    with pytest.raises(InputError, match=r"optimizer muon: optim .*sgd names another"):
        choose_optimizer(MUON, upstream(tmp_path, optim="sgd"), gpt2())
    cautious = OptimizerArguments(cautious_weight_decay=True)
    with pytest.raises(InputError, match="cautious_weight_decay: weight_decay is 0; set it"):
        choose_optimizer(cautious, args, gpt2())
    with pytest.raises(InputError, match=r"cautious_weight_decay: optim .*sgd names another"):
        choose_optimizer(cautious, upstream(tmp_path, optim="sgd"), gpt2())
    frozen = gpt2()
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad = "ln_" in name
    with pytest.raises(InputError, match="this run trains no hidden matrix"):
        choose_optimizer(MUON, args, frozen)
    decaying = upstream(tmp_path, weight_decay=0.1)
    # From here on upstream's arguments would want the package.
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(InputError, match="ZeRO cuts all weights into one flat row"):
        choose_optimizer(MUON, args, gpt2())
    with pytest.raises(InputError, match="cautious_weight_decay: DeepSpeed takes optimizers"):
        choose_optimizer(cautious, decaying, gpt2())


def test_a_plan_counts_what_muon_keeps(tmp_path):
    """The numbers in its state after a step, four bytes each."""
    trainer = muon_trainer(tmp_path / "run", max_steps=1, save_strategy="no")
    run_training(trainer, None)
    states = trainer.optimizer.optimizer.state.values()
    kept = sum(value.numel() for state in states for value in state.values() if value.ndim)
    rows = trainer.train_dataset
    planned = memory_at_hand(trainer.model, trainer.args, rows, MUON)["optimizer"]
    assert planned == 4 * kept
    assert memory_at_hand(trainer.model, trainer.args, rows)["optimizer"] > planned
