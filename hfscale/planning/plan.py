"""What fits on which accelerators, how fast, and what it costs, from the sizes alone."""

import functools
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from hfscale.config import shipped
from hfscale.planning.flops import TOKENS_PER_PARAMETER, Shape, training_flops
from hfscale.planning.memory import Sharding, Step, sharding_of, step_memory_bytes
from hfscale.process import InputError
from hfscale.strict_yaml import load_yaml, read_limited, read_yaml

# For the device's context, the communication library and the allocator's gaps: an assumption.
RESERVED_BYTES = 10**9
# Between a GPU and its machine's memory, one direction (PCIe 4.0 x16 as reached): an assumption.
HOST_LINK_GB_S = 25
# At which a machine's CPU works through offloaded optimizer state: an assumption.
ADAM_GB_S = {"cpu": 100, "nvme": 5}
# Per parameter: weight and two moments read and written, a gradient read, in float32.
ADAM_BYTES = 28
MACHINE_GPUS = 8  # at most, where nothing is said of machines
NEAR = 1.02  # these formulas cannot tell times apart that differ by less


class Machines(NamedTuple):
    """Where the processes run, each on a GPU of its own, as many on every machine."""

    processes: int
    number: int = 1
    network_gb_s: float = 12.5  # of one machine to the others, one direction


class Device(NamedTuple):
    """One accelerator; rates as in accelerators.yaml."""

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


class Training(NamedTuple):
    """A model in training, in the numbers that a plan takes."""

    parameters: int
    active_parameters: int  # that a token meets: of experts those that read it
    trained: int
    has_idle_weights: bool  # some that are trained never get a gradient
    flops_per_token: int
    # Beside them what checkpointing computes again, which adds nothing to the result.
    computed_flops_per_token: int
    # Bytes by part that a process takes; None: not known.
    memory: Callable[[Step, Sharding], dict[str, int]] | None


class Model(NamedTuple):
    """What is planned, before it is known how it is trained."""

    architecture: str  # as --architecture names it
    context: int  # tokens that it reads at most
    width: int  # of its hidden states
    target_modules: tuple[str, ...]  # that get adapters
    in_training: Callable[[Step], Training]


def gpt2_in_training(shape: Shape, step: Step) -> Training:
    """By formulas alone."""
    flops = functools.partial(training_flops, shape, 1, step.max_length, **step.trained._asdict())
    return Training(
        parameters=shape.parameters(),
        active_parameters=shape.parameters(),
        trained=step.trained.parameters(shape),
        has_idle_weights=shape.add_cross_attention,
        flops_per_token=flops(),
        computed_flops_per_token=flops(activation_checkpointing=step.activation_checkpointing),
        memory=functools.partial(step_memory_bytes, shape),
    )


class LaunchPlan(TypedDict):
    """One launch config: whether and how the training fits, and how fast it is."""

    memory_bytes: dict[str, int]  # by part, of one process
    batch_size: int
    gradient_accumulation_steps: int
    fits: bool
    largest_batch_size: int | None  # that fits; None: not even one row does
    stage: int
    step_seconds: float
    tokens_per_second: float  # all processes together


def find_device(name: str, users_file: str | None = None) -> Device:
    """A known accelerator, or one of the user's own file.

    Raises InputError: an unknown name, or a file of another form.
    """
    import yaml

    files = [Path(__file__).with_name("accelerators.yaml")]
    if users_file:
        files.append(Path(users_file))
    table: dict[str, Any] = {}
    try:
        for path in files:
            table |= dict(load_yaml(read_limited(path)).items())
        device = Device(**table[name]) if name in table else None
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"--accelerators {users_file}: {name}: not of the form of accelerators.yaml: "
            f"{' '.join(str(error).split())}"
        ) from None
    if device is None:
        raise InputError(
            f"--gpu {name}: not known; known: {', '.join(table)}; --accelerators adds yours"
        )
    for key, value in device._asdict().items():
        if key == "source" or value is None:
            continue
        if type(value) not in (int, float) or value <= 0:
            raise InputError(
                f"--accelerators {users_file}: {name}: {key}: expected a number above 0"
            )
    return device


