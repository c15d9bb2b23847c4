"""The same promises for every architecture in the table: packing, exact losses, folders that any
tool loads, exact continuations, adapters, Muon.
"""

import shutil

import pytest
import torch
from transformers import pipeline

from hfscale.adapters import load_for_training
from hfscale.architectures import ARCHITECTURES
from hfscale.arguments import AdapterArguments
from hfscale.data.packing import IGNORED, collate_rows, pack_documents, settle_packing
from hfscale.generation.texts import generate_texts
from hfscale.manifest import read_manifest
from hfscale.models import load_model
from hfscale.new_models import new_model
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.convert import convert_checkpoint
from hfscale.training.optimizers import MuonForModel, hidden_matrices
from hfscale.training.running import run_training
from hfscale.training.trainer import LMTrainer, next_token_loss
from tests.tiny_runs import DOCUMENTS, copied_run, losses, tiny_arguments, tiny_rows, tiny_tokenizer

SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "max_position_embeddings": 64,
}
GROUPED = {"num_key_value_heads": 2}
# What makes each of them tiny, and each kind of its blocks appear.
FIELDS = {
    "gpt2": {},
    "llama": GROUPED,
    "qwen3": GROUPED,
    "olmo2": GROUPED,
    "smollm3": GROUPED | {"no_rope_layer_interval": 2},
    "nanochat": GROUPED,
    "qwen3_moe": GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0},
}
PROMPTS = ["document 3", "and", "little else says a document"]


def tiny(architecture):
    """With weights of spread 0.3, so that what a place sees shows in its logits."""
    torch.manual_seed(0)
    model = new_model(tiny_tokenizer(), architecture, **SIZES, **FIELDS[architecture])
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.tie_weights()
    return model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def folder(architecture, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp(architecture))
    LMTrainer(
        model=tiny(architecture),
        args=tiny_arguments(folder),
        processing_class=tiny_tokenizer(),
    ).save_model()
    return folder


def gradients(model, loss):
    """Of all weights that the loss depends on, in one row."""
    parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


def loss_alone(model, documents):
    """The token mean over documents that are read one by one."""
    count = sum(len(document) - 1 for document in documents)
    losses = [
        next_token_loss(model(input_ids=ids, use_cache=False), ids, count)
        for ids in (torch.tensor([document]) for document in documents)
    ]
    return torch.stack(losses).sum()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_read_as_alone(architecture, attention):
    model = tiny(architecture)
    model.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(1)
    lengths = [(9, 30, 5), (20, 24)]
    documents = [
        [torch.randint(3, 300, (length,), generator=generator).tolist() for length in row]
        for row in lengths
    ]
    rows = [
        {
            "input_ids": sum(row, []),
            "labels": sum(([IGNORED, *document[1:]] for document in row), []),
            "position_ids": sum((list(range(len(document))) for document in row), []),
        }
        for row in documents
    ]
    batch = collate_rows(rows)
    labels = batch.pop("labels")
    packed = next_token_loss(model(**batch, use_cache=False), labels)
    alone = loss_alone(model, sum(documents, []))
    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
    assert difference(gradients(model, packed), gradients(model, alone)) < 1e-5
    assert settle_packing(model, None, default="wrapped") == "wrapped"


