"""LMTrainer: losses and gradients are exact token means, whatever the batches look like."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from hfscale.data.packing import IGNORED, collate_rows, pack_documents, settle_packing
from hfscale.data.tokenizer import train_bpe
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.training import trainer as trainer_module
from hfscale.training import training_args as training_args_module
from hfscale.training.guards import guard_gradients
from hfscale.training.trainer import LMTrainer, next_token_loss
from hfscale.training.training_args import training_arguments
from tests.tiny_models import APART, TOGETHER, tiny_model
from tests.tiny_runs import tiny_trainer

LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(Dataset.from_dict({"text": ["some words to train on"]}), 270)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return new_model(
        tokenizer,
        n_layer=1,
        n_head=2,
        n_embd=32,
        n_positions=LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


@pytest.fixture(scope="module")
def rows():
    """37 rows with 1 to 15 scored targets each: short and long ones, so that a mean of means
    differs.
    """
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(37):
        ids = torch.randint(3, 270, (LENGTH,), generator=generator).tolist()
        scored = 2 + i % (LENGTH - 1)
        made.append(
            {
                "input_ids": ids,
                "labels": ids[:scored] + [IGNORED] * (LENGTH - scored),
                "position_ids": list(range(LENGTH)),
                "num_bytes": 3 * scored,
            }
        )
    return Dataset.from_list(made)


def trainer_for(model, rows, tmp_path, **values):
    values = {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "save_strategy": "no",
        **values,
    }
    return LMTrainer(
        model=model,
        args=training_arguments(values, width=32),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate_rows,
    )


def exact_loss(model, rows):
    """Sum of all targets' losses over their number, in one pass."""
    batch = collate_rows(list(rows))
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[
        :, :-1
    ]
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED
    )


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