def find_machines(num_gpus: int, num_machines: int | None, network_gbit_s: float) -> Machines:
    """As many machines as said, else as few as have up to eight GPUs each.

    Raises InputError: GPUs that cannot be shared out evenly.
    """
    if num_machines is None:
        even_shares = [size for size in range(1, MACHINE_GPUS + 1) if num_gpus % size == 0]
        num_machines = num_gpus // max(even_shares)
    if num_gpus % num_machines:
        raise InputError(
            f"num_gpus {num_gpus}: cannot be the same number on each of {num_machines} machines; "
            "give a multiple"
        )
    return Machines(num_gpus, num_machines, network_gbit_s / 8)


def plan_launch(
    training: Training,
    step: Step,
    sharding: Sharding,
    device: Device,
    *,
    rows: int,
    efficiency: float,
    precision: str | None = None,
    link_gb_s: float | None = None,
) -> LaunchPlan:
    """One launch config: memory by part of the asked micro-batch, whether it fits, the largest one
    that does, and the speed with the asked one if it fits, else with the largest. `rows` is what
    each process reads per optimizer step.

    `efficiency` is the share of the peak rate that the matrix products reach; talking with the
    other devices is added in full (none of it hidden behind computing), at the rate `link_gb_s` of
    the slowest link (default: the device's).

    Raises ValueError: a `precision` that the device has no matrix units for, or a training whose
    memory is not known.
    """
    count_memory = training.memory
    if count_memory is None:
        raise ValueError("the memory of this training is not known")

    def memory(batch_size: int) -> dict[str, int]:
        tried = step._replace(batch_size=batch_size, accumulates=batch_size < rows)
        return count_memory(tried, sharding)

    def fits(batch_size: int) -> bool:
        return sum(memory(batch_size).values()) + RESERVED_BYTES <= device.memory_gb * 1e9

    largest = next((size for size in divisors(rows) if fits(size)), None)
    batch_size = step.batch_size
    if largest and not fits(batch_size):
        batch_size = largest
    passes = rows // batch_size
    tokens = rows * step.max_length
    computing = _computing_seconds(training, step, device, tokens, efficiency, precision)
    talking = _communication_seconds(
        training, step, sharding, link_gb_s or device.link_gb_s, passes
    )
    seconds = computing + talking
    return {
        "memory_bytes": memory(batch_size),
        "batch_size": batch_size,
        "gradient_accumulation_steps": passes,
        "fits": largest is not None,
        "largest_batch_size": largest,
        "stage": sharding.stage,
        "step_seconds": seconds,
        "tokens_per_second": tokens * sharding.processes / seconds,
    }


