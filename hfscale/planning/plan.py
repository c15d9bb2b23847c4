"""What fits on which accelerators, how fast, and what it costs, from the sizes alone."""

import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.config import pick_flags, shipped
from hfscale.planning.flops import Shape, training_flops
from hfscale.planning.memory import Sharding, Step, sharding_of, step_memory_bytes
from hfscale.process import InputError

RESERVED_BYTES = (
    10**9
)  # for the device's context, the communication library and the allocator's gaps: an assumption
# Between a GPU and its machine's memory, one direction (PCIe 4.0 x16 as reached): an assumption
HOST_LINK_GB_S = 25
ADAM_GB_S = {
    "cpu": 100,
    "nvme": 5,
}  # at which a machine's CPU works through offloaded state: an assumption
ADAM_BYTES = (
    28  # per parameter: weight and two moments read and written, a gradient read, in float32
)


MACHINE_GPUS = 8  # at most, where nothing is said of machines
NEAR = 1.02  # these formulas cannot tell times apart that differ by less


class Machines(NamedTuple):
    """Where the processes run, each on a GPU of its own, as many on every machine."""

    processes: int
    machines: int = 1
    network_gb_s: float = 12.5  # of one machine to the others, one direction


class Device(NamedTuple):
    """One device; rates as in accelerators.yaml."""

    memory_gb: float
    bf16_tflops: float | None
    fp16_tflops: float | None
    fp32_tflops: float
    bandwidth_gb_s: float
    link_gb_s: float
    power_w: float
    source: str

    def tflops(self, precision: str) -> float | None:
        """Peak rate of matrix products in bf16, fp16 or fp32; None: no matrix units for it."""
        return getattr(self, f"{precision}_tflops")


def find_accelerator(name: str, own: str | None = None) -> Device:
    """A known accelerator, or one of the file `own`; InputError for an unknown name or a file of
    another form.
    """
    import yaml

    table: dict[str, Any] = {}
    try:
        for path in [Path(__file__).with_name("accelerators.yaml"), *([Path(own)] if own else [])]:
            table |= dict(yaml.safe_load(path.read_text("utf-8")).items())
        found = Device(**table[name]) if name in table else None
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"--accelerators {own}: {name}: not of the form of accelerators.yaml: "
            f"{' '.join(str(error).split())}"
        ) from None
    if found is None:
        raise InputError(
            f"--gpu {name}: not known; known: {', '.join(table)}; --accelerators adds yours"
        )
    for key, value in found._asdict().items():
        if (
            key != "source"
            and value is not None
            and (type(value) not in (int, float) or value <= 0)
        ):
            raise InputError(f"--accelerators {own}: {name}: {key}: expected a number above 0")
    return found


def find_machines(num_gpus: int, num_machines: int | None, network_gbit_s: float) -> Machines:
    """As many machines as said, else as few as have up to eight GPUs each; raises InputError: GPUs
    that cannot be shared out evenly.
    """
    if num_machines is None:
        num_machines = num_gpus // max(
            size for size in range(1, MACHINE_GPUS + 1) if num_gpus % size == 0
        )
    if num_gpus % num_machines:
        raise InputError(
            f"num_gpus {num_gpus}: cannot be the same number on each of {num_machines} machines; "
            "give a multiple"
        )
    return Machines(num_gpus, num_machines, network_gbit_s / 8)


def plan_launch(
    shape: Shape,
    step: Step,
    sharding: Sharding,
    device: Device,
    *,
    rows: int,
    efficiency: float,
    precision: str | None = None,
    link_gb_s: float | None = None,
) -> dict[str, Any]:
    """One launch config: memory by part of the asked micro-batch, whether it fits, the largest one
    that does, and the speed with the asked one if it fits, else with the largest. `rows` is what
    each process reads per optimizer step.

    `efficiency` is the share of the peak rate that the matrix products reach; talking with the
    other devices is added in full (none of it hidden behind computing), at the rate `link_gb_s` of
    the slowest link (default: the device's).
    """

    def memory(batch: int) -> dict[str, int]:
        return step_memory_bytes(
            shape, step._replace(batch_size=batch, accumulates=batch < rows), sharding
        )

    def fits(batch: int) -> bool:
        return sum(memory(batch).values()) + RESERVED_BYTES <= device.memory_gb * 1e9

    largest = next((batch for batch in divisors(rows) if fits(batch)), None)
    batch = largest if largest and not fits(step.batch_size) else step.batch_size
    tokens = rows * step.max_length
    flops = training_flops(
        shape,
        tokens,
        step.max_length,
        activation_checkpointing=step.activation_checkpointing,
        **step.trained._asdict(),
    )
    peak = device.tflops(precision or ("bf16" if step.bf16 else "fp32")) * 1e12
    talking = _communication_seconds(
        shape, step, sharding, link_gb_s or device.link_gb_s, rows // batch
    )
    seconds = flops / (efficiency * peak) + talking
    return {
        "memory_bytes": memory(batch),
        "batch_size": batch,
        "gradient_accumulation_steps": rows // batch,
        "fits": bool(largest),
        "largest_batch_size": largest,
        "stage": sharding.stage,
        "step_seconds": seconds,
        "tokens_per_second": tokens * sharding.processes / seconds,
    }