@pytest.mark.parametrize("kind", ["llama", "mamba", "bart", "openai-gpt", "mixtral"])
def test_losses_of_other_kinds_are_token_means(kind, tmp_path):
    """Whatever a model computes as its own loss, such as one whose labels it does not shift."""
    model = tiny_model(kind, (APART | TOGETHER)[kind], 270)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 270, (8, LENGTH), generator=generator).tolist()
    rows = Dataset.from_list(
        [
            {"input_ids": row, "labels": row[: 2 + i] + [IGNORED] * (LENGTH - 2 - i)}
            for i, row in enumerate(ids)
        ]
    )
    with torch.no_grad():
        logits = model(torch.tensor(ids), use_cache=False).logits[:, :-1]
    labels = torch.tensor(rows["labels"][:])[:, 1:]
    exact = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED
    ).item()
    trainer = trainer_for(
        model,
        rows,
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(exact, rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "fuyu", "granitemoe"])
def test_training_keeps_documents_apart_as_the_trial_said(kind, tokenizer, tmp_path):
    """Also where Trainer does not reach the switch of the cache, which would let them see each
    other.
    """
    model = tiny_model(kind, APART[kind], 270)
    texts = [f"some words {i} to train on" * (1 + i % 2) for i in range(6)]
    assert settle_packing(model, "bfd_split", default="none") == "bfd_split"
    rows = pack_documents(Dataset.from_dict({"text": texts}), tokenizer, 60, packing="bfd_split")
    eos, total, tokens = tokenizer.eos_token_id, 0.0, 0
    for text in texts:
        ids = torch.tensor([[eos, *tokenizer.encode(text), eos]])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    assert len(rows) < len(texts)
    trainer = trainer_for(
        model,
        rows,
        tmp_path,
        per_device_train_batch_size=len(rows),
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_balance_of_experts_is_trained_and_logged_apart(tmp_path, accumulation):
    """One SGD step is that of the token mean and, with its weight, the mean over the micro-batches
    by their labels; the loss that is logged is the first alone.
    """
    weight = 0.5
    model = tiny_model(
        "mixtral",
        APART["mixtral"] | {"output_router_logits": True, "router_aux_loss_coef": weight},
        270,
    )
    ids = torch.randint(3, 270, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[1, : LENGTH // 2] = IGNORED
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    counts = (labels[:, 1:] != IGNORED).sum(dim=1)
    outputs = model(ids, use_cache=False)
    loss = next_token_loss(outputs, labels)
    router_loss = outputs.aux_loss
    if accumulation > 1:
        imbalances = [model(row[None], use_cache=False).aux_loss for row in ids]
        router_loss = (torch.stack(imbalances) * counts).sum() / counts.sum()
    assert router_loss > 0.1
    gate = model.model.layers[0].mlp.gate.weight
    gradient = torch.autograd.grad(loss + weight * router_loss, gate)[0]
    before = gate.detach().clone()
    trainer = trainer_for(
        model,
        rows,
        tmp_path,
        per_device_train_batch_size=3 // accumulation,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        max_steps=1,
        logging_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    trainer.train()
    moved = before - gate.detach()
    assert (moved - gradient).norm() / gradient.norm() < 1e-5
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-5)
    assert logged["router_loss"] == pytest.approx(router_loss.item(), rel=1e-5)


@pytest.mark.parametrize("batch_size,accumulation", [(16, 1), (4, 4), (1, 16)])
def test_gradient_is_that_of_the_token_mean(model, rows, tmp_path, batch_size, accumulation):
    """One plain SGD step moves the weights by -lr times the exact gradient; the logged loss is the
    exact one.
    """
    some = rows.select(range(16))
    loss = exact_loss(model, some)
    gradient = torch.autograd.grad(loss, model.transformer.wte.weight)[0]
    before = model.transformer.wte.weight.detach().clone()
    trainer = trainer_for(
        model,
        some,
        tmp_path,
        per_device_train_batch_size=batch_size,
        optim="sgd",
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
    )
    trainer.train()
    moved = before - model.transformer.wte.weight.detach()
    assert (moved - gradient).norm() / gradient.norm() < 1e-5
    logged = next(log for log in trainer.state.log_history if "loss" in log)
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-5)


@pytest.mark.parametrize("report_to", ["tensorboard", "none"])
def test_no_tracker_is_imported_that_is_not_named(tmp_path, monkeypatch, report_to):
    """Upstream imports W&B, where it is installed, to list the trackers."""

    def list_them():
        raise AssertionError("asked for")

    monkeypatch.setattr(training_args_module, "get_available_reporting_integrations", list_them)
    values = {"output_dir": str(tmp_path), "report_to": report_to}
    assert training_arguments(values, width=32).report_to in (["tensorboard"], [])


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
def test_the_guard_changes_no_weight(model, rows, tmp_path, max_grad_norm):
    """Whether all gradients are clipped or none."""
    weights = []
    for is_guarded in (False, True):
        trainer = trainer_for(
            copy.deepcopy(model), rows, tmp_path, max_steps=3, max_grad_norm=max_grad_norm
        )
        if is_guarded:
            guard_gradients(trainer)
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_operations_are_counted_as_upstream_counts_them(model, rows, tmp_path):
    trainer = trainer_for(model, rows, tmp_path)
    for size in (1, 5):
        batch = collate_rows(list(rows.select(range(size))))
        expected = Trainer.floating_point_ops(trainer, batch)
        assert trainer.floating_point_ops(batch) == expected > 0


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
        training_arguments(
            {
                "output_dir": str(tmp_path),
                "eval_strategy": "steps",
                "eval_steps": 0.0,
                "logging_steps": 0,
            },
            width=32,
        )


def test_processes_that_form_no_job_are_refused(model, rows, tmp_path, monkeypatch):
    args = training_arguments({"output_dir": str(tmp_path), "bf16": False}, width=32)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched but each would train alone"):
        LMTrainer(model=model, args=args, train_dataset=rows)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="asks for FSDP"):
        LMTrainer(model=model, args=args, train_dataset=rows)


def test_the_label_that_is_passed_over_is_one_everywhere():
    assert trainer_module.IGNORED == IGNORED == torch.nn.CrossEntropyLoss().ignore_index


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_rows_that_ranks_share_are_refused(kind, tmp_path, monkeypatch):
    """As a DeepSpeed file with an `autotp_size` makes them; evaluation would count them twice."""
    monkeypatch.setattr(LMTrainer, f"get_{kind}_size", lambda self: 2)
    with pytest.raises(InputError, match="tensor, context or sequence parallelism"):
        tiny_trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()
