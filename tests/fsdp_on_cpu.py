"""Lets accelerate shard with FSDP2 on CPU ranks, for tests only.

accelerate turns a distributed_type FSDP into plain data parallelism on a CPU, so a test that only
ran such a config would prove nothing. `install()` makes AcceleratorState take the FSDP branch there
too, over gloo.
"""


def install() -> None:
    """Patch accelerate in this process; call it before TrainingArguments or Accelerator are
    made.
    """
    from accelerate import DistributedType
    from accelerate.state import AcceleratorState, PartialState

    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init
