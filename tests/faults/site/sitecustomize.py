"""For ranks that a fault is tried on: FSDP2 shards on a CPU too.

Python imports this module at its start because its folder is on the path of such ranks.
"""

import os
import sys
from pathlib import Path

if "RANK" in os.environ and os.environ.get("ACCELERATE_USE_FSDP") == "true":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import fsdp_on_cpu

    fsdp_on_cpu.install()

if "HFSCALE_FAULTS" in os.environ:
    from tests.faults import inside

    inside.install()
