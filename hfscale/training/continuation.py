"""What a run and its continuation must have in common: all that shapes the model, the rows or the
steps, by content.

Everything counts that is not listed here. A continuation with other settings is right where it
equals a run that had them from the start; the reasons say why each of these leaves that as it is.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SchedulerType,
    TrainingArguments,
    get_scheduler,
)
from transformers.integrations.deepspeed import deepspeed_config

from hfscale.arguments import SHAPE_NAMES
from hfscale.data.fingerprints import rows_fingerprint, tokenizer_fingerprint
from hfscale.data.repacking import RepackedRows, table_of
from hfscale.data.stream_content import stream_fingerprint
from hfscale.models import weights_fingerprint
from hfscale.process import InputError, from_main_rank, is_main_rank, launched_engine

# Arguments of upstream's that may change, by the reason.
UPSTREAM_MAY_CHANGE = {
    "says where files go, not what is in them": ("output_dir", "save_on_each_node"),
    "says what is shown and logged; nothing is trained by it": (
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "debug",
        "skip_memory_metrics",
    ),
    "says how many checkpoints stay, of which the best and the newest always do": (
        "save_total_limit",
    ),
    "says what a checkpoint holds, and is refused where that is too little to go on from": (
        "save_only_model",
    ),
    "pushes what was saved": (
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
    ),
    "evaluations leave the training's random numbers as they were, and their batches change "
    "no sum": (
        "do_eval",
        "eval_on_start",
        "per_device_eval_batch_size",
        "eval_accumulation_steps",
    ),
    "says how rows reach the model, not which": (
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
    ),
    "trades time for memory, with the same numbers": (
        "activation_checkpointing",
        "gradient_checkpointing",
        "torch_empty_cache_steps",
    ),
    "is the machine's, or the engine's, for which a checkpoint is rewritten: other rounding": (
        "use_cpu",
        "local_rank",
        "fsdp",
        "fsdp_config",
        "deepspeed",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
    ),
    "has no effect in a recipe": ("do_train", "do_predict", "resume_from_checkpoint"),
    "says whether code may run, not what it computes": ("trust_remote_code",),
    "gives the same rows for any number": ("dataset_num_proc",),
}
# Arguments of the recipes that may change, by the reason.
RECIPES_MAY_CHANGE = {
    "says how this start goes": ("resume", "overwrite", "dry_run"),
    "says whether code may run, and whether files are whole, not what they hold": (
        "trust_remote_code",
        "verify_digests",
    ),
    "gives the same rows for any number": ("num_proc",),
    "cuts the same rows of a step into other pieces": ("auto_batch",),
    "is done after the training": ("merge",),
    "is written on the model card": ("license", "language"),
    "says which weights are kept beside, not which are trained": ("save_words",),
    "says with what answers are compared": ("baseline", "baseline_input"),
}
# Arguments whose effect is compared in place of their values, by what shows it: the same text may
# lie elsewhere, and the same batch be cut in another way.
COMPARED_AS = {
    "global_batch_size": ("per_device_train_batch_size", "gradient_accumulation_steps"),
    "total_steps": ("max_steps", "num_train_epochs"),
    "dataloader_num_workers": ("dataloader_num_workers",),  # of a stream
    "train_rows": (
        "source",
        "validation_source",
        "forget_source",
        "task_source",
        "task_validation_source",
    ),
    "tokenizer_content": ("tokenizer", "chat_template"),
    "model_weights": ("model",),
    "teacher_weights": ("teacher_model_name_or_path",),
    "encoder_weights": ("encoder",),
    "model_config": ("architecture", *SHAPE_NAMES, "model_config"),
    "upstream's arguments": ("training",),
}
# They count where evaluations decide what becomes of the weights, and may change elsewhere.
BY_EVALUATIONS = (
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "save_strategy",
    "save_steps",
    "metrics",
    "metric_options",
    "max_new_tokens",
    "stop_strings",
    "test_code",
    "test_program",
    "tests_apart",
)
SCHEDULES_BY_EVALUATIONS = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
# Of a model's configuration: what is of the file, not of the model.
NOT_OF_THE_MODEL = (
    "_name_or_path",
    "transformers_version",
    "use_cache",
    "architectures",
    "dtype",
    "n_ctx",  # the context again, for other programs
)
# Contents, by the argument that names what they are of.
CONTENTS = {
    "tokenizer_content": "tokenizer",
    "model_weights": "model",
    "teacher_weights": "teacher_model_name_or_path",
    "encoder_weights": "encoder",
    "model_code": "model",
}
OPTIMIZER_STATE = "optimizer_state"  # in what form, which `convert_checkpoint` sees to
NAMES = "names"  # how the run calls what is compared by content
NAMED = (
    "model",
    "teacher_model_name_or_path",
    "encoder",
    "tokenizer",
    "source",
    "task_source",
)
NOT_COMPARED = (OPTIMIZER_STATE, NAMES, "total_steps")  # the last in `_check_steps`
SHOWN_CHARACTERS = 80  # of a value in a message
SHOWN_NAMES = 5


def reasons(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """One of the tables above by name: `{"resume": "says how this start goes", ...}`."""
    return {name: reason for reason, names in table.items() for name in names}


# ---- what counts


def settings_of_run(
    args: Any,
    training_args: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, Dataset | IterableDataset | RepackedRows],
) -> dict[str, Any]:
    """What a continuation must have as this run has it, as JSON values by names.

    Collective: it is called on every rank, before a trainer spreads the model over them. Rank 0
    alone reads the files of the base model and of a stream, and tells the others.

    Args:
        args: the recipe's arguments, a dataclass, as the recipe has settled them.
        training_args: upstream's.
        model: as it comes to the trainer: new, loaded, or below an adapter.
        tokenizer: the run's.
        rows: as the model gets them, `train` and those to evaluate on.

    Raises:
        InputError: a stream from the Hub that cannot be reached.
    """
    train = rows["train"]
    num_rows = None if isinstance(train, IterableDataset) else len(train)
    settings = training_settings(training_args, num_rows)
    settings |= _recipe_settings(args, training_args)
    settings |= _settings_of_batches(args, training_args, model, train)
    settings["recipe"] = type(args).__name__.removesuffix("Arguments")
    settings["model_config"] = _config_of(model)
    settings["model_code"] = _code_of(model)
    settings["tokenizer_content"] = tokenizer_fingerprint(tokenizer)
    for name, part in rows.items():
        if not isinstance(part, IterableDataset):
            settings[f"{name}_rows"] = rows_fingerprint(table_of(part))
    settings |= from_main_rank(lambda: _contents_of_files(args, train))
    return _json_values(settings)


def _contents_of_files(
    args: Any, train: Dataset | IterableDataset | RepackedRows
) -> dict[str, str | None]:
    """What a run starts from, and what a stream reads."""
    base = getattr(args, "model", "new")
    # Random weights are those of the seed and the configuration.
    contents = {"model_weights": None if base == "new" else weights_fingerprint(base)}
    if teacher := getattr(args, "teacher_model_name_or_path", None):
        contents["teacher_weights"] = weights_fingerprint(teacher)
    encoder = getattr(args, "encoder", None)
    if encoder:  # of a model that reads pictures
        contents["encoder_weights"] = None if encoder == "new" else weights_fingerprint(encoder)
    if isinstance(train, IterableDataset):
        contents["train_rows"] = stream_fingerprint(args.source)
    return contents


def training_settings(
    training_args: TrainingArguments, num_rows: int | None = None
) -> dict[str, Any]:
    """`settings_of_run`, as far as upstream's arguments tell.

    Args:
        num_rows: training rows, from which the steps of epochs are counted; None: not known.
    """
    left_out = reasons(UPSTREAM_MAY_CHANGE).keys() | reasons(COMPARED_AS).keys()
    settings = {
        name: value for name, value in training_args.to_dict().items() if name not in left_out
    }
    # Upstream hides what is called so; the token of the Hub is left out.
    hidden = [name for name in settings if name.endswith("_token")]
    settings |= {name: getattr(training_args, name) for name in hidden}
    settings |= _only_by_evaluations(settings, training_args)
    total_steps = _total_steps(training_args, num_rows)
    settings |= {
        "mixed_precision": training_args.mixed_precision,  # the launch config can say it too
        "global_batch_size": _rows_at_once(training_args)
        * training_args.gradient_accumulation_steps,
        "total_steps": total_steps,
        "num_train_epochs": training_args.num_train_epochs if total_steps is None else None,
        OPTIMIZER_STATE: _optimizer_state(training_args.world_size),
    }
    settings |= _settings_of_deepspeed()
    return _json_values(settings)


def _recipe_settings(args: Any, training_args: TrainingArguments) -> dict[str, Any]:
    left_out = reasons(RECIPES_MAY_CHANGE).keys() | reasons(COMPARED_AS).keys()
    settings = {
        item.name: getattr(args, item.name) for item in fields(args) if item.name not in left_out
    }
    settings[NAMES] = {name: getattr(args, name, None) for name in NAMED}
    return settings | _only_by_evaluations(settings, training_args)


def _only_by_evaluations(
    settings: dict[str, Any], training_args: TrainingArguments
) -> dict[str, Any]:
    """Those of `BY_EVALUATIONS` among the settings, None where they may change."""
    counts = (
        training_args.load_best_model_at_end
        or training_args.lr_scheduler_type in SCHEDULES_BY_EVALUATIONS
    )
    return {name: settings[name] if counts else None for name in BY_EVALUATIONS if name in settings}


def _settings_of_batches(
    args: Any,
    training_args: TrainingArguments,
    model: PreTrainedModel,
    train: Dataset | IterableDataset | RepackedRows,
) -> dict[str, Any]:
    """How a step's rows are cut and dealt out, where that decides more than memory; else None."""
    is_stream = isinstance(train, IterableDataset)
    micro_batch_size = training_args.train_batch_size
    if getattr(args, "auto_batch", False):  # each step's rows are one batch, cut as it fits
        micro_batch_size *= training_args.gradient_accumulation_steps
    config = model.config.get_text_config()
    cut_counts = (
        is_stream  # each worker of a loader reads for whole micro-batches
        or training_args.dataloader_drop_last  # of an epoch, less than a micro-batch
        or training_args.label_smoothing_factor  # a mean of means
        or getattr(config, "output_router_logits", False)  # experts are balanced in each
        or "labels" not in train.column_names  # TRL's loss is a mean over each
    )
    # Rows of similar length are sought among those of a process.
    share_counts = training_args.train_sampling_strategy == "group_by_length"
    dealing_counts = cut_counts or share_counts or not training_args.average_tokens_across_devices
    return {
        "micro_batch_size": micro_batch_size if cut_counts else None,
        "world_size": training_args.world_size if dealing_counts else None,
        "dataloader_num_workers": training_args.dataloader_num_workers if is_stream else None,
    }


