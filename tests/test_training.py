"""LMTrainer: losses and gradients are exact token means, whatever the batches look like."""

import math

import pytest
import torch
from datasets import Dataset

from hfscale.config import InputError
from hfscale.data.packing import IGNORED, collate_rows
from hfscale.data.tokenizer import train_bpe
from hfscale.models import new_model
from hfscale.training import LMTrainer, training_arguments

LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(Dataset.from_dict({"text": ["some words to train on"]}), 270)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return new_model(tokenizer, n_layer=1, n_head=2, n_embd=32, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0,
                     attn_pdrop=0.0)


@pytest.fixture(scope="module")
def rows():
    """37 rows with 1 to 15 scored targets each: short and long ones, so that a mean of means differs."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(37):
        ids = torch.randint(3, 270, (LENGTH,), generator=generator).tolist()
        scored = 2 + i % (LENGTH - 1)
        made.append({"input_ids": ids, "labels": ids[:scored] + [IGNORED] * (LENGTH - scored),
                     "position_ids": list(range(LENGTH)), "num_bytes": 3 * scored})
    return Dataset.from_list(made)


def trainer_for(model, rows, tmp_path, **values):
    values = {"output_dir": str(tmp_path), "report_to": "none", "disable_tqdm": True, "bf16": False,
              "save_strategy": "no", **values}
    return LMTrainer(model=model, args=training_arguments(values, width=32), train_dataset=rows, eval_dataset=rows,
                     data_collator=collate_rows)


def exact_loss(model, rows):
    """Sum of all targets' losses over their number, in one pass."""
    batch = collate_rows(list(rows))
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED)


@pytest.mark.parametrize("batch_size", [1, 4, 16, 37])
def test_eval_loss_is_the_token_mean_for_any_batch_size(model, rows, tmp_path, batch_size):
    metrics = trainer_for(model, rows, tmp_path, per_device_eval_batch_size=batch_size).evaluate()
    with torch.no_grad():
        expected = exact_loss(model.eval(), rows).item()
    tokens = sum(label != IGNORED for row in rows for label in row["labels"][1:])
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)
    assert metrics["eval_tokens"] == tokens
    bits = expected * tokens / math.log(2) / sum(rows["num_bytes"])
    assert metrics["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-6)


@pytest.mark.parametrize("batch_size,accumulation", [(16, 1), (4, 4), (1, 16)])
def test_gradient_is_that_of_the_token_mean(model, rows, tmp_path, batch_size, accumulation):
    """One plain SGD step moves the weights by -lr times the exact gradient; the logged loss is the exact one."""
    some = rows.select(range(16))
    loss = exact_loss(model, some)
    gradient = torch.autograd.grad(loss, model.transformer.wte.weight)[0]
    before = model.transformer.wte.weight.detach().clone()
    trainer = trainer_for(model, some, tmp_path, per_device_train_batch_size=batch_size, optim="sgd",
                          gradient_accumulation_steps=accumulation, max_steps=1, learning_rate=1.0,
                          lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1)
    trainer.train()
    moved = before - model.transformer.wte.weight.detach()
    assert (moved - gradient).norm() / gradient.norm() < 1e-5
    logged = next(log for log in trainer.state.log_history if "loss" in log)
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_step(model, rows, tmp_path):
    trainer = trainer_for(model, rows, tmp_path, max_steps=3)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = math.nan
    before = model.transformer.wte.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 1"):
        trainer.train()
    assert torch.equal(before, model.transformer.wte.weight)
    with pytest.raises(FloatingPointError, match="37 of 37 rows"):
        trainer.evaluate()


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(InputError, match="fp16: a CPU"):
        training_arguments({"output_dir": str(tmp_path), "fp16": True, "use_cpu": True}, width=512)


def test_upstream_refusals_are_one_line(tmp_path):
    with pytest.raises(InputError, match="^training arguments: .*eval_steps"):
        training_arguments({"output_dir": str(tmp_path), "eval_strategy": "steps", "eval_steps": 0.0,
                            "logging_steps": 0}, width=32)


def test_processes_that_form_no_job_are_refused(model, rows, tmp_path, monkeypatch):
    args = training_arguments({"output_dir": str(tmp_path), "bf16": False}, width=32)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched but each would train alone"):
        LMTrainer(model=model, args=args, train_dataset=rows)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="asks for FSDP"):
        LMTrainer(model=model, args=args, train_dataset=rows)
