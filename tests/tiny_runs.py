"""A model of a thousand weights that trains for six steps in a second, with dropout."""

import shutil
from functools import cache
from pathlib import Path

from datasets import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from hfscale.data.packing import collate_rows, pack_documents
from hfscale.data.tokenizer import train_bpe
from hfscale.new_models import new_model
from hfscale.training.running import run_training
from hfscale.training.trainer import LMTrainer
from hfscale.training.training_args import training_arguments

DOCUMENTS = Dataset.from_dict(
    {"text": [f"document {i} says {i * i} and little else" for i in range(60)]}
)


@cache
def tiny_tokenizer():
    return train_bpe(DOCUMENTS, 300)


@cache
def tiny_rows() -> Dataset:
    return pack_documents(DOCUMENTS, tiny_tokenizer(), 16)


def tiny_arguments(folder, **values) -> TrainingArguments:
    return training_arguments(
        {
            "output_dir": str(folder),
            "max_steps": 6,
            "save_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "disable_tqdm": True,
            "learning_rate": 1e-2,
            "bf16": False,
            **values,
        },
        width=32,
    )


def tiny_trainer(folder, callbacks=(), **values) -> LMTrainer:
    set_seed(0)
    model = new_model(
        tiny_tokenizer(),
        n_layer=1,
        n_head=2,
        n_embd=32,
        n_positions=16,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
    )
    return LMTrainer(
        model=model,
        args=tiny_arguments(folder, **values),
        train_dataset=tiny_rows(),
        eval_dataset=tiny_rows().select(range(8)),
        data_collator=collate_rows,
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
    )


def finished_run(folder, **values) -> LMTrainer:
    trainer = tiny_trainer(folder, **values)
    run_training(trainer, None)
    return trainer


def copied_run(trainer: Trainer, place: Path) -> Path:
    return Path(shutil.copytree(trainer.args.output_dir, place))


def losses(trainer: Trainer) -> dict[int, float]:
    return {log["step"]: log["loss"] for log in trainer.state.log_history if "loss" in log}
