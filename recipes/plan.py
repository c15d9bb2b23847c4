"""Will it fit, how long, what does it cost: memory, speed and the command of each launch config,
before the bill.

hfscale plan --config gpt2_small --gpu h100-80gb --num_gpus 8
hfscale plan --config gpt2_xl --gpu h100-80gb --num_gpus 16 --num_machines 2 --network_gbit_s 400
hfscale plan --config finetune/gpt2_lora --gpu l4 --price_per_gpu_hour 0.8 --picture plan.png
"""

import sys
from dataclasses import dataclass, field, fields

from hfscale.arguments import AdapterArguments, RunArguments, ShapeArguments, StreamArguments
from hfscale.config import parse_args
from hfscale.process import InputError, run


@dataclass
class PlanArguments(ShapeArguments, AdapterArguments, StreamArguments, RunArguments):
    """All that pretrain and finetune take, so that their configs can be planned; and where they are
    to run.
    """

    gpu: str = field(
        default="a100-80gb",
        metadata={"help": "a known accelerator, such as h100-80gb, or one of yours"},
    )
    num_gpus: int = field(default=1, metadata={"help": "of them, on all machines together"})
    num_machines: int | None = field(
        default=None,
        metadata={
            "help": "that they are in, as many in each; default: as few as hold up to 8 each"
        },
    )
    network_gbit_s: float = field(
        default=100,
        metadata={"help": "speed of each machine's network to the others, in 10^9 bits a second"},
    )
    main_process_ip: str = field(
        default="machine-0", metadata={"help": "address of machine 0, for the launch line"}
    )
    accelerators: str | None = field(
        default=None, metadata={"help": "YAML with devices of your own"}
    )
    model: str | None = field(
        default=None, metadata={"help": "checkpoint to fine-tune; default: a new model"}
    )
    tokenizer: str | None = field(
        default="train:8192", metadata={"help": "as in pretrain and finetune"}
    )
    forget_source: list[str] | None = field(
        default=None, metadata={"help": "as in finetune; takes no part here"}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "where the tokenizer does not tell it"}
    )
    tokens: float | None = field(
        default=None,
        metadata={"help": "to train on; default: max_steps, else the compute-optimal number"},
    )
    tokens_per_step: int | None = field(
        default=None,
        metadata={
            "help": "on all GPUs together; default: those of the config on the num_gpus that it "
            "names, else as many on each GPU as the config says"
        },
    )
    efficiency: float = field(
        default=0.4, metadata={"help": "share of the peak rate that matrix products reach"}
    )
    price_per_gpu_hour: float | None = field(default=None, metadata={"help": "in any currency"})
    price_per_kwh: float | None = field(default=None, metadata={"help": "in the same currency"})
    picture: str | None = field(default=None, metadata={"help": "PNG file for the memory bars"})


PASSED_ON = {
    "model",
    "tokenizer",
    "forget_source",
}  # of the arguments above, those that training takes too


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PlanArguments, argv, recipe=__file__)

    from pathlib import Path

    from hfscale.planning.flops import TOKENS_PER_PARAMETER, training_flops
    from hfscale.planning.page import check_picture, draw_memory, show_plan
    from hfscale.planning.plan import (
        find_accelerator,
        find_machines,
        launch_words,
        plan_launches,
        recommended,
    )
    from hfscale.planning.settings import (
        asked_rows,
        check_countable,
        check_positive,
        find_max_length,
        precision,
        step_of,
        with_new_tokens,
    )
    from hfscale.planning.shapes import find_shape

    words = sys.argv[1:] if argv is None else argv
    check_positive(args)
    check_countable(args)
    if args.picture:
        check_picture(args.picture)
    device = find_accelerator(args.gpu, args.accelerators)
    where = find_machines(args.num_gpus, args.num_machines, args.network_gbit_s)
    sizes = {item.name: getattr(args, item.name) for item in fields(ShapeArguments)}
    shape = with_new_tokens(args, find_shape(args.model, sizes, args.tokenizer, args.vocab_size))
    max_length = find_max_length(args, shape)
    rows = asked_rows(args, words, __file__, max_length)
    units = {name for name in ("bf16", "fp16") if device.tflops(name)}
    number_type = precision(args.training, units, args.gpu)
    step = step_of(args, shape, rows, max_length, half=number_type != "fp32")

    plans = plan_launches(
        shape,
        step,
        device,
        where,
        rows=rows.per_process,
        efficiency=args.efficiency,
        precision=number_type,
    )
    per_step = rows.per_process * args.num_gpus * max_length
    optimal = TOKENS_PER_PARAMETER * shape.parameters()
    tokens = args.tokens or max(0, args.training.get("max_steps", 0)) * per_step or optimal
    flops = training_flops(shape, 1, max_length, **step.trained._asdict()) * tokens
    show_plan(
        {
            "parameters": shape.parameters(),
            "trained": step.trained.parameters(shape),
            "tokens": tokens,
            "compute-optimal tokens": optimal,
            "tokens per step": per_step,
            "FLOPs": float(flops),
            "FLOPs (6ND)": 6.0 * shape.parameters() * tokens,
        },
        plans,
        device,
        where,
        rows=rows,
        efficiency=args.efficiency,
        hour_price=args.price_per_gpu_hour,
        kwh_price=args.price_per_kwh,
    )
    if args.picture:
        draw_memory(Path(args.picture), plans, device, f"{args.gpu} x {args.num_gpus}")

    best = recommended(plans)
    if best is None:
        raise InputError(
            f"nothing fits on {args.num_gpus} x {args.gpu}; take --activation_checkpointing, a "
            "shorter --max_length, more or larger GPUs, or adapters (--lora_r)"
        )
    command = launch_words(
        words,
        plans[best],
        best,
        recipe="finetune" if args.model else "pretrain",
        where=where,
        given=rows.given,
        not_passed=set(PlanArguments.__annotations__) - PASSED_ON,
        main_process_ip=args.main_process_ip,
        extra={"ddp_find_unused_parameters": "true"}
        if shape.add_cross_attention and where.processes > 1
        else None,
    )
    print(f"launch: {command}")
    if where.machines > 1:
        print(
            f"on each machine, with its own --machine_rank (0 to {where.machines - 1}); "
            f"{args.main_process_ip} is the address of machine 0 (hfscale copy launch writes job "
            "files that say so)"
        )


if __name__ == "__main__":
    run(main)