def divisors(number: int) -> list[int]:
    """The largest first."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)}, reverse=True)


def _computing_seconds(
    training: Training,
    step: Step,
    device: Device,
    tokens: int,
    efficiency: float,
    precision: str | None,
) -> float:
    """Of one optimizer step of a process that reads `tokens`."""
    flops = tokens * training.computed_flops_per_token
    if precision is None:
        precision = "bf16" if step.bf16 else "fp32"
    tflops = device.tflops(precision)
    if tflops is None:
        raise ValueError(f"precision {precision}: the device has no matrix units for it")
    return flops / (efficiency * (tflops * 1e12))


def _communication_seconds(
    training: Training, step: Step, sharding: Sharding, link_gb_s: float, passes: int
) -> float:
    """Of one optimizer step. DDP averages float32 gradients once (a ring sends all but 1/n of them
    twice); DeepSpeed reduces them in the compute type and gathers the weights; with split weights
    each pass gathers them twice and reduces the gradients. Offloading moves gradients down and
    weights up.
    """
    width = step.width
    trained = training.trained
    ring = (1 - 1 / sharding.processes) / (link_gb_s * 1e9)
    if sharding.stage == 3:
        seconds = passes * width * (2 * training.parameters + trained) * ring
    elif sharding.stage == 2:
        seconds = (passes + 1) * width * trained * ring
    elif sharding.engine == "deepspeed":
        seconds = 2 * width * trained * ring
    else:
        seconds = 2 * 4 * trained * ring
    if sharding.offload != "none":
        seconds += 2 * width * trained / sharding.processes / (HOST_LINK_GB_S * 1e9)
        seconds += ADAM_BYTES * trained / (ADAM_GB_S[sharding.offload] * 1e9)
    return seconds


def training_totals(
    training: Training, *, tokens_per_step: int, tokens: float | None, max_steps: int
) -> dict[str, float]:
    """Parameters, tokens and operations of the whole training, by the names that are shown.

    `tokens` to train on; without them those of `max_steps` steps, and without these (0 or less)
    the compute-optimal number, which is that of the active parameters.
    """
    optimal = TOKENS_PER_PARAMETER * training.active_parameters
    tokens = tokens or max(0, max_steps) * tokens_per_step or optimal
    totals: dict[str, float] = {"parameters": training.parameters}
    if training.active_parameters < training.parameters:
        totals["active parameters"] = training.active_parameters
    return totals | {
        "trained": training.trained,
        "tokens": tokens,
        "compute-optimal tokens": optimal,
        "tokens per step": tokens_per_step,
        "FLOPs": float(training.flops_per_token * tokens),
        "FLOPs (6ND)": 6.0 * training.active_parameters * tokens,
    }


def fastest(plans: dict[str, LaunchPlan]) -> str | None:
    """Name of the plan that fits with the shortest step. None: nothing fits."""
    fitting = [name for name, plan in plans.items() if plan["fits"]]
    return min(fitting, key=lambda name: plans[name]["step_seconds"], default=None)


def recommended(plans: dict[str, LaunchPlan]) -> str | None:
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
    training: Training,
    step: Step,
    device: Device,
    machines: Machines,
    *,
    rows: int,
    efficiency: float,
    precision: str | None = None,
) -> dict[str, LaunchPlan]:
    """`plan_launch` for every shipped launch config that means GPUs of this number, on one machine
    or on several.

    Between machines a ring is as fast as one machine's network, which all of its GPUs share, or as
    a link inside, if that is slower.
    """
    link_gb_s = device.link_gb_s
    if machines.number > 1:
        link_gb_s = min(link_gb_s, machines.network_gb_s)
    plans = {}
    for name, path in shipped("accelerate_configs", "*.yaml").items():
        config = read_yaml(path)
        sharding = sharding_of(config, machines.processes)
        if not _is_meant(name, config, sharding, machines):
            continue
        if step.load_in_4bit and sharding.stage == 3:  # 4-bit weights cannot be split
            continue
        if step.muon and sharding.engine == "deepspeed":  # which knows no matrices
            continue
        if step.averages_weights and sharding.stage > 0:  # which shares the weights out
            continue
        plans[name] = plan_launch(
            training,
            step,
            sharding,
            device,
            rows=rows,
            efficiency=efficiency,
            precision=precision,
            link_gb_s=link_gb_s,
        )
    return plans


def _is_meant(name: str, config: dict[str, Any], sharding: Sharding, machines: Machines) -> bool:
    """Whether a launch config is for so many GPUs and machines, and splits something."""
    if config.get("use_cpu"):
        return False
    if name.startswith("multi_node") != (machines.number > 1):
        return False
    runs_alone = config.get("num_processes") == 1
    if machines.processes == 1:
        return runs_alone or sharding.offload != "none"
    return not runs_alone


def launch_command(
    recipe: str,
    recipe_words: list[str],
    plan: LaunchPlan,
    accelerate_config: str,
    machines: Machines,
    *,
    given_sizes: dict[str, int],
    main_process_ip: str = "machine-0",
    find_unused_parameters: bool = False,
) -> str:
    """The command that trains as planned (on machine 0).

    Args:
        recipe: the training recipe.
        recipe_words: what was asked of it; `given_sizes` are the batch size and passes that they
            say already.
        plan: of the launch config with the name `accelerate_config`.
        machines: where it runs.
        main_process_ip: the address of machine 0.
        find_unused_parameters: some weights never get a gradient, which DDP must be told.
    """
    planned_sizes = {
        "per_device_train_batch_size": plan["batch_size"],
        "gradient_accumulation_steps": plan["gradient_accumulation_steps"],
    }
    flags: dict[str, Any] = {"accelerate": accelerate_config}
    flags |= {name: size for name, size in planned_sizes.items() if size != given_sizes[name]}
    if find_unused_parameters and machines.processes > 1:
        flags["ddp_find_unused_parameters"] = "true"
    if machines.processes > 1:
        flags["num_processes"] = machines.processes
    if machines.number > 1:
        flags["num_machines"] = machines.number
        flags["machine_rank"] = 0
        flags["main_process_ip"] = main_process_ip
    words = ["hfscale", recipe, *recipe_words]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    return shlex.join(words)
