"""recipes/pretrain.py as one rank of a launch, which also notes what the rank really is:
$RANK_NOTES/rank<n>.json; with $MEASURE_MEMORY it notes instead what its tensors took:
$RANK_NOTES/peak<n>.json.

The tests of launches start it through `hfscale tests/launched_pretrain.py`; the recipe runs
unchanged.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hfscale.process import run
from recipes.pretrain import PretrainArguments, main  # noqa: E402


@dataclass
class LaunchedArguments(PretrainArguments):
    """The recipe's own, declared here because hfscale checks the arguments of the script it
    launches.
    """


def watch() -> None:
    """Add a callback to every Trainer that writes down the rank's state."""
    import gc

    from transformers import Trainer, TrainerCallback, trainer

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            self.seen = describe(next(o for o in gc.get_objects() if isinstance(o, Trainer)))

        def on_train_end(self, args, state, control, **kwargs):
            path = Path(os.environ["RANK_NOTES"]) / f"rank{args.process_index}.json"
            path.write_text(json.dumps(self.seen | {"steps": state.global_step}))

    trainer.DEFAULT_CALLBACKS.append(Watch)


def describe(trainer) -> dict:
    """World size, wrapper, and how many numbers of the parameters and of AdamW's first moment lie
    in this rank.
    """
    model, engine = trainer.model, trainer.model_wrapped
    optimizer = trainer.optimizer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed wraps once more
    return {
        "world_size": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "wrapper": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage()
        if type(engine).__name__ == "DeepSpeedEngine"
        else None,
        "tensors": len(list(model.parameters())),
        "dtensors": sum(type(p).__name__ == "DTensor" for p in model.parameters()),
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters()),
        "local_parameters": sum(local_numel(p) for p in model.parameters()),
        "local_moments": sum(
            local_numel(s["exp_avg"]) for s in optimizer.state.values() if "exp_avg" in s
        ),
        "partition_gradients": getattr(trainer.optimizer.optimizer, "partition_gradients", None),
    }


def measure() -> None:
    """Note as `peak_bytes` the highest sum of live bytes that torch's CPU allocator reports until
    the training ends.

    The profiler sees every tensor's allocation and release from before the model is made.
    """
    import torch
    from transformers import TrainerCallback, trainer

    class Measure(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            profiler.stop()
            trace = Path(os.environ["RANK_NOTES"]) / f"trace{args.process_index}.json"
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
            # Not the sum of the events' own bytes: what gloo's threads release is only in the
            # running total.
            peak = max(
                event["args"]["Total Allocated"]
                for event in events
                if event.get("name") == "[memory]"
            )
            path = Path(os.environ["RANK_NOTES"]) / f"peak{args.process_index}.json"
            path.write_text(json.dumps({"peak_bytes": peak}))

    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    )
    profiler.start()
    trainer.DEFAULT_CALLBACKS.append(Measure)


def local_numel(tensor) -> int:
    """Numbers of a (possibly sharded) tensor held by this rank; 0 for a ZeRO-3 weight that is
    released.
    """
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel()


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        import fsdp_on_cpu

        fsdp_on_cpu.install()
    measure() if os.environ.get("MEASURE_MEMORY") else watch()
    run(main)
