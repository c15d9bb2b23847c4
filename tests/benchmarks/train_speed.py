"""What a training step costs, side by side in one process: hfscale, plain Trainer, and a bare
PyTorch loop.

    make bench                          # or: python tests/benchmarks/train_speed.py --rounds 7
    --steps 8

Every side trains GPT-2 with 6 layers of width 384 on the same packed rows of 256 tokens, data
loading included. The sides take turns, round after round, since the machine's speed drifts; printed
are the medians of the rounds' ratios with their range. Absolute times of a shared CPU mean nothing
and are not printed.
"""

import argparse
import statistics
import tempfile
import time

import torch
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hfscale.data.packing import collate_rows, pack_splits
from hfscale.data.sources import load_documents
from hfscale.data.splits import split_documents
from hfscale.data.tokenizer import load_tokenizer
from hfscale.models import new_model
from hfscale.training.trainer import LMTrainer
from hfscale.training.training_args import training_arguments

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": 256}
BATCH_SIZE, LEARNING_RATE, WARM_UP = 4, 1e-4, 2
LIMITS = {
    "hfscale / bare loop, same precision": 1.10,
    "hfscale defaults / plain Trainer defaults": None,
}


class StepTimes(TrainerCallback):
    """Seconds from the end of one step to the end of the next: compute, data loading and
    bookkeeping.
    """

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def seconds_per_step(ends: list[float]) -> float:
    return statistics.median(
        b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)
    )


def time_trainer(trainer_class, model, args, rows, **kwargs) -> float:
    times = StepTimes()
    trainer = trainer_class(model=model, args=args, train_dataset=rows, callbacks=[times], **kwargs)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return seconds_per_step(times.ends)


def time_bare_loop(model, rows, steps: int, bf16: bool) -> float:
    """The shortest honest loop: the same rows, model, optimizer, clipping and precision."""
    model.loss_type = "ForCausalLM"
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    loader = DataLoader(rows, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate_rows)
    ends = []
    model.train()
    for _, batch in zip(range(steps), loader, strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return seconds_per_step(ends)


def one_round(rows, tokenizer, steps: int, folder: str) -> dict[str, float]:
    common = {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }
    ours = {
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    args = training_arguments(common, width=SHAPE["n_embd"])
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SHAPE))  # gelu_new, dropout 0.1
    seconds = {
        "hfscale": time_trainer(
            LMTrainer, new_model(tokenizer, **SHAPE, **ours), args, rows, data_collator=collate_rows
        ),
        "bare": time_bare_loop(new_model(tokenizer, **SHAPE, **ours), rows, steps, bf16=args.bf16),
        "plain": time_trainer(
            Trainer,
            plain,
            TrainingArguments(use_cpu=True, **common),
            rows.remove_columns(["position_ids"]),
        ),
    }
    return {
        "hfscale / bare loop, same precision": seconds["hfscale"] / seconds["bare"],
        "hfscale defaults / plain Trainer defaults": seconds["hfscale"] / seconds["plain"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    documents = split_documents(
        load_documents("embedded:python-docs"),
        split_by="document",
        validation_fraction=0.05,
        seed=0,
    )
    tokenizer = load_tokenizer("train:8192", documents["train"])
    rows = pack_splits(documents, tokenizer, SHAPE["n_positions"])["train"]
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments({"output_dir": folder}, width=SHAPE["n_embd"])
        LIMITS["hfscale defaults / plain Trainer defaults"] = 0.48 if args.bf16 else 0.92
        print(
            f"precision of hfscale's defaults here: {'bf16 autocast' if args.bf16 else 'float32'}"
        )
        one_round(
            rows, tokenizer, options.steps, folder
        )  # kernels are chosen and compiled on first use
        rounds = [one_round(rows, tokenizer, options.steps, folder) for _ in range(options.rounds)]
    for name, limit in LIMITS.items():
        ratios = sorted(r[name] for r in rounds)
        verdict = "within" if statistics.median(ratios) <= limit else "ABOVE"
        print(
            f"{name}: {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f} in "
            f"{len(ratios)} rounds; {verdict} the limit {limit})"
        )


if __name__ == "__main__":
    main()
