"""recipes/pretrain.py as one rank of a launch, which also notes how it was trained: in
$RANK_NOTES/notes.json the losses, seconds of the steps, the peak of memory, and what wraps the
model.

The part `sharding` starts it through `hfscale tests/gpu/rank.py`; the recipe runs unchanged.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hfscale.process import run
from recipes.pretrain import PretrainArguments, main


@dataclass
class RankArguments(PretrainArguments):
    """The recipe's own, declared here because hfscale checks the arguments of the script it
    launches.
    """


def watch() -> None:
    """Add a callback to every Trainer that writes the notes when its training ends."""
    import gc

    import torch
    from transformers import Trainer, TrainerCallback, trainer

    class Watch(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

        def on_train_end(self, args, state, control, **kwargs):
            on_gpu = args.device.type == "cuda"
            running = next(item for item in gc.get_objects() if isinstance(item, Trainer))
            notes = {
                "losses": [log["loss"] for log in state.log_history if "loss" in log],
                "ends": self.ends,
                "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
                "wrapper": type(running.model_wrapped).__name__,
                "device": args.device.type,
            }
            Path(os.environ["RANK_NOTES"], "notes.json").write_text(json.dumps(notes))

    trainer.DEFAULT_CALLBACKS.append(Watch)


def shard_on_cpu() -> None:
    """For a trial: accelerate shards on GPUs alone."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        from tests.fsdp_on_cpu import install

        install()


if __name__ == "__main__":
    import torch

    if not torch.cuda.is_available():
        shard_on_cpu()
    watch()
    run(main)
