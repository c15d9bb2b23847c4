"""Will it fit, how long, what does it cost: memory, speed and the command of each launch config, before the bill.

    hfscale plan --config gpt2_small --gpu h100-80gb --num_gpus 8
    hfscale plan --config finetune/gpt2_lora --gpu l4 --price_per_gpu_hour 0.8 --picture plan.png
"""

import sys
from dataclasses import dataclass, field

from hfscale.config import (
    AdapterArguments,
    InputError,
    RunArguments,
    ShapeArguments,
    StreamArguments,
    parse_args,
    run,
)


@dataclass
class PlanArguments(ShapeArguments, AdapterArguments, StreamArguments, RunArguments):
    """All that pretrain and finetune take, so that their configs can be planned; and where they are to run."""

    gpu: str = field(default="a100-80gb", metadata={"help": "a known accelerator, such as h100-80gb, or one of yours"})
    num_gpus: int = field(default=1, metadata={"help": "of them, on all machines together"})
    accelerators: str | None = field(default=None, metadata={"help": "YAML with devices of your own"})
    model: str | None = field(default=None, metadata={"help": "checkpoint to fine-tune; default: a new model"})
    tokenizer: str | None = field(default="train:8192", metadata={"help": "as in pretrain and finetune"})
    forget_source: list[str] | None = field(default=None, metadata={"help": "as in finetune; takes no part here"})
    vocab_size: int | None = field(default=None, metadata={"help": "where the tokenizer does not tell it"})
    tokens: float | None = field(default=None, metadata={
        "help": "to train on; default: max_steps, else the compute-optimal number"})
    efficiency: float = field(default=0.4, metadata={"help": "share of the peak rate that matrix products reach"})
    price_per_gpu_hour: float | None = field(default=None, metadata={"help": "in any currency"})
    price_per_kwh: float | None = field(default=None, metadata={"help": "in the same currency"})
    picture: str | None = field(default=None, metadata={"help": "PNG file for the memory bars"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PlanArguments, argv, recipe=__file__)

    from pathlib import Path

    from hfscale.report.plan_page import draw_memory, show_plan
    from hfscale.scaling.flops import TOKENS_PER_PARAMETER, training_flops
    from hfscale.scaling.memory import Step
    from hfscale.scaling.plan import fastest, find_accelerator, find_shape, launch_words, plan_launches

    for name in ("num_gpus", "efficiency", "tokens", "price_per_gpu_hour", "price_per_kwh", "vocab_size", "max_length",
                 "lora_rank"):
        if (value := getattr(args, name)) is not None and (value <= 0 or name == "efficiency" and value > 1):
            raise InputError(f"{name}: got {value}, expected above 0" + ", at most 1" * (name == "efficiency"))
    device = find_accelerator(args.gpu, args.accelerators)
    sizes = {name: getattr(args, name) for name in ("n_layer", "n_head", "n_embd", "n_positions")}
    shape = find_shape(args.model, sizes, args.tokenizer, args.vocab_size)
    training, max_length = args.training, args.max_length or shape.n_positions
    batch, passes = (training.get(name, default) for name, default in (
        ("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1)))
    for name, value in {"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes}.items():
        if value <= 0:
            raise InputError(f"{name}: got {value}, expected above 0")
    if max_length > shape.n_positions:
        raise InputError(f"max_length {max_length} is beyond the model's n_positions {shape.n_positions}")
    bf16 = training.get("bf16", bool(device.bf16_tflops))
    if bf16 and not device.bf16_tflops:
        raise InputError(f"bf16: {args.gpu} has no bf16 matrix units; add --bf16 false")
    checkpointing = bool(training.get("activation_checkpointing") or training.get("gradient_checkpointing"))
    step = Step(batch, max_length, training.get("per_device_eval_batch_size", 8), bf16, checkpointing, passes > 1,
                not args.cross_document_attention, args.lora_rank or 0, args.load_in_4bit)
    plans = plan_launches(shape, step, device, args.num_gpus, rows=batch * passes, efficiency=args.efficiency)
    best = fastest(plans)

    per_step = batch * passes * args.num_gpus * max_length
    optimal = TOKENS_PER_PARAMETER * shape.parameters()
    tokens = args.tokens or max(0, training.get("max_steps", 0)) * per_step or optimal
    facts = {"parameters": shape.parameters(), "trained": shape.lora_parameters(step.lora_rank) or shape.parameters(),
             "tokens": tokens, "compute-optimal tokens": optimal, "tokens per step": per_step,
             "FLOPs": training_flops(shape, 1, max_length, lora_rank=step.lora_rank) * tokens,
             "FLOPs (6ND)": 6 * shape.parameters() * tokens}
    show_plan(facts, plans, best, device, efficiency=args.efficiency, processes=args.num_gpus,
              hour_price=args.price_per_gpu_hour, kwh_price=args.price_per_kwh)
    if args.picture:
        draw_memory(Path(args.picture), plans, device, f"{args.gpu} x {args.num_gpus}")
    if best is None:
        raise InputError(f"nothing fits on {args.num_gpus} x {args.gpu}; take --activation_checkpointing, a shorter "
                         "--max_length, more or larger GPUs, or adapters (--lora_rank)")
    own = set(PlanArguments.__annotations__) - {"model", "tokenizer", "forget_source"}
    words = launch_words(sys.argv[1:] if argv is None else argv, plans[best], best, batch_size=batch, not_passed=own,
                         recipe="finetune" if args.model else "pretrain", processes=args.num_gpus)
    print(f"launch: {words}")


if __name__ == "__main__":
    run(main)
