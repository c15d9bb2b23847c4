"""Will it fit, how long, what does it cost: memory, speed and the command of each launch config,
before the bill.

hfscale plan --config pretrain/gpt2_small --gpu h100-80gb --num_gpus 8
hfscale plan --config pretrain/gpt2_xl --gpu h100-80gb --num_gpus 16 --network_gbit_s 400
hfscale plan --config finetune/gpt2_lora --gpu l4 --price_per_gpu_hour 0.8 --picture l4.png
"""

import sys
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hfscale.config import parse_args, pick_flags
from hfscale.process import InputError, run


@dataclass
class PlanArguments:
    """Where the training is to run, and at what price; all else is the training recipe's own."""

    recipe: Literal["pretrain", "finetune", "finetune_task"] | None = field(
        default=None,
        metadata={
            "help": "what is planned; default: the recipe of the config, else the one that takes "
            "the arguments",
            "takes_its_arguments": True,
        },
    )
    gpu: str = field(
        default="a100-80gb",
        metadata={"help": "a known accelerator, such as h100-80gb, or one of yours"},
    )
    num_gpus: int = field(
        default=1, metadata={"help": "of them, on all machines together", "min": 1}
    )
    num_machines: int | None = field(
        default=None,
        metadata={
            "help": "that they are in, as many in each; default: as few as hold up to 8 each",
            "min": 1,
        },
    )
    network_gbit_s: float = field(
        default=100,
        metadata={
            "help": "speed of each machine's network to the others, in 10^9 bits a second",
            "min": 1e-3,
            "max": 1e6,
        },
    )
    main_process_ip: str = field(
        default="machine-0", metadata={"help": "address of machine 0, for the launch line"}
    )
    accelerators: str | None = field(
        default=None, metadata={"help": "YAML with devices of your own"}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "where the tokenizer does not tell it", "min": 1}
    )
    tokens: float | None = field(
        default=None,
        metadata={
            "help": "to train on; default: max_steps, else the compute-optimal number",
            "min": 1,
            "max": 1e18,
        },
    )
    tokens_per_step: int | None = field(
        default=None,
        metadata={
            "help": "on all GPUs together; default: as many on each GPU as the config says",
            "min": 1,
        },
    )
    efficiency: float = field(
        default=0.4,
        metadata={
            "help": "share of the peak rate that matrix products reach",
            "min": 1e-3,
            "max": 1,
        },
    )
    price_per_gpu_hour: float | None = field(
        default=None, metadata={"help": "in any currency", "min": 0, "max": 1e9}
    )
    price_per_kwh: float | None = field(
        default=None, metadata={"help": "in the same currency", "min": 0, "max": 1e9}
    )
    picture: str | None = field(default=None, metadata={"help": "PNG file for the memory bars"})
    training: dict = field(default_factory=dict)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(PlanArguments, argv, recipe=__file__)

    from pathlib import Path

    from hfscale.planning.counted import planned_model
    from hfscale.planning.learning_rate import planned_learning_rates, transfer_note
    from hfscale.planning.page import (
        check_no_picture,
        check_picture,
        draw_memory,
        show_plan,
        show_without_memory,
    )
    from hfscale.planning.plan import (
        find_device,
        find_machines,
        launch_command,
        plan_launches,
        recommended,
        training_totals,
    )
    from hfscale.planning.settings import (
        Planned,
        check_countable,
        find_max_length,
        pick_precision,
        share_rows,
        step_of,
    )

    # What is trained, by the training recipe's own arguments.
    words = sys.argv[1:] if argv is None else argv
    if args.picture:
        check_picture(args.picture)
    planned = Planned.from_values(args.recipe, args.training)
    check_countable(planned)
    device = find_device(args.gpu, args.accelerators)
    model = planned_model(planned, args.vocab_size)
    max_length = find_max_length(planned, model.context)

    # Where it runs.
    machines = find_machines(args.num_gpus, args.num_machines, args.network_gbit_s)

    # A step of one process, and what each launch config makes of it.
    rows = share_rows(planned, args.num_gpus, args.tokens_per_step, max_length)
    precision = pick_precision(planned.training, device, args.gpu)
    step = step_of(planned, model, rows, max_length, precision)
    training = model.in_training(step)

    # The whole training: tokens, operations, hours, energy, money.
    totals = training_totals(
        training,
        tokens_per_step=rows.per_process * args.num_gpus * max_length,
        tokens=args.tokens,
        max_steps=planned.training.get("max_steps", 0),
    )
    if training.memory is None:
        check_no_picture(args.picture, model.architecture)
        show_without_memory(
            totals,
            device,
            step=step,
            architecture=model.architecture,
            num_gpus=args.num_gpus,
            precision=precision,
            efficiency=args.efficiency,
        )
        return {"totals": totals}
    plans = plan_launches(
        training,
        step,
        device,
        machines,
        rows=rows.per_process,
        efficiency=args.efficiency,
        precision=precision,
    )
    show_plan(
        totals,
        plans,
        device,
        machines,
        rows=rows,
        learning_rates=planned_learning_rates(planned, model.width),
        transfer_note=transfer_note(planned, model.width),
        efficiency=args.efficiency,
        hour_price=args.price_per_gpu_hour,
        kwh_price=args.price_per_kwh,
    )
    if args.picture:
        billions = training.parameters / 1e9
        title = (
            f"Memory to train {model.architecture} with {billions:.3g}B parameters on "
            f"{args.num_gpus} x {args.gpu}"
        )
        draw_memory(Path(args.picture), plans, device, title)

    # The command that trains like this.
    best = recommended(plans)
    if best is None:
        raise InputError(
            f"nothing fits on {args.num_gpus} x {args.gpu}; take --activation_checkpointing, a "
            "shorter --max_length, more or larger GPUs, or adapters (--lora_r)"
        )
    own_flags = {item.name for item in fields(PlanArguments)}
    command = launch_command(
        args.recipe,
        pick_flags(words, own_flags)[1],
        plans[best],
        best,
        machines,
        given_sizes=rows.given,
        main_process_ip=args.main_process_ip,
        find_unused_parameters=training.has_idle_weights,
    )
    print(f"launch: {command}")
    if machines.number > 1:
        print(
            f"on each machine, with its own --machine_rank (0 to {machines.number - 1}); "
            f"{args.main_process_ip} is the address of machine 0 (hfscale copy launch writes job "
            "files that say so)"
        )
    return {"totals": totals, "launches": plans, "recommended": best, "command": command}


if __name__ == "__main__":
    run(main)