def _rows_at_once(training_args: TrainingArguments) -> int:
    """Rows that all processes together read for a micro-batch."""
    splits = getattr(training_args.accelerator_config, "split_batches", False)
    return training_args.train_batch_size * (1 if splits else training_args.world_size)


def _total_steps(training_args: TrainingArguments, num_rows: int | None) -> int | None:
    """As upstream counts them; None: epochs of rows whose number is not known."""
    if training_args.max_steps > 0:
        return training_args.max_steps
    if num_rows is None:
        return None
    batches = num_rows / _rows_at_once(training_args)
    batches = math.floor(batches) if training_args.dataloader_drop_last else math.ceil(batches)
    steps_of_epoch = max(1, math.ceil(batches / training_args.gradient_accumulation_steps))
    return math.ceil(training_args.num_train_epochs * steps_of_epoch)


def _optimizer_state(processes: int) -> str:
    """In whose form a checkpoint holds it. DeepSpeed's is in shards, the others' whole."""
    engine = launched_engine()
    if engine.startswith("ZeRO"):
        return f"{engine} on {processes} processes"
    return engine


def _settings_of_deepspeed() -> dict[str, Any]:
    """Of a file of the user's own for DeepSpeed, which goes before upstream's arguments."""
    config = deepspeed_config() or {}
    names = ("optimizer", "scheduler", "gradient_clipping")
    set_there = {name: config[name] for name in names if config.get(name, "auto") != "auto"}
    return {f"deepspeed_{name}": set_there.get(name) for name in names}


