"""`transformers.TrainingArguments` with what the machine suggests where the user said nothing."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from hfscale.process import InputError, planned_launch
from hfscale.training.sharing import check_sharing, trackers_of

# Below this width, casting costs more than bf16 matrix units save (measured on a CPU with AMX).
BF16_MIN_WIDTH = 256
DEFAULTS = {
    "logging_nan_inf_filter": False,  # upstream's would log a NaN loss as 0
    "include_num_input_tokens_seen": "all",
    "greater_is_better": False,  # the metric to choose by is a loss
    "report_to": "tensorboard",
    "hub_strategy": "end",  # only the finished run is pushed
    # No search for parameters that a step leaves out; a model that has such needs it.
    "ddp_find_unused_parameters": False,
    # Each rank reads its own share of a stream.
    "accelerator_config": {"dispatch_batches": False},
}
# Upstream takes zero or less for these, and then trains on nothing, never saves or stops halfway.
POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "save_steps",
    "eval_steps",
)
TRIED_STEPS = 1000  # length of the schedule that is tried out; any length would do


def training_arguments(
    values: dict[str, Any],
    *,
    width: int,
    cls: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The arguments of a Trainer: `cls(**values, **more)` with `DEFAULTS` below them.

    bf16 is on where there are matrix units for it and the model is at least 256 wide, the CPU is
    taken where accelerate was told so. See `check_sharing` for trackers and the Hub.

    Args:
        values: what the user said, by upstream's names.
        width: of the model's hidden states, in numbers per token.
        cls: upstream's class, or one that extends it.

    Raises:
        InputError: what upstream refuses, in one line; fp16 on a CPU, which upstream ignores.
    """
    values = _suited_to_the_machine(DEFAULTS | values, width)
    try:
        _check_positive(values)
        args = cls(**values, **more)
        _try_out(args)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training arguments: {' '.join(str(error).split())}") from None
    check_sharing(args)
    return args


def _suited_to_the_machine(values: dict[str, Any], width: int) -> dict[str, Any]:
    """The values, with a device and a precision where they name none."""
    told_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    on_cpu = values.get("use_cpu", told_cpu) or not torch.accelerator.is_available()
    # A dry run for other machines: this CPU shows what a run on their GPUs would be.
    is_planned = planned_launch() is not None
    if is_planned:
        values = {name: value for name, value in values.items() if name != "tf32"}
    elif on_cpu and values.get("fp16"):
        raise InputError("fp16: a CPU does not train in float16; use bf16 or leave it out")
    if "bf16" not in values and "fp16" not in values:
        is_faster = is_planned or has_bf16_units(on_cpu)
        values["bf16"] = width >= BF16_MIN_WIDTH and is_faster
    if on_cpu:
        values = {"use_cpu": True, "dataloader_pin_memory": False, **values}
    return values


def has_bf16_units(on_cpu: bool) -> bool:
    """Whether the device multiplies bf16 matrices faster than float32 ones."""
    if not on_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(words)


def batch_rows_of_like_length(training_args: TrainingArguments, args: Any) -> None:
    """Let rows that are padded (`args.packing` none) share a batch with others of about their
    length, unless the user chose another `train_sampling_strategy` (in `args.training`).
    """
    if args.packing == "none" and "train_sampling_strategy" not in args.training:
        training_args.train_sampling_strategy = "group_by_length"


def _check_positive(values: dict[str, Any]) -> None:
    for name in POSITIVE:
        value = values.get(name)
        if value is not None and value <= 0:
            raise ValueError(f"{name}: got {value}, expected more than 0")
    if values.get("max_steps") == 0:  # below 0: not given
        raise ValueError("max_steps: got 0, expected more than 0")


def _try_out(args: TrainingArguments) -> None:
    """Raise ValueError or TypeError for what upstream finds wrong only after the data is prepared,
    or at the first evaluation: here AdamW and the schedule are made for a single number.
    """
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )
    schedule = args.lr_scheduler_kwargs
    assert not isinstance(schedule, str), "upstream has read the JSON text by now"
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(TRIED_STEPS),
        num_training_steps=TRIED_STEPS,
        scheduler_specific_kwargs=schedule,
    )
    if not 0 <= args.label_smoothing_factor < 1:
        raise ValueError(
            f"label_smoothing_factor: got {args.label_smoothing_factor}, expected from 0 to below 1"
        )
    available = get_available_reporting_integrations()
    unknown = set(trackers_of(args)) - set(available)
    if unknown:
        raise ValueError(
            f"report_to: {unknown.pop()} is unknown or not installed; here: "
            f"{', '.join(available)}, none"
        )
