"""For ranks that a fault is tried on: FSDP2 shards on a CPU too, and DeepSpeed compiles nothing.

Python imports this module at its start because its folder is on the path of such ranks.
"""

import os
import sys
from pathlib import Path

if "RANK" in os.environ:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        sys.path.insert(0, str(Path(__file__).parents[2]))
        import fsdp_on_cpu

        fsdp_on_cpu.install()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        # A shared-memory all-reduce takes half a minute of g++; plain gloo will do.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

if "HFSCALE_FAULTS" in os.environ:
    from tests.faults import inside

    inside.install()
