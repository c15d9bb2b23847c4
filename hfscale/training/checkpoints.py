"""What a checkpoint says about its run, and from which one a run goes on."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hfscale.arguments import LoadArguments
from hfscale.differences import describe_differences
from hfscale.manifest import MANIFEST, check_manifest, manifest_digest, read_manifest
from hfscale.process import InputError, from_main_rank, launched_engine
from hfscale.training.convert import (
    convert_checkpoint,
    forget_converted,
    parameter_names,
    restore_zero3_groups,
)
from hfscale.training.ranks import check_same
from hfscale.training.saving import checkpoints_in, forget_unfinished

# What may change between a run and its continuation, by the beginnings of names: everything else
# would be silently ignored or mix two runs.
MAY_CHANGE = (
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "logging",
    "log_",
    "save",
    "eval",
    "report_to",
    "run_name",
    "project",
    "disable_tqdm",
    "dataloader",
    "per_device",
    "gradient_accumulation",
    "use_cpu",
    "local_rank",
    "push_to_hub",
    "hub_",
    "ddp_",
    "metric_for",
    "accelerator_config",
)


class RunIsDone(Exception):
    """A run that is to go on has no step left; see `run_training`."""


class CheckpointManifest(TrainerCallback):
    """What the manifest of a checkpoint says, and what a run needs to go on from one.

    `fixed_settings` holds settings that, beside the arguments, decide which rows come when.
    `save_total_limit` is taken over from upstream while a run trains; see `save_whole`.
    """

    def __init__(self, fixed_settings: dict[str, Any] | None = None):
        self.fixed_settings = fixed_settings or {}
        self.save_total_limit: int | None = None
        self.tokens_before = 0  # seen by the parts of the run that this one continues

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Mend what ZeRO-3 has just loaded wrong from a rewritten checkpoint, find the best one
        where the folder was moved, and take rotation over.
        """
        restore_zero3_groups(args, optimizer)
        find_best(args, state)
        self.tokens_before = int(state.num_input_tokens_seen)
        self.save_total_limit = args.save_total_limit
        args.save_total_limit = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give `save_total_limit` back, which the run's record shows."""
        args.save_total_limit = self.save_total_limit

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise RunIsDone where upstream would train a step beyond `max_steps`."""
        if state.global_step >= state.max_steps:
            raise RunIsDone

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Delete a rewritten checkpoint: every rank has read it by now."""
        forget_converted(args)

    def facts(self, trainer: Trainer) -> dict[str, Any]:
        """What the manifest of the trainer's next checkpoint says beside its files."""
        model: Any = trainer.model
        optimizer: Any = trainer.optimizer
        return {
            "step": trainer.state.global_step,
            "world_size": trainer.args.world_size,
            "config": _config_of(trainer.args, self.fixed_settings),
            "parameters": parameter_names(model, optimizer),
        }


def find_best(args: TrainingArguments, state: TrainerState) -> None:
    """Let a state that was just loaded name the best checkpoint by where it lies now: upstream
    forgets one that is not at the path of that time.
    """
    best = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
    if state.best_global_step and best.is_dir():
        state.best_model_checkpoint = str(best)


def newest_checkpoint(
    args: TrainingArguments, fixed_settings: dict[str, Any] | None = None
) -> str | None:
    """The newest whole checkpoint in `output_dir`, or None; broken ones are passed over with a line
    on stderr. `fixed_settings` is compared with what `CheckpointManifest` was given. One of another
    engine is rewritten for this one (`convert_checkpoint`). Rank 0 alone reads and chooses, but
    every rank calls this, before it makes its Trainer.

    Raises:
        InputError: the arguments differ from the run's in what a continuation cannot change, the
            optimizer's state cannot go on here, or a rank sees another folder at that path.
    """
    folder, record = from_main_rank(lambda: _choose(args, fixed_settings or {}))
    if folder is None:
        return None
    sight = {
        f"{folder}/{MANIFEST}": manifest_digest(folder),
        f"what is wrong with {folder}": check_manifest(folder, sizes_only=True),
    }
    check_same(sight, "all ranks must see the same output_dir: put it on a disk that they share")
    now = _optimizer_state(args.world_size)
    if record["config"]["optimizer_state"] == now:
        return str(folder)
    return str(convert_checkpoint(folder, record, now, args))


def _choose(
    args: TrainingArguments, fixed_settings: dict[str, Any]
) -> tuple[Path | None, dict[str, Any]]:
    """The newest whole checkpoint, and what its manifest says."""
    output_dir = Path(str(args.output_dir))
    forget_converted(args)  # which a continuation left that was broken off
    forget_unfinished(output_dir)
    for folder in checkpoints_in(output_dir):
        if problem := _problem(folder):
            _say(f"{folder} is not whole ({problem}); trying an older one")
            continue
        record = read_manifest(folder)
        _check_same_config(record["config"], _config_of(args, fixed_settings), folder)
        _check_best(args, folder)
        return folder, record
    _say(f"no whole checkpoint in {output_dir}; starting anew")
    return None, {}


def _problem(folder: Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None: it can."""
    if problem := check_manifest(folder):
        return problem
    record = read_manifest(folder)
    config = record.get("config")
    if not isinstance(config, dict) or "optimizer_state" not in config:
        return f"{MANIFEST} has no config"
    if not isinstance(record.get("step"), int):
        return f"{MANIFEST} has no step"
    return None


def _check_best(args: TrainingArguments, folder: Path) -> None:
    """Raise InputError where the best checkpoint so far is gone: the final model would be another
    one. Its content is verified when it is loaded.
    """
    state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    if not args.load_best_model_at_end or state.best_model_checkpoint is None:
        return
    best = folder.with_name(Path(state.best_model_checkpoint).name)
    if problem := check_manifest(best, sizes_only=True):
        raise InputError(
            f"--resume auto: load_best_model_at_end: {best} is the best checkpoint so far and not "
            f"whole any more ({problem}); put it back, or start a run in another output_dir"
        )


def _say(line: str) -> None:
    print(f"--resume auto: {line}", file=sys.stderr)


def _config_of(args: TrainingArguments, fixed_settings: dict[str, Any]) -> dict[str, Any]:
    """What a run and its continuation must have in common, as JSON values."""
    kept = {
        name: value for name, value in args.to_dict().items() if not name.startswith(MAY_CHANGE)
    }
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    derived = {"global_batch_size": rows, "optimizer_state": _optimizer_state(args.world_size)}
    settings = kept | derived | fixed_settings
    # How a folder is trusted does not change what it computes.
    for item in fields(LoadArguments):
        settings.pop(item.name, None)
    return json.loads(json.dumps(settings, default=str))


def _optimizer_state(processes: int) -> str:
    """In whose form a checkpoint holds it. DeepSpeed's is in shards, the others' whole."""
    engine = launched_engine()
    if engine.startswith("ZeRO"):
        return f"{engine} on {processes} processes"
    return engine


def _check_same_config(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    # `convert_checkpoint` sees to another engine's optimizer state.
    if changed := describe_differences(before, now, ignored=("optimizer_state",)):
        raise InputError(
            f"--resume auto: {folder} belongs to a run with other settings ({changed}); put them "
            "back, or start a run in another output_dir"
        )
