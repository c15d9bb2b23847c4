"""What a checkpoint says about its run, and from which one a run goes on."""

import sys
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

from hfscale.manifest import MANIFEST, check_manifest, manifest_digest, read_manifest
from hfscale.process import InputError, from_main_rank
from hfscale.training.continuation import check_same_settings, training_settings
from hfscale.training.convert import (
    convert_checkpoint,
    forget_converted,
    parameter_names,
    restore_zero3_groups,
)
from hfscale.training.ranks import check_same
from hfscale.training.saving import checkpoints_in, forget_unfinished


class RunIsDone(Exception):
    """A run that is to go on has no step left; see `run_training`."""


class CheckpointManifest(TrainerCallback):
    """What the manifest of a checkpoint says, and what a run needs to go on from one.

    `settings` are what a continuation must have in common with the run; see `settings_of_run`.
    `save_total_limit` is taken over from upstream while a run trains; see `save_whole`.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
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
        where the folder was moved, and take rotation over. Where a run goes on, upstream would also
        log, evaluate and save as often as before.
        """
        restore_zero3_groups(args, optimizer)
        find_best(args, state)
        state.compute_steps(args, state.max_steps)
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
            "config": self.settings,
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
    args: TrainingArguments, settings: dict[str, Any] | None = None
) -> str | None:
    """The newest whole checkpoint in `output_dir`, or None; broken ones are passed over with a line
    on stderr. `settings` (see `settings_of_run`) are compared with the run's. One of another engine
    is rewritten for this one (`convert_checkpoint`). Rank 0 alone reads and chooses, but every rank
    calls this, before it makes its Trainer.

    Raises:
        InputError: see `check_same_settings`, the optimizer's state cannot go on here, or a rank
            sees another folder at that path.
    """
    now = settings or training_settings(args)
    folder, record = from_main_rank(lambda: _choose(args, now))
    if folder is None:
        return None
    sight = {
        f"{folder}/{MANIFEST}": manifest_digest(folder),
        f"what is wrong with {folder}": check_manifest(folder, sizes_only=True),
    }
    check_same(sight, "all ranks must see the same output_dir: put it on a disk that they share")
    engine = now["optimizer_state"]
    if record["config"]["optimizer_state"] == engine:
        return str(folder)
    return str(convert_checkpoint(folder, record, engine, args))


def _choose(
    args: TrainingArguments, settings: dict[str, Any]
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
        check_same_settings(record, settings, folder)
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