def divisors(number: int) -> list[int]:
    """The largest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)}, reverse=True)


def _communication_seconds(
    shape: Shape, step: Step, sharding: Sharding, link_gb_s: float, passes: int
) -> float:
    """Of one optimizer step. DDP averages float32 gradients once (a ring sends all but 1/n of them
    twice); DeepSpeed reduces them in the compute type and gathers the weights; with split weights
    each pass gathers them twice and reduces the gradients. Offloading moves gradients down and
    weights up.
    """
    width, count = step.width, step.trained.parameters(shape)
    ring = (1 - 1 / sharding.processes) / (link_gb_s * 1e9)
    if sharding.stage == 3:
        seconds = passes * width * (2 * shape.parameters() + count) * ring
    elif sharding.stage == 2:
        seconds = (passes + 1) * width * count * ring
    else:
        seconds = 2 * (width if sharding.engine == "deepspeed" else 4) * count * ring
    if sharding.offload != "none":
        seconds += 2 * width * count / sharding.processes / (HOST_LINK_GB_S * 1e9)
        seconds += ADAM_BYTES * count / (ADAM_GB_S[sharding.offload] * 1e9)
    return seconds


def fastest(plans: dict[str, dict[str, Any]]) -> str | None:
    """Name of the plan that fits with the shortest step. None: nothing fits."""
    fitting = [name for name, plan in plans.items() if plan["fits"]]
    return min(fitting, key=lambda name: plans[name]["step_seconds"], default=None)


def recommended(plans: dict[str, dict[str, Any]]) -> str | None:
    """Of the plans that are as good as the fastest, the one that splits least. None: nothing
    fits.
    """
    best = fastest(plans)
    if best is None:
        return None
    limit = NEAR * plans[best]["step_seconds"]
    good = [name for name, plan in plans.items() if plan["fits"] and plan["step_seconds"] <= limit]
    return min(good, key=lambda name: (plans[name]["stage"], plans[name]["step_seconds"]))


def plan_launches(
    shape: Shape, step: Step, device: Device, where: Machines | int, **how: Any
) -> dict[str, dict[str, Any]]:
    """`plan_launch` for every shipped launch config that means GPUs of this number, on one machine
    or on several.

    Between machines a ring is as fast as one machine's network, which all of its GPUs share, or as
    a link inside, if that is slower.
    """
    import yaml

    where = Machines(where) if isinstance(where, int) else where
    if where.machines > 1:
        how["link_gb_s"] = min(device.link_gb_s, where.network_gb_s)
    plans = {}
    for name, path in shipped("accelerate_configs", "*.yaml").items():
        config = yaml.safe_load(path.read_text("utf-8"))
        sharding = sharding_of(config, where.processes)
        if _is_meant(name, config, sharding, where) and not (
            step.load_in_4bit and sharding.stage == 3
        ):
            plans[name] = plan_launch(shape, step, sharding, device, **how)
    return plans


def _is_meant(name: str, config: dict[str, Any], sharding: Sharding, where: Machines) -> bool:
    """Whether a launch config is for so many GPUs and machines, and splits something."""
    if config.get("use_cpu") or name.startswith("multi_node") != (where.machines > 1):
        return False
    alone = config.get("num_processes") == 1
    if where.processes == 1:
        return alone or sharding.offload != "none"
    return not alone


def launch_words(
    argv: list[str],
    plan: dict[str, Any],
    name: str,
    *,
    recipe: str,
    where: Machines,
    given: dict[str, int],
    not_passed: set[str],
    main_process_ip: str = "machine-0",
    extra: dict[str, Any] | None = None,
) -> str:
    """The command that trains as planned (on machine 0): the words given to `plan`, without its own
    flags. `given` are batch size and passes as the words say them already, `extra` are further
    arguments.
    """
    words = ["hfscale", recipe, *pick_flags(argv, not_passed)[1], "--accelerate", name]
    sizes = {
        "per_device_train_batch_size": plan["batch_size"],
        "gradient_accumulation_steps": plan["gradient_accumulation_steps"],
    }
    flags = {flag: size for flag, size in sizes.items() if size != given[flag]} | (extra or {})
    if where.processes > 1:
        flags["num_processes"] = where.processes
    if where.machines > 1:
        flags |= {
            "num_machines": where.machines,
            "machine_rank": 0,
            "main_process_ip": main_process_ip,
        }
    return shlex.join(
        [*words, *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]
    )
