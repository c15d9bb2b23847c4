"""The sides of `train_speed.py` that run in hfscale's own environment, each in its own process.

    python tests/benchmarks/training_sides.py SIDE shape.json rows.npy

All train on the same rows of a text, each a single document, with the same batch size and learning
rate, clip gradients at 1 and log a loss every `logging_steps` steps.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lean_gpt import LeanGPT, make_optimizer, train_step
from measure import Turns

LEARNING_RATE = 1e-3
WITHOUT_END = 10**6  # steps; the process is ended from outside


def main() -> None:
    side, shape_file, rows_file = sys.argv[1:]
    turns = Turns()
    shape = SimpleNamespace(**json.loads(Path(shape_file).read_text()))
    SIDES[side](shape, np.load(rows_file), turns)


def train_lean(shape, rows: np.ndarray, turns: Turns) -> None:
    """The lean GPT: the leanest loop on the leanest model."""
    torch.manual_seed(0)
    model = LeanGPT(shape.vocab_size, shape.n_layer, shape.n_head, shape.n_embd, shape.n_positions)
    optimizer = make_optimizer(model, LEARNING_RATE)
    ids = torch.from_numpy(rows.astype(np.int64))
    for step, order in enumerate(batches_of(len(rows), shape.batch_size)):
        loss = train_step(model, optimizer, ids[order], shape.bf16)
        if step % shape.logging_steps == 0:
            loss.item()
        turns.step()


def train_bare(shape, rows: np.ndarray, turns: Turns) -> None:
    """The shortest loop on the model that hfscale trains: same rows, optimizer and precision."""
    from torch.utils.data import DataLoader

    from hfscale.data.packing import collate_rows

    model = new_gpt2(shape)
    model.loss_type = "ForCausalLM"
    optimizer = make_optimizer(model, LEARNING_RATE)
    loader = DataLoader(
        dataset_of(rows), shape.batch_size, shuffle=True, drop_last=True, collate_fn=collate_rows
    )
    model.train()
    step = 0
    while True:
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=shape.bf16):
                loss = model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % shape.logging_steps == 0:
                loss.item()
            step += 1
            turns.step()


def train_hfscale(shape, rows: np.ndarray, turns: Turns) -> None:
    """As `recipes/pretrain.py` trains, with its guards, signals and TensorBoard."""
    from hfscale.data.packing import collate_rows
    from hfscale.training.running import run_training
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import training_arguments

    values = common_arguments(shape) | {"bf16": shape.bf16}
    trainer = LMTrainer(
        model=new_gpt2(shape),
        args=training_arguments(values, width=shape.n_embd),
        train_dataset=dataset_of(rows, shape.documents_per_row),
        data_collator=collate_rows,
    )
    follow(trainer, turns)
    run_training(trainer, None)


def train_plain(shape, rows: np.ndarray, turns: Turns) -> None:
    """`Trainer` as it comes, on `GPT2Config()` of the same shape: float32, dropout 0.1."""
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(
        model=default_gpt2(shape),
        args=TrainingArguments(use_cpu=True, report_to="none", **common_arguments(shape)),
        train_dataset=dataset_of(rows).remove_columns("position_ids"),
    )
    follow(trainer, turns)
    trainer.train()


def train_trl(shape, rows: np.ndarray, turns: Turns, **arguments: Any) -> None:
    """TRL's SFT trainer on `GPT2Config()` of the same shape, its rows tokenized beforehand."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        use_cpu=True,
        report_to="none",
        max_length=shape.n_positions,
        bf16=shape.bf16,
        **common_arguments(shape),
        **arguments,
    )
    trainer = SFTTrainer(
        model=default_gpt2(shape),
        args=args,
        train_dataset=dataset_of(rows).select_columns("input_ids"),
        processing_class=some_tokenizer(shape.vocab_size),
    )
    follow(trainer, turns)
    trainer.train()


def train_trl_without_checkpointing(shape, rows: np.ndarray, turns: Turns) -> None:
    """TRL with the setting that costs it most time turned off."""
    train_trl(shape, rows, turns, gradient_checkpointing=False)


SIDES = {
    "hfscale": train_hfscale,
    "bare": train_bare,
    "lean": train_lean,
    "plain": train_plain,
    "trl": train_trl,
    "trl_without_checkpointing": train_trl_without_checkpointing,
}


def common_arguments(shape) -> dict[str, Any]:
    return {
        "output_dir": "run",
        "max_steps": WITHOUT_END,
        "per_device_train_batch_size": shape.batch_size,
        "learning_rate": LEARNING_RATE,
        "logging_steps": shape.logging_steps,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def follow(trainer, turns: Turns) -> None:
    """Let each step of a Trainer end a step of the turns; no losses are printed."""
    from transformers import PrinterCallback, TrainerCallback

    class EndOfStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            turns.step()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(EndOfStep())


def new_gpt2(shape):
    """The model that hfscale makes: GPT-2 with a fused GELU and without dropout."""
    from hfscale.new_models import new_model

    torch.manual_seed(0)
    return new_model(some_tokenizer(shape.vocab_size), **sizes(shape))


def default_gpt2(shape):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=shape.vocab_size, bos_token_id=0, eos_token_id=0, **sizes(shape))
    )


def sizes(shape) -> dict[str, int]:
    return {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "n_positions")}


def some_tokenizer(vocab_size: int):
    """Of so many tokens; it is never asked to tokenize."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {str(i): i for i in range(vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="0", eos_token="0", pad_token="0"
    )


def dataset_of(rows: np.ndarray, documents_per_row: int = 1):
    """Rows as `pack_documents` makes them, on disk; all but the last token, which is the next
    row's first.
    """
    from datasets import Dataset, Features, List, Value

    ids = rows[:, :-1]
    length = ids.shape[1]
    positions = np.arange(length, dtype=np.int32) % (length // documents_per_row)
    features = Features(
        {
            name: List(Value("int32"), length=length)
            for name in ("input_ids", "labels", "position_ids")
        }
    )
    columns = {
        "input_ids": list(ids),
        "labels": list(ids),
        "position_ids": [positions] * len(ids),
    }
    Dataset.from_dict(columns, features=features).save_to_disk("rows")
    return Dataset.load_from_disk("rows")


def batches_of(num_rows: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Indices of rows, shuffled at each pass."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(num_rows, generator=generator)
        yield from order[: num_rows - num_rows % batch_size].split(batch_size)


if __name__ == "__main__":
    main()
