"""One of two ranks over gloo: each case ends on both with the same error, which it prints.

python tests/ranks_that_differ.py FOLDER_OF_RANK_0 FOLDER_OF_RANK_1
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from hfscale.process import from_main_rank
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.guards import check_finite
from hfscale.training.ranks import check_same
from tests.tiny_runs import tiny_arguments


def fail():
    raise ValueError("on rank 0 alone")


def with_weights(**tensors: torch.Tensor) -> SimpleNamespace:
    """As much of a trainer as `check_finite` looks at."""
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(name, torch.nn.Parameter(tensor))
    return SimpleNamespace(model=model, state=SimpleNamespace(global_step=7))


def main() -> None:
    state = PartialState(cpu=True)
    rank = state.process_index
    os.chdir(sys.argv[1 + rank])
    values = torch.ones(4)
    values[3] = float("inf")  # in the shard of rank 1
    mesh = init_device_mesh("cpu", (2,))
    fsdp2 = with_weights(good=torch.ones(2), bad=distribute_tensor(values, mesh, [Shard(0)]))
    zero3 = with_weights(bad=torch.ones(0))
    zero3.model.bad.ds_tensor = values.chunk(2)[rank]
    cases = {
        "equal": lambda: check_same({"text": "a"}, "never"),
        "other text": lambda: check_same({"text": "ab"[rank]}, "read the same"),
        "failure": lambda: from_main_rank(fail),
        "told": lambda: from_main_rank(lambda: f"chosen by rank {rank}"),
        "fsdp2": lambda: check_finite(fsdp2),
        "zero3": lambda: check_finite(zero3),
        "resume": lambda: newest_checkpoint(
            tiny_arguments("run", max_steps=2, use_cpu=True, per_device_train_batch_size=2)
        ),
    }
    for name, case in cases.items():
        try:
            result = case()
        except (Exception, SystemExit) as error:
            result = f"{type(error).__name__}: {error}"
        Path(f"{name}.txt").write_text(str(result))
    state.destroy_process_group()


main()
