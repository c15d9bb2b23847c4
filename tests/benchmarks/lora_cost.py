"""What training an adapter costs beside training all weights: CPU seconds of a step, memory, and
what is saved.

    python tests/benchmarks/lora_cost.py

GPT-2 small's shape with random weights, rows of 256 tokens, float32 (a tenth of its width and rows
of 64 in the small version). Each side trains in a process of its own, and they take turns. Memory:
the highest resident size beyond that of the libraries, loading included. QLoRA where bitsandbytes
is installed.
"""

import json
import resource
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from measure import Row, Side, Turns, compare, exactly, once, take_turns
from running import run_alone

ALL = "all weights"
SIDES = {ALL: {}, "LoRA": {"lora_r": 16}, "DoRA": {"lora_r": 16, "use_dora": True}}
if find_spec("bitsandbytes"):
    SIDES["QLoRA"] = {"lora_r": 16, "load_in_4bit": True}
FULL = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 256, "vocab_size": 50257}
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 128, "n_positions": 64, "vocab_size": 1024}
BATCH_SIZE = 2
NUM_ROWS = 64
WARM_UP_STEPS = 3


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """Rows of the table for each kind of adapter."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = SMALL if is_small else FULL
    GPT2LMHeadModel(
        GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shape)
    ).save_pretrained(folder / "base")
    ids = np.random.default_rng(0).integers(
        shape["vocab_size"], size=(NUM_ROWS, shape["n_positions"]), dtype=np.int32
    )
    np.save(folder / "rows.npy", ids)
    started = {}
    for name in SIDES:
        started[name] = Side([sys.executable, str(Path(__file__)), "side", name], folder, name)
        started[name].run(WARM_UP_STEPS)
    steps = 10 if is_small else 1
    calls = {name: lambda side=side: side.run(steps) for name, side in started.items()}
    costs = take_turns(calls, rounds or (6 if is_small else 8))
    for side in started.values():
        side.end()
    facts = {name: json.loads((folder / f"{name}.json").read_text()) for name in SIDES}
    rows = []
    for name in list(SIDES)[1:]:
        whole = facts[ALL]
        fact = facts[name]
        rows.append(compare(f"{name}: step / all weights", name, ALL, costs))
        rows.append(
            once(f"{name}: memory / all weights", fact["memory_bytes"] / whole["memory_bytes"])
        )
        rows.append(
            exactly(
                f"{name}: trained / all weights",
                fact["trained"] / whole["trained"],
                f"{fact['trained']:,} parameters",
            )
        )
    return rows


def train(name: str) -> None:
    """A side, in its own process; what is known after its first steps is in a JSON file."""
    turns = Turns()
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    from hfscale.adapters import load_for_training
    from hfscale.arguments import AdapterArguments
    from hfscale.data.packing import collate_rows
    from hfscale.models import count_trained
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import training_arguments

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = load_for_training(AdapterArguments(model="base", **SIDES[name]), None)
    ids = np.load("rows.npy")
    positions = [np.arange(ids.shape[1])] * len(ids)
    rows = Dataset.from_dict(
        {"input_ids": list(ids), "labels": list(ids), "position_ids": positions}
    )
    values = {
        "output_dir": name,
        "max_steps": 10**6,
        "per_device_train_batch_size": BATCH_SIZE,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }

    class EndOfStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == WARM_UP_STEPS:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                fact = {
                    "memory_bytes": 1024 * (peak - before),
                    "trained": count_trained(trainer.model),
                }
                Path(f"{name}.json").write_text(json.dumps(fact))
            turns.step()

    trainer = LMTrainer(
        model=model,
        args=training_arguments(values, width=ids.shape[1]),
        train_dataset=rows,
        data_collator=collate_rows,
        callbacks=[EndOfStep()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        train(sys.argv[2])
    else:
        run_alone(benchmark, __doc__)
