"""What every part imports, once for all of them, in the process that theirs are forked from.

Whoever forks must not have asked the GPU anything, since CUDA does not survive a fork.
bitsandbytes and DeepSpeed do when they are imported, as other libraries do where they find them;
so both are hidden here. hfscale shows bitsandbytes again to who asks for 4-bit weights; DeepSpeed
trains in launches, which import for themselves.
"""

import sys
from typing import Any

from hfscale.process import hide_bitsandbytes

hide_bitsandbytes()
modules: dict[str, Any] = sys.modules
modules.setdefault("deepspeed", None)

import tests.gpu.training  # noqa: E402, F401 - for what it brings along
