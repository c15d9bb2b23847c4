"""The rate that is suggested is the one that is trained with, and it serves over widths."""

import re

import pytest

from hfscale.arguments import OptimizerArguments
from hfscale.config import parse_args
from hfscale.planning.learning_rate import suggested_learning_rates
from recipes import finetune_task, plan, pretrain, quickstart

ADAMW, MUON = OptimizerArguments(), OptimizerArguments(optimizer="muon")


@pytest.mark.parametrize(
    ("width", "rate"), [(64, 6.3e-3), (128, 3.1e-3), (256, 1.6e-3), (768, 5.2e-4), (1600, 2.5e-4)]
)
def test_the_rate_of_adamw_falls_as_the_width_grows(width, rate):
    assert suggested_learning_rates(width, ADAMW, {}) == {"learning_rate": rate}


def test_the_rates_beside_muon_are_those_of_any_width():
    rates = {"learning_rate": 6e-3, "muon_learning_rate": 0.03}
    for width in (64, 768):
        assert suggested_learning_rates(width, MUON, {}) == rates


@pytest.mark.parametrize("optim", ["sgd", "adagrad", "rmsprop", "adafactor", "lion_32bit"])
def test_nothing_is_suggested_for_what_was_not_measured(optim):
    assert suggested_learning_rates(256, ADAMW, {"optim": optim}) == {}


def shown_rates(words: str, capsys) -> dict[str, float]:
    """The learning rates that a plan names."""
    plan.main(words.split())
    lines = re.findall(r"^((?:suggested|configured) \w+) +(\S+)$", capsys.readouterr().out, re.M)
    return {name: float(rate) for name, rate in lines}


def trained_rate(recipe, arguments: type, words: str, tmp_path) -> float:
    argv = [*words.split(), "--output_dir", str(tmp_path / "run")]
    args = parse_args(arguments, argv, recipe=recipe.__file__)
    return recipe.check_arguments(args).learning_rate


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        ("--hidden_size 64 --num_attention_heads 2", {"suggested learning_rate": 6.3e-3}),
        (
            "--hidden_size 96 --num_attention_heads 2 --optim adamw_torch",
            {"suggested learning_rate": 4.2e-3},
        ),
        (
            "--hidden_size 64 --num_attention_heads 2 --optimizer muon",
            {"suggested learning_rate": 6e-3, "suggested muon_learning_rate": 0.03},
        ),
        (
            "--hidden_size 64 --num_attention_heads 2 --learning_rate 1e-3",
            {"suggested learning_rate": 6.3e-3, "configured learning_rate": 1e-3},
        ),
        (
            "--hidden_size 64 --num_attention_heads 2 --optimizer muon --muon_learning_rate 0.02",
            {
                "suggested learning_rate": 6e-3,
                "suggested muon_learning_rate": 0.03,
                "configured muon_learning_rate": 0.02,
            },
        ),
        ("--hidden_size 64 --num_attention_heads 2 --optim sgd", {}),
    ],
)
def test_plan_shows_the_rate_that_pretrain_takes(words, rates, capsys, tmp_path):
    assert shown_rates(f"--recipe pretrain --vocab_size 300 {words}", capsys) == rates
    upstreams = 5e-5
    used = rates.get("configured learning_rate", rates.get("suggested learning_rate", upstreams))
    assert trained_rate(pretrain, pretrain.PretrainArguments, words, tmp_path) == used


def test_a_task_from_random_weights_gets_it_too(capsys, tmp_path):
    words = "--model new --hidden_size 64 --num_attention_heads 2"
    shown = shown_rates(f"--recipe finetune_task {words}", capsys)
    assert shown == {"suggested learning_rate": 6.3e-3}
    arguments = finetune_task.FinetuneTaskArguments
    words += " --task_source embedded:arithmetic"
    assert trained_rate(finetune_task, arguments, words, tmp_path) == 6.3e-3


def test_a_checkpoint_keeps_its_own_default(capsys, tmp_path):
    """The rule was measured with new weights alone."""
    assert shown_rates("--model gpt2", capsys) == {}
    arguments = finetune_task.FinetuneTaskArguments
    words = "--model gpt2 --task_source embedded:arithmetic"
    assert trained_rate(finetune_task, arguments, words, tmp_path) == 5e-5


def test_another_architecture_takes_the_same_rates(capsys, tmp_path):
    words = "--architecture llama --hidden_size 64 --num_attention_heads 2"
    shown = shown_rates(f"--recipe pretrain --vocab_size 300 {words}", capsys)
    assert shown == {"suggested learning_rate": 6.3e-3}
    assert trained_rate(pretrain, pretrain.PretrainArguments, words, tmp_path) == 6.3e-3


def test_quickstart_takes_the_same_where_its_weights_are_new():
    for words, rate in (
        ("--optim adamw_torch", 1.6e-3),
        ("--optimizer muon", 6e-3),
        ("--learning_rate 1e-3", 1e-3),
        ("--model gpt2", 5e-5),
    ):
        args = parse_args(quickstart.QuickstartArguments, words.split(), recipe=quickstart.__file__)
        assert quickstart.training_values(args)["learning_rate"] == rate


@pytest.mark.slow(seconds=50)
def test_the_rule_serves_over_three_widths(tmp_path):
    """Beside the rates of a width four times as large (1 / 4) or as small (4), which a rule without
    the width, or with a wrong power of it, would take at one of the ends.
    """
    from hfscale.data.embedded import load_embedded
    from hfscale.data.packing import pack_documents
    from hfscale.data.tokenizer import load_tokenizer

    documents = load_embedded("embedded:python-prose").select(range(60))
    tokenizer = load_tokenizer("char", documents)
    rows = pack_documents(documents, tokenizer, 64).shuffle(seed=0)
    for width, factors in ((32, (1 / 4, 1)), (64, (1 / 4, 1, 4)), (128, (1, 4))):
        losses = {
            factor: loss_at(width, factor, rows, tokenizer, tmp_path / f"{width}-{factor}")
            for factor in factors
        }
        assert losses[1] < min(losses.values()) + 0.01, (width, losses)


def loss_at(width: int, factor: float, rows, tokenizer, folder) -> float:
    """On held-out rows after 400 steps of AdamW, at so many times the suggested rate."""
    from transformers import set_seed

    from hfscale.data.packing import collate_rows
    from hfscale.new_models import new_model
    from hfscale.training.running import run_training
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import training_arguments, with_learning_rate

    values = {
        "output_dir": str(folder),
        "max_steps": 400,
        "warmup_steps": 100,
        "per_device_train_batch_size": 12,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    values = with_learning_rate(values, width=width, optimizer=ADAMW)
    values["learning_rate"] *= factor
    set_seed(0)
    trainer = LMTrainer(
        model=new_model(
            tokenizer,
            num_hidden_layers=1,
            num_attention_heads=width // 32,
            hidden_size=width,
            max_position_embeddings=64,
        ),
        args=training_arguments(values, width=width),
        train_dataset=rows.select(range(128, len(rows))),
        eval_dataset=rows.select(range(128)),
        data_collator=collate_rows,
        processing_class=tokenizer,
    )
    run_training(trainer, None)
    return trainer.evaluate()["eval_loss"]
