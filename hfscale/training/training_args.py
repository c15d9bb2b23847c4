"""`transformers.TrainingArguments` with what the machine suggests where the user said nothing."""

import contextlib
import dataclasses
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from hfscale.arguments import OptimizerArguments
from hfscale.planning.learning_rate import suggested_learning_rates
from hfscale.process import InputError, launched_engine, planned_launch
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
OWN_TRACKERS = {"tensorboard"}  # installed with hfscale
# Upstream takes zero or less for these, and then trains on nothing, never saves or stops halfway.
POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "save_steps",
    "eval_steps",
    "logging_steps",
    "eval_accumulation_steps",
)
# Far beyond what trains; upstream makes buffers of that many rows.
LARGEST = {
    "per_device_train_batch_size": 10_000_000,
    "per_device_eval_batch_size": 1_000_000,
    "gradient_accumulation_steps": 10_000_000,
}
# Upstream's AdamW, SGD and Adafactor pass over `optim_args` without a word.
WITHOUT_ARGS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad")
# Of torch.utils.checkpoint.checkpoint.
CHECKPOINTING = (
    "use_reentrant",
    "preserve_rng_state",
    "context_fn",
    "determinism_check",
    "debug",
    "early_stop",
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
        _check_numbers(values)
        _check_choices(values)
        _check_meaning(values)
        _check_schedule(values)
        _check_compiler(values)
        if values.get("use_cpu"):
            _compile_nothing()
        with warnings.catch_warnings():
            # Of old names, which upstream's own defaults use too.
            warnings.simplefilter("ignore", FutureWarning)
            args = cls(**values, **more)
        _try_out(args)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise InputError(f"training arguments: {' '.join(str(error).split())}") from None
    check_sharing(args)
    return args


def with_learning_rate(
    values: dict[str, Any], *, width: int, optimizer: OptimizerArguments
) -> dict[str, Any]:
    """`values` of `training_arguments` for new weights: where they name no learning_rate, with the
    one that `hfscale plan` suggests.
    """
    suggested = suggested_learning_rates(width, optimizer, values)
    if "learning_rate" in values or "learning_rate" not in suggested:
        return values
    return values | {"learning_rate": suggested["learning_rate"]}


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


def _compile_nothing() -> None:
    """Keep DeepSpeed from compiling a shared-memory all-reduce for CPUs at its first start, which
    takes half a minute and where a kill leaves a lock that later starts wait on for ever. Gloo's
    does the same.
    """
    if launched_engine().startswith("ZeRO") and planned_launch() is None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


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


def _check_numbers(values: dict[str, Any]) -> None:
    for name in POSITIVE:
        value = values.get(name)
        if value is not None and value <= 0:
            raise ValueError(f"{name}: got {value}, expected more than 0")
    for name, most in LARGEST.items():
        value = values.get(name) or 0
        if value > most:
            raise ValueError(f"{name}: got {value}, expected at most {most}")
    max_steps = values.get("max_steps", -1)
    if max_steps == 0 or max_steps < -1:  # -1: not given
        raise ValueError(f"max_steps: got {max_steps}, expected more than 0")
    warmup_steps = values.get("warmup_steps") or 0
    if 1 <= max_steps < warmup_steps:
        raise ValueError(
            f"warmup_steps: got {warmup_steps:g}, but the run has max_steps {max_steps} and would "
            "never reach its learning_rate; lower it"
        )


def _check_choices(values: dict[str, Any]) -> None:
    """Raise ValueError for what upstream knows to be no choice, and takes all the same."""
    for item in dataclasses.fields(TrainingArguments):
        choices = item.metadata.get("choices")
        value = values.get(item.name)
        if choices and value is not None and value not in choices:
            allowed = ", ".join(map(str, choices))
            raise ValueError(f"{item.name}: got {value!r}, expected one of {allowed}")
    for name in values.get("include_for_metrics") or ():
        if name not in ("inputs", "loss"):
            raise ValueError(f"include_for_metrics: got {name!r}, expected inputs or loss")


def _check_meaning(values: dict[str, Any]) -> None:
    """Raise ValueError for what upstream accepts and then passes over, or what undoes a promise."""
    if values.get("average_tokens_across_devices") is False:
        raise ValueError(
            "average_tokens_across_devices: false would undo the exact mean over the tokens of all "
            "ranks; leave it out"
        )
    if values.get("load_best_model_at_end"):
        for name in ("save_strategy", "eval_strategy"):
            if values.get(name) == "no":
                raise ValueError(
                    f"load_best_model_at_end: {name} is no, so there is nothing to load; set both "
                    "strategies, or leave it out"
                )
    optimizer = values.get("optim", "adamw_torch")
    # Between evaluations a model holds the weights at which gradients are taken.
    if optimizer.startswith("schedule_free"):
        raise ValueError(
            f"optim: {optimizer} saves other weights in its checkpoints than are evaluated, and "
            "each evaluation rounds the training; use --lr_scheduler_type constant_with_warmup "
            "--weight_averaging ema"
        )
    if values.get("optim_args") and optimizer in WITHOUT_ARGS:
        raise ValueError(
            f"optim_args: {optimizer} reads none; its numbers are learning_rate, weight_decay, "
            "adam_beta1, adam_beta2 and adam_epsilon"
        )
    config = values.get("accelerator_config")
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, str):
            raise ValueError(f"accelerator_config: {name}: got {value!r}, expected true or false")