def _config_of(model: PreTrainedModel) -> dict[str, Any]:
    """Its sizes, and what else differs from the defaults of its kind: another version of
    transformers can know more names.
    """
    config = model.config.to_diff_dict()
    # By the names of the class: GPT-2's files and records say n_embd.
    sizes = [model.config.attribute_map.get(name, name) for name in SHAPE_NAMES]
    config |= {name: getattr(model.config, name) for name in sizes if hasattr(model.config, name)}
    return {name: value for name, value in config.items() if name not in NOT_OF_THE_MODEL}


def _code_of(model: PreTrainedModel) -> str | None:
    """SHA-256 over the file of a model's own code; None: it is transformers'."""
    below_adapter = getattr(model, "get_base_model", None)
    module = type(below_adapter() if below_adapter else model).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    if module.startswith("transformers.") or file is None:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def _json_values(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str))


# ---- the comparison


def check_same_settings(record: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Compare a checkpoint's settings with those of the run that is to go on from it.

    Settings that the checkpoint does not record are not compared, which is said: another version
    of hfscale or of its libraries wrote it.

    Args:
        record: the checkpoint's manifest.
        now: of `settings_of_run`.
        folder: the checkpoint's.

    Raises:
        InputError: settings differ, the checkpoint holds no optimizer state, or its steps would
            have had other learning rates in a run of so many steps.
    """
    place = f"--resume auto: {folder}"
    if not any("optim" in name for name in record["files"]):
        raise InputError(
            f"{place} holds no optimizer state (save_only_model), so no run can go on from it; "
            f"start one from its weights: hfscale finetune --model {folder}"
        )
    before = record["config"]
    compared = [name for name in now if name in before and name not in NOT_COMPARED]
    changed = []
    for name in sorted(compared):
        changed += _differences(name, before[name], now[name], now.get("names", {}))
    if changed:
        raise InputError(
            f"{place} belongs to a run with other settings ({'; '.join(changed)}); put them back, "
            "or start a run in another output_dir"
        )
    _check_steps(before, now, record["step"], place)
    _say_what_is_not_recorded(sorted(now.keys() - before.keys() - {NAMES}), folder)


def _differences(name: str, before: Any, now: Any, names: Mapping[str, Any]) -> list[str]:
    """What a message says of a setting, or of each within one; nothing where they are equal."""
    if before == now:
        return []
    if name in CONTENTS or name.endswith("_rows"):
        called = names.get(CONTENTS.get(name, "source")) or names.get("task_source")
        what = name.removesuffix("_content").removesuffix("_weights").replace("_", " ")
        return [f"the content of the {what}{f' ({_shown(called)})' if called else ''} changed"]
    if isinstance(before, dict) and isinstance(now, dict):
        parts = []
        inner_names = sorted(before.keys() | now.keys())
        if before.get("model_type") != now.get("model_type"):
            inner_names = ["model_type"]  # of two architectures all the rest differs
        for inner in inner_names:
            parts += _differences(f"{name}.{inner}", before.get(inner), now.get(inner), {})
        return parts
    return [f"{name} was {_shown(before)}, is {_shown(now)}"]


def _shown(value: Any) -> str:
    """A value in one line, without the rest of a long one."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _check_steps(before: dict[str, Any], now: dict[str, Any], step: int, place: str) -> None:
    """Refuse another number of steps, unless the learning rates up to this one are the same."""
    old = before.get("total_steps")
    new = now["total_steps"]
    if old is None or new is None or old == new:
        return
    if new < step:
        raise InputError(
            f"{place} is of step {step}, beyond the {new} steps that are asked for; raise "
            "max_steps or num_train_epochs"
        )
    schedule = now["lr_scheduler_type"]
    if _rates(now, old, step) != _rates(now, new, step):
        raise InputError(
            f"{place} belongs to a run of {old} steps, and in one of {new} the {schedule} schedule "
            f"has other learning rates up to step {step} already; put max_steps and "
            "num_train_epochs back, or start a run in another output_dir"
        )
    _say(
        f"{new} steps in place of {old}; up to step {step} the {schedule} schedule has the same "
        "learning rates"
    )


def _rates(settings: Mapping[str, Any], total_steps: int, last_step: int) -> list[float]:
    """By what a schedule multiplies the learning rate at each step up to `last_step`; nothing of
    one that looks at evaluations, not at steps.
    """
    warmup: float = settings["warmup_steps"]
    warmup_steps = int(warmup) if warmup >= 1 else math.ceil(total_steps * warmup)
    schedule = get_scheduler(
        settings["lr_scheduler_type"],
        # Of which upstream takes `min_lr` as a part.
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings["learning_rate"]),
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=settings["lr_scheduler_kwargs"],
    )
    if settings["lr_scheduler_type"] in SCHEDULES_BY_EVALUATIONS:
        return []
    [rate_at] = schedule.lr_lambdas
    return [rate_at(step) for step in range(last_step + 1)]


def _say_what_is_not_recorded(names: list[str], folder: Path) -> None:
    if not names or not is_main_rank():
        return
    shown = ", ".join(names[:SHOWN_NAMES])
    if len(names) > SHOWN_NAMES:
        shown += f" and {len(names) - SHOWN_NAMES} more"
    _say(f"{folder} is of another version and does not record {shown}, which are not compared")


def _say(line: str) -> None:
    if is_main_rank():
        print(f"--resume auto: {line}", file=sys.stderr)
