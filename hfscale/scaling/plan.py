"""What fits on which accelerators, how fast, and what it costs, from the sizes alone."""

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.config import InputError, pick_flags
from hfscale.launch import shipped
from hfscale.scaling.flops import PUBLISHED, Shape, training_flops
from hfscale.scaling.memory import Sharding, Step, sharding_of, step_memory_bytes

RESERVED_BYTES = 10**9  # for the device's context, the communication library and the allocator's gaps: an assumption
HOST_LINK_GB_S = 25  # between a GPU and its machine's memory, one direction (PCIe 4.0 x16 as reached): an assumption
ADAM_GB_S = {"cpu": 100, "nvme": 5}  # at which a machine's CPU works through offloaded state: an assumption
ADAM_BYTES = 28  # per parameter: weight and two moments read and written, a gradient read, in float32


class Accelerator(NamedTuple):
    """One device; rates as in accelerators.yaml."""

    memory_gb: float
    bf16_tflops: float | None
    fp16_tflops: float | None
    fp32_tflops: float
    bandwidth_gb_s: float
    link_gb_s: float
    power_w: float
    source: str


def find_accelerator(name: str, own: str | None = None) -> Accelerator:
    """A known accelerator, or one of the file `own`; InputError for an unknown name or a file of another form."""
    import yaml

    table: dict[str, Any] = {}
    try:
        for path in [Path(__file__).with_name("accelerators.yaml"), *([Path(own)] if own else [])]:
            table |= yaml.safe_load(path.read_text("utf-8"))
        found = Accelerator(**table[name]) if name in table else None
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--accelerators {own}: {name}: not of the form of accelerators.yaml: "
                         f"{' '.join(str(error).split())}") from None
    if found is None:
        raise InputError(f"--gpu {name}: not known; known: {', '.join(table)}; --accelerators adds yours")
    for key, value in found._asdict().items():
        if key != "source" and value is not None and (type(value) not in (int, float) or value <= 0):
            raise InputError(f"--accelerators {own}: {name}: {key}: expected a number above 0")
    return found


def find_shape(model: str | None, sizes: dict[str, int], tokenizer: str, vocab_size: int | None) -> Shape:
    """Sizes of a published GPT-2 or of a saved model's folder, else of a new model and its tokenizer's vocabulary.

    Raises InputError: the sizes are not known without the model or the tokenizer's training.
    """
    if model in PUBLISHED:
        return Shape(*PUBLISHED[model], 1024, 50257)
    if model:
        try:
            config = json.loads(Path(model, "config.json").read_text("utf-8"))
            return Shape(*(config[name] for name in Shape._fields))
        except (OSError, ValueError, KeyError):
            raise InputError(f"--model {model}: not a folder of a saved GPT-2; known without files: "
                             f"{', '.join(PUBLISHED)}") from None
    kind, _, size = tokenizer.partition(":")
    known = 50257 if tokenizer in PUBLISHED else int(size) if size.isdecimal() else _saved_vocabulary(tokenizer)
    if not (vocab_size or known):
        raise InputError(f"tokenizer {tokenizer}: its vocabulary is not known before it is there; give --vocab_size")
    return Shape(**sizes, vocab_size=vocab_size or known)


def _saved_vocabulary(folder: str) -> int | None:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(Path(folder, "tokenizer.json"))).get_vocab_size()
    except Exception:  # not there, or broken: the library has no class of its own for either
        return None


def plan_launch(shape: Shape, step: Step, sharding: Sharding, device: Accelerator, *, rows: int, efficiency: float
                ) -> dict[str, Any]:
    """One launch config: memory by part of the asked micro-batch, whether it fits, the largest one that does, and the
    speed with the asked one if it fits, else with the largest. `rows` is what each process reads per optimizer step.

    `efficiency` is the share of the peak rate that the matrix products reach; talking with the other devices is added
    in full (none of it hidden behind computing), at the link's rate.
    """
    def memory(batch: int) -> dict[str, int]:
        return step_memory_bytes(shape, step._replace(batch_size=batch, accumulates=batch < rows), sharding)

    def fits(batch: int) -> bool:
        return sum(memory(batch).values()) + RESERVED_BYTES <= device.memory_gb * 1e9

    largest = next((b for b in range(rows, 0, -1) if rows % b == 0 and fits(b)), None)
    batch = largest if largest and not fits(step.batch_size) else step.batch_size
    tokens = rows * step.max_length
    flops = training_flops(shape, tokens, step.max_length, lora_rank=step.lora_rank,
                           activation_checkpointing=step.activation_checkpointing)
    peak = (device.bf16_tflops if step.bf16 else device.fp32_tflops) * 1e12
    seconds = flops / (efficiency * peak) + _communication_seconds(shape, step, sharding, device, rows // batch)
    return {"memory_bytes": memory(batch), "batch_size": batch, "gradient_accumulation_steps": rows // batch,
            "fits": bool(largest), "largest_batch_size": largest, "stage": sharding.stage, "step_seconds": seconds,
            "tokens_per_second": tokens * sharding.processes / seconds}


def _communication_seconds(shape: Shape, step: Step, sharding: Sharding, device: Accelerator, passes: int) -> float:
    """Of one optimizer step. DDP averages float32 gradients once (a ring sends all but 1/n of them twice); DeepSpeed
    reduces them in the compute type and gathers the weights; with split weights each pass gathers them twice and
    reduces the gradients. Offloading moves gradients down and weights up."""
    width, count = 2 if step.bf16 else 4, shape.lora_parameters(step.lora_rank) or shape.parameters()
    ring = (1 - 1 / sharding.processes) / (device.link_gb_s * 1e9)
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
    """Name of the plan that fits with the shortest step; within 2 %, which these formulas cannot tell apart, the one
    that splits least. None: nothing fits."""
    fitting = {name: plan for name, plan in plans.items() if plan["fits"]}
    limit = 1.02 * min((plan["step_seconds"] for plan in fitting.values()), default=0)
    good = [name for name, plan in fitting.items() if plan["step_seconds"] <= limit]
    return min(good, key=lambda name: fitting[name]["stage"], default=None)


def plan_launches(shape: Shape, step: Step, device: Accelerator, processes: int, **how: Any) -> dict[str, dict]:
    """`plan_launch` for every shipped launch config that means GPUs of this number; those for several machines are the
    same shards on more processes."""
    import yaml

    plans = {}
    for name, path in shipped("accelerate_configs", "*.yaml").items():
        config = yaml.safe_load(path.read_text("utf-8"))
        sharding, alone = sharding_of(config, processes), config.get("num_processes") == 1
        useless = processes == 1 and not alone and sharding.offload == "none" or processes > 1 and alone
        if not (useless or config.get("use_cpu") or name.startswith("multi_node")):
            plans[name] = plan_launch(shape, step, sharding, device, **how)
    return plans


def launch_words(argv: list[str], plan: dict[str, Any], name: str, *, recipe: str, processes: int, batch_size: int,
                 not_passed: set[str]) -> str:
    """The command that trains as planned: the words given to `plan`, without its own flags."""
    words = ["hfscale", recipe, *pick_flags(argv, not_passed)[1], "--accelerate", name]
    if processes > 1:
        words += ["--num_processes", str(processes)]
    if plan["batch_size"] != batch_size:
        words += ["--per_device_train_batch_size", str(plan["batch_size"]),
                  "--gradient_accumulation_steps", str(plan["gradient_accumulation_steps"])]
    return shlex.join(words)
