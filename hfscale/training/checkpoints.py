"""Whole checkpoints of finite weights, and from which of them a run goes on."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hfscale.folders import apply_umask, describe_differences
from hfscale.manifest import MANIFEST, check_manifest, read_manifest, write_manifest
from hfscale.process import InputError, is_main_rank, launched_engine
from hfscale.training.convert import (
    convert_checkpoint,
    forget_converted,
    parameter_names,
    restore_zero3_groups,
)
from hfscale.training.guards import check_weights

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
    """Makes checkpoints whole, and deletes old ones once a new one is.

    `manifest.json` comes last into each, with sizes and hashes of its files; without it, a
    checkpoint is not whole. `save_total_limit` is taken over from upstream, which deletes older
    checkpoints before that moment, in the order in which files were changed.

    `fixed_settings` holds settings that, beside the arguments, decide which rows come when.
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
        """Mend what ZeRO-3 has just loaded wrong from a rewritten checkpoint, and take rotation
        over.
        """
        restore_zero3_groups(args, optimizer)
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

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the manifest of the checkpoint that has just been saved, then delete old ones.

        Raises FloatingPointError: weights are not finite; it gets no manifest, and all others stay.
        """
        assert model is not None and optimizer is not None, "Trainer hands both over"
        check_weights(model, state.global_step)
        PartialState().wait_for_everyone()  # every rank saves its own random state
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        apply_umask(folder)
        write_manifest(
            folder,
            step=state.global_step,
            world_size=args.world_size,
            config=_config_of(args, self.fixed_settings),
            parameters=parameter_names(model, optimizer),
        )
        checkpoints = _checkpoints(folder.parent)
        rotate(checkpoints, MANIFEST, self.save_total_limit, state.best_model_checkpoint)


def rotate(
    checkpoints: Sequence[Path], manifest: str, save_total_limit: int | None, best: str | None
) -> None:
    """Delete the checkpoints of the earliest steps until at most so many whole ones are left.

    The newest whole one always stays, and so does the best; what is broken and older goes too.

    Args:
        checkpoints: their folders, newest step first.
        manifest: the file without which one is not whole.
        save_total_limit: upstream's; None: all stay.
        best: the folder of the best one, where a metric says which that is.
    """
    if save_total_limit is None:
        return
    whole = [folder for folder in checkpoints if (folder / manifest).is_file()]
    kept = whole[:save_total_limit]
    if best is not None and Path(best) not in kept:
        kept = [*whole[: max(1, save_total_limit - 1)], Path(best)]
    newest = checkpoints.index(whole[0])
    for folder in checkpoints[newest + 1 :]:
        if folder not in kept:
            (folder / manifest).unlink(missing_ok=True)  # first, so that a half is never a whole
            shutil.rmtree(folder)


def newest_checkpoint(
    args: TrainingArguments, fixed_settings: dict[str, Any] | None = None
) -> str | None:
    """The newest whole checkpoint in `output_dir`, or None; broken ones are passed over with a line
    on stderr. `fixed_settings` is compared with what `CheckpointManifest` was given. One of another
    engine is rewritten for this one (`convert_checkpoint`), so that every rank calls this, before
    it makes its Trainer.

    Raises:
        InputError: the arguments differ from the run's in what a continuation cannot change, or the
            optimizer's state cannot go on here.
    """
    forget_converted(args)  # which a continuation left that was broken off
    for folder in _checkpoints(Path(str(args.output_dir))):
        if problem := check_manifest(folder):
            _say(f"{folder} is not whole ({problem}); trying an older one")
            continue
        record = read_manifest(folder)
        now = _config_of(args, fixed_settings or {})
        _check_same_config(record["config"], now, folder)
        if record["config"]["optimizer_state"] == now["optimizer_state"]:
            return str(folder)
        return str(convert_checkpoint(folder, record, now["optimizer_state"], args))
    _say(f"no whole checkpoint in {args.output_dir}; starting anew")
    return None


def _checkpoints(output_dir: Path) -> list[Path]:
    """The folders of checkpoints, newest first, whole or not."""
    steps = {}
    for folder in output_dir.glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isascii() and step.isdecimal():
            steps[folder] = int(step)
    return sorted(steps, key=lambda folder: steps[folder], reverse=True)


def _say(line: str) -> None:
    if is_main_rank():
        print(f"--resume auto: {line}", file=sys.stderr)


def _config_of(args: TrainingArguments, fixed_settings: dict[str, Any]) -> dict[str, Any]:
    """What a run and its continuation must have in common, as JSON values."""
    kept = {
        name: value for name, value in args.to_dict().items() if not name.startswith(MAY_CHANGE)
    }
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    derived = {"global_batch_size": rows, "optimizer_state": _optimizer_state(args.world_size)}
    settings = kept | derived | fixed_settings
    # Whether code of a folder may run does not change what it computes.
    settings.pop("trust_remote_code", None)
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