def _check_schedule(values: dict[str, Any]) -> None:
    """Raise ValueError for numbers with which a schedule would not do what its name says."""
    schedule = values.get("lr_scheduler_kwargs") or {}
    if not isinstance(schedule, dict):
        raise ValueError(f"lr_scheduler_kwargs: got {schedule!r}, expected {{name: value, ...}}")
    for name in ("num_decay_steps", "num_stable_steps"):
        steps = schedule.get(name)
        if steps is not None and (type(steps) is not int or steps < 0):
            raise ValueError(f"lr_scheduler_kwargs: {name}: got {steps!r}, expected whole steps")
    learning_rate = values.get("learning_rate", TrainingArguments.learning_rate)
    for name, most in (("min_lr", learning_rate), ("min_lr_rate", 1), ("min_lr_ratio", 1)):
        least = schedule.get(name)
        if least is not None and not 0 <= least < most:
            raise ValueError(
                f"lr_scheduler_kwargs: {name}: got {least!r}, expected from 0 to below {most:g}"
            )
    _check_decay(values, schedule)


def _check_decay(values: dict[str, Any], schedule: dict[str, Any]) -> None:
    """Raise ValueError for a decay that the run is too short for."""
    max_steps = values.get("max_steps", -1)
    decay_steps = schedule.get("num_decay_steps")
    if decay_steps is None or max_steps < 1:
        return
    warmup_steps = values.get("warmup_steps") or 0
    if warmup_steps < 1:
        warmup_steps = math.ceil(warmup_steps * max_steps)
    before = int(warmup_steps) + (schedule.get("num_stable_steps") or 0)
    if before + decay_steps > max_steps:
        raise ValueError(
            f"lr_scheduler_kwargs: num_decay_steps: got {decay_steps}, but the run has max_steps "
            f"{max_steps}, of which {before} come before the decay; lower it"
        )


def _check_compiler(values: dict[str, Any]) -> None:
    """Raise ValueError for what torch.compile would refuse at the first step."""
    from accelerate.utils import DynamoBackend

    backend = values.get("torch_compile_backend")
    backends = [known.value.lower() for known in DynamoBackend]
    if backend and backend.lower() not in backends:
        raise ValueError(
            f"torch_compile_backend: got {backend!r}, expected one of {', '.join(backends)}"
        )
    mode = values.get("torch_compile_mode")
    if not mode:
        return
    from torch._inductor import list_mode_options

    if mode not in list_mode_options():
        raise ValueError(
            f"torch_compile_mode: got {mode!r}, expected one of {', '.join(list_mode_options())}"
        )


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
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(TRIED_STEPS),
        num_training_steps=TRIED_STEPS,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )
    with contextlib.suppress(ValueError):  # of a model, which is not here yet
        Trainer.get_optimizer_cls_and_kwargs(args)
    for name in args.gradient_checkpointing_kwargs or ():
        if name not in CHECKPOINTING:
            raise ValueError(
                f"gradient_checkpointing_kwargs: unknown name {name}; expected one of "
                f"{', '.join(CHECKPOINTING)}"
            )
    if not 0 <= args.label_smoothing_factor < 1:
        raise ValueError(
            f"label_smoothing_factor: got {args.label_smoothing_factor}, expected from 0 to below 1"
        )
    _check_trackers(args)


def _check_trackers(args: TrainingArguments) -> None:
    """Raise ValueError for one that upstream does not know, or that is not installed."""
    named = set(trackers_of(args)) - OWN_TRACKERS
    if not named:  # upstream imports W&B, which takes a second, to see which are installed
        return
    available = get_available_reporting_integrations()
    unknown = named - set(available)
    if unknown:
        raise ValueError(
            f"report_to: {unknown.pop()} is unknown or not installed; here: "
            f"{', '.join(available)}, none"
        )
