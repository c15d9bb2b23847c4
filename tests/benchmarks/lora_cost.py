"""What training an adapter costs beside training all weights: memory and step time, as ratios.

    python tests/benchmarks/lora_cost.py --rounds 3 --steps 6

GPT-2 small's shape with random weights, rows of 256 tokens. Time: the sides take turns in one
process, each round in another order; medians of the rounds' ratios with their range, of wall time
and of CPU time, which depends less on who else uses the machine. Memory: each side in a process of
its own, the highest resident memory after the libraries are imported, loading included. Also
printed: what is trained and what a saved checkpoint weighs. QLoRA where bitsandbytes is installed.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from train_speed import seconds_per_step
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainerCallback

from hfscale.adapters import load_for_training
from hfscale.arguments import AdapterArguments
from hfscale.data.packing import collate_rows
from hfscale.models import count_trained
from hfscale.training.trainer import LMTrainer
from hfscale.training.training_args import training_arguments

LENGTH, BATCH_SIZE = 256, 2
SIDES = {"all weights": {}, "LoRA": {"lora_r": 16}, "DoRA": {"lora_r": 16, "use_dora": True}}
if find_spec("bitsandbytes"):
    SIDES["QLoRA"] = {"lora_r": 16, "load_in_4bit": True}
CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}


class StepEnds(TrainerCallback):
    """What each clock says at the end of every step."""

    def __init__(self):
        self.ends = {name: [] for name in CLOCKS}

    def on_step_end(self, args, state, control, **kwargs):
        for name, clock in CLOCKS.items():
            self.ends[name].append(clock())


def train(folder: str, side: str, steps: int) -> tuple[dict[str, float], LMTrainer]:
    """Median seconds of a step by each clock, and the trainer."""
    model = load_for_training(AdapterArguments(model=f"{folder}/base", **SIDES[side]), None)
    ids = torch.randint(50257, (64, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Dataset.from_list(
        [{"input_ids": r, "labels": r, "position_ids": list(range(LENGTH))} for r in ids]
    )
    args = training_arguments(
        {
            "output_dir": f"{folder}/{side}",
            "max_steps": steps,
            "per_device_train_batch_size": BATCH_SIZE,
            "bf16": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        },
        width=768,
    )
    times = StepEnds()
    trainer = LMTrainer(
        model=model, args=args, train_dataset=rows, data_collator=collate_rows, callbacks=[times]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {name: seconds_per_step(ends) for name, ends in times.ends.items()}, trainer


def measure_memory(folder: str, side: str, queue: multiprocessing.Queue) -> None:
    """Peak resident bytes beyond those after the imports; trained parameters; bytes of the saved
    weights.
    """
    before = psutil.Process().memory_info().rss
    _, trainer = train(folder, side, 4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trainer.save_model()
    saved = sum(path.stat().st_size for path in Path(folder, side).glob("*.safetensors"))
    queue.put((peak - before, count_trained(trainer.model), saved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(
            GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        ).save_pretrained(f"{folder}/base")
        for side in SIDES:
            queue = context.Queue()
            process = context.Process(target=measure_memory, args=(folder, side, queue))
            process.start()
            found[side] = queue.get()
            process.join()
            peak, trained, saved = found[side]
            whole = found["all weights"]
            print(
                f"{side}: trains {trained:,} parameters ({trained / whole[1]:.2%}), saves "
                f"{saved / 1e6:.1f} MB, memory {peak / whole[0]:.2f} of training all weights",
                flush=True,
            )
        sides, rounds = list(SIDES), []
        for turn in range(options.rounds):
            first = turn % len(sides)
            rounds.append(
                {
                    side: train(folder, side, options.steps)[0]
                    for side in sides[first:] + sides[:first]
                }
            )
    for side in sides[1:]:
        for clock in CLOCKS:
            ratios = sorted(r[side][clock] / r["all weights"][clock] for r in rounds)
            print(
                f"{side}: {clock} time of a step {statistics.median(ratios):.2f} (from "
                f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds) of training all "
                "weights"
            )


if __name__ == "__main__":
    main()
