"""Generated answers at each evaluation: in the metrics, the logs and the trackers, and no change to
the training.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hfscale.arguments import TaskArguments
from hfscale.data.packing import collate_rows
from hfscale.data.tokenizer import train_bpe
from hfscale.tasks.measures import GenerationMetrics, load_answer_metrics, measure_answers
from hfscale.tasks.rows import supervised_rows
from hfscale.training.trainer import LMTrainer
from hfscale.training.training_args import training_arguments

ROOT = Path(__file__).parents[2]
TASK = TaskArguments(metrics=["bleu", "exact_match"], max_new_tokens=8)
ROWS = [
    {
        "prompt": f"number {i}: ",
        "target": f"is {i % 7} {i % 5}",
        "references": [f"is {i % 7} {i % 5}"],
    }
    for i in range(60)
]


def make_trainer(folder: Path, callback: bool, width: int = 32, **arguments) -> LMTrainer:
    set_seed(0)
    tokenizer = train_bpe(
        Dataset.from_dict({"text": [row["prompt"] + row["target"] for row in ROWS]}), 300
    )
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=1,
            n_head=2,
            n_embd=width,
            n_positions=48,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    examples = DatasetDict(
        train=Dataset.from_list(ROWS[:40]), validation=Dataset.from_list(ROWS[40:])
    )
    rows = supervised_rows(examples, tokenizer, 48, "bfd")
    args = training_arguments(
        {
            "output_dir": str(folder),
            "max_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 3,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "learning_rate": 1e-3,
        }
        | arguments,
        width=width,
    )
    trainer = LMTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collate_rows,
        processing_class=tokenizer,
    )
    if callback:
        trainer.add_callback(
            GenerationMetrics(
                trainer, examples["validation"], TASK, load_answer_metrics(TASK), max_examples=5
            )
        )
    return trainer


def test_metrics_and_texts_are_logged_and_training_is_unchanged(tmp_path):
    trainer, plain = (make_trainer(tmp_path / str(with_it), with_it) for with_it in (True, False))
    callback = trainer.callback_handler.callbacks[-1]
    assert len(callback.examples) == 5
    for each in (trainer, plain):
        set_seed(1)
        each.train()
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    metrics = trainer.evaluate()
    expected, answers = measure_answers(
        trainer, callback.examples, TASK, load_answer_metrics(TASK), "eval"
    )
    assert (
        metrics.items() >= expected.items()
        and "eval_bleu_ci95" in expected
        and "eval_loss" in metrics
    )
    bleu = [
        (log["step"], log["eval_bleu"]) for log in trainer.state.log_history if "eval_bleu" in log
    ]
    assert [step for step, _ in bleu] == [2, 4, 4] and bleu[-1][1] == metrics["eval_bleu"]
    shown = [log["eval_samples"] for log in trainer.state.log_history if "eval_samples" in log]
    assert (
        len(shown) == 3
        and answers[0] in shown[-1][0]
        and callback.examples[0]["target"] in shown[-1][0]
    )
    json.dumps(trainer.state.log_history)


def test_best_checkpoint_by_generated_text(tmp_path):
    trainer = make_trainer(
        tmp_path / "run",
        True,
        save_strategy="steps",
        save_steps=2,
        metric_for_best_model="bleu",
        greater_is_better=True,
        load_best_model_at_end=True,
    )
    trainer.train()
    values = [log["eval_bleu"] for log in trainer.state.log_history if "eval_bleu" in log]
    assert trainer.state.best_metric == max(values)


def test_tensorboard_gets_numbers_and_texts(tmp_path):
    trainer = make_trainer(tmp_path / "run", True, report_to=["tensorboard"])
    trainer.train()
    [folder] = (tmp_path / "run" / "runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    assert [event.step for event in events.Scalars("eval/bleu")] == [2, 4]
    texts = events.Tensors("eval/samples/text_summary")
    assert [event.step for event in texts] == [2, 4]
    assert "--- reference: is" in texts[-1].tensor_proto.string_val[0].decode()


def train_with_wandb() -> None:
    """What was logged at each evaluation, in a process of its own: wandb keeps state in it."""
    import wandb

    notes, seen, log = Path(os.environ["NOTES"]), [], wandb.Run.log
    wandb.Run.log = lambda run, data, **more: (seen.append(data), log(run, data, **more))[1]
    make_trainer(notes / "run", True, report_to=["wandb"]).train()
    tables = [row for row in seen if "eval/samples" in row]
    (notes / "wandb.json").write_text(
        json.dumps(
            {
                "steps": [row["train/global_step"] for row in tables],
                "first_cell": tables[-1]["eval/samples"].data[0][0],
                "has_metric": any("eval/bleu" in row for row in seen),
            }
        )
    )
    wandb.finish()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra hfscale[wandb] is missing")
def test_wandb_gets_a_table(tmp_path, run_warm):
    environment = {
        **os.environ,
        "NOTES": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
    }
    command = [sys.executable, str(Path(__file__)), "wandb"]
    result = run_warm(command, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    notes = json.loads((tmp_path / "wandb.json").read_text())
    assert notes["steps"] == [2, 4] and notes["has_metric"]
    assert "--- reference: is" in notes["first_cell"]


def train_as_rank() -> None:
    """One rank of a launch: the metrics of the last evaluation, and whether the weights were
    shards.
    """
    from torch.distributed.tensor import DTensor

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        import fsdp_on_cpu

        fsdp_on_cpu.install()
    trainer = make_trainer(
        Path(os.environ["NOTES"]) / "run", True, width=192, max_steps=2, learning_rate=0.0
    )
    trainer.train()
    metrics = trainer.evaluate()
    parameters = list(trainer.model.parameters())
    notes = {
        "metrics": {
            name: value for name, value in metrics.items() if "bleu" in name or "match" in name
        },
        "sharded": any(
            isinstance(p, DTensor) or hasattr(p, "ds_tensor") and p.ds_tensor.numel() < p.ds_numel
            for p in parameters
        ),
        "samples": trainer.callback_handler.callbacks[-1].samples,
    }
    (Path(os.environ["NOTES"]) / f"{trainer.args.process_index}.json").write_text(json.dumps(notes))
    torch.distributed.is_initialized() and torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        "cpu_2proc",
        "fsdp2",
        pytest.param(
            "zero3",
            marks=pytest.mark.skipif(
                find_spec("deepspeed") is None, reason="the extra hfscale[deepspeed] is missing"
            ),
        ),
    ],
)
def test_all_ranks_answer_together(tmp_path, config, run_warm):
    """Two ranks, 5 examples in batches of 3: one rank has none left, and sharded weights need both
    at every step.
    """
    found = []
    for name, processes in (("cpu", 1), (config, 2)):
        notes = tmp_path / name
        notes.mkdir()
        env = {
            **os.environ,
            "NOTES": str(notes),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        launcher = [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / f"accelerate_configs/{name}.yaml"),
            *(["--num_processes", "2"] if processes == 2 else []),
            str(Path(__file__)),
        ]
        result = run_warm([sys.executable, *launcher], env=env, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        ranks = [json.loads(path.read_text()) for path in sorted(notes.glob("*.json"))]
        assert len(ranks) == processes and all(
            rank["metrics"] == ranks[0]["metrics"] for rank in ranks
        )
        found.append(ranks[0])
    assert found[1]["sharded"] == (config != "cpu_2proc")
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["samples"] == found[1]["samples"]


if __name__ == "__main__":
    train_with_wandb() if sys.argv[1:] == ["wandb"] else train_as_rank()
