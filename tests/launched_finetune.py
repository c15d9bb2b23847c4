"""recipes/finetune.py as one rank of a launch; FSDP shards on the CPU too (fsdp_on_cpu.py)."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from hfscale.process import run  # noqa: E402
from recipes.finetune import FinetuneArguments, main  # noqa: E402


@dataclass
class LaunchedArguments(FinetuneArguments):
    """The recipe's own, declared here because hfscale checks the arguments of the script it
    launches.
    """


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        import fsdp_on_cpu

        fsdp_on_cpu.install()
    run(main)