def test_a_step_is_that_of_the_token_mean(architecture, tmp_path):
    """Of rows of unlike length in micro-batches; with SGD the weights move by the gradient."""
    rows = pack_documents(DOCUMENTS.select(range(7)), tiny_tokenizer(), 64, packing="none")
    model = tiny(architecture)
    alone = loss_alone(model, rows["input_ids"])
    gradient = gradients(model, alone)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "optim": "sgd",
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "learning_rate": 1.0,
        "save_strategy": "no",
    }
    trainer = LMTrainer(
        model=model,
        args=tiny_arguments(tmp_path, **values),
        train_dataset=rows,
        data_collator=collate_rows,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    steps = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    moved = torch.cat([step.flatten() for step in steps])
    assert difference(moved, gradient) < 1e-4
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(alone.item(), rel=1e-5)
    assert ("router_loss" in log) == (architecture == "qwen3_moe")


def test_its_folder_gives_the_same_model_and_texts(architecture, folder):
    """Any tool loads what a run saves, and prompts of unlike length, padded on the left, are continued as each
    alone.
    """
    tokenizer = tiny_tokenizer()
    model = load_model(folder)
    assert not getattr(model.config, "output_router_logits", False)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
        expected = tiny(architecture).eval()(ids, use_cache=False).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = model(ids, use_cache=False).logits
    assert torch.equal(logits, expected)
    assert 0 < difference(half.float(), logits) < 0.1
    settings = {"do_sample": False, "max_new_tokens": 12}
    together = generate_texts(model, tokenizer, PROMPTS, **settings)
    alone = [generate_texts(model, tokenizer, [prompt], **settings)[0] for prompt in PROMPTS]
    assert together == alone
    [shown] = pipeline("text-generation", folder)("and", return_full_text=False, **settings)
    assert [shown["generated_text"]] == alone[1]


def continued(folder, architecture, **values):
    """Four steps, from the checkpoint that is in the folder, if there is one."""
    trainer = LMTrainer(
        model=tiny(architecture),
        args=tiny_arguments(folder, max_steps=4, **values),
        train_dataset=tiny_rows(),
        eval_dataset=tiny_rows().select(range(4)),
        data_collator=collate_rows,
        processing_class=tiny_tokenizer(),
    )
    run_training(trainer, newest_checkpoint(trainer.args))
    return trainer


@pytest.fixture(scope="module")
def whole(architecture, tmp_path_factory):
    return continued(tmp_path_factory.mktemp(architecture) / "whole", architecture)


def test_a_continued_run_equals_one_that_never_stopped(architecture, whole, tmp_path):
    folder = copied_run(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-4")
    trainer = continued(folder, architecture)
    assert losses(trainer) == losses(whole)
    expected = whole.model.state_dict()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_the_best_checkpoint_becomes_the_model(tmp_path):
    """Also where its file has other names than the model. It is the first: losses fall, and the
    greatest is asked for.
    """
    best = continued(
        tmp_path / "run",
        "qwen3_moe",
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        greater_is_better=True,
    )
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert best.state.best_model_checkpoint == str(checkpoint)
    expected = load_model(str(checkpoint)).state_dict()
    for name, weight in best.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_a_checkpoint_for_another_engine_has_the_models_names(architecture, whole, tmp_path):
    folder = copied_run(whole, tmp_path / "run") / "checkpoint-4"
    record = read_manifest(folder)
    rewritten = convert_checkpoint(folder, record, "FSDP", tiny_arguments(folder.parent))
    weights = torch.load(rewritten / "pytorch_model_fsdp.bin", weights_only=True)
    expected = whole.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    optimizer = torch.load(rewritten / "optimizer.bin", weights_only=True)
    assert optimizer["state"].keys() == dict(whole.model.named_parameters()).keys()


def test_lora_is_put_on_all_linear_layers_of_its_blocks(architecture, folder):
    args = AdapterArguments(model=folder, lora_r=2)
    model = load_for_training(args, tiny_tokenizer())
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    linear = {name.removesuffix(".weight") for name in hidden_matrices(tiny(architecture))}
    expected = {f"base_model.model.{name}" for name in linear if "experts" not in name}
    assert adapted == expected and len(adapted) >= 2 * 4


def test_muon_gets_the_matrices_of_its_blocks(architecture):
    model = tiny(architecture)
    blocks = model.transformer.h if architecture == "gpt2" else model.model.layers
    in_blocks = {id(p) for p in blocks.parameters() if p.dim() > 1}
    routers = {id(p) for name, p in model.named_parameters() if name.endswith("gate.weight")}
    optimizer = MuonForModel()(
        model,
        muon_learning_rate=0.02,
        muon_momentum=0.95,
        learning_rate=1e-3,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    by_muon = {
        id(param)
        for group in optimizer.param_groups
        if group["num_matrices"]
        for param in group["params"]
    }
    assert by_muon == in_blocks - routers
    ids = torch.arange(3, 43).reshape(2, 20)
    losses = []
    for _ in range(4):
        loss = next_token_loss(model(ids, use_cache=False), ids)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
