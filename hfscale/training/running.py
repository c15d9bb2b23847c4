"""A training that can be stopped, goes on where it stopped, and never saves what is broken."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer

from hfscale.data.fingerprints import sampled_fingerprint
from hfscale.manifest import MANIFEST
from hfscale.process import InputError
from hfscale.training.checkpoints import CheckpointManifest, RunIsDone
from hfscale.training.guards import guard_best, guard_gradients
from hfscale.training.ranks import check_same
from hfscale.training.saving import save_whole
from hfscale.training.signals import StopOnSignal


def run_training(
    trainer: Trainer,
    checkpoint: str | None,
    fixed_settings: dict[str, Any] | None = None,
    *,
    can_resume: bool = True,
) -> None:
    """Train with any Trainer (ours or TRL's) from the start or from a checkpoint.

    Args:
        checkpoint: of `newest_checkpoint`; None: from the start.
        fixed_settings: what a continued run must have as it was; see `CheckpointManifest`.
        can_resume: whether the recipe has --resume; what SIGTERM prints says so.

    Raises:
        FloatingPointError: gradients or weights that are not finite; the checkpoints are good.
        InputError: a rank has other rows or settings, or the best checkpoint, which is to become
            the final model, is damaged.
        SystemExit: a signal ended the training; see `StopOnSignal`.
    """
    _check_same_run(trainer, fixed_settings or {})
    guard_gradients(trainer)
    guard_best(trainer)
    manifest = CheckpointManifest(fixed_settings)
    trainer.add_callback(manifest)
    save_whole(
        trainer, facts=lambda: manifest.facts(trainer), limit=lambda: manifest.save_total_limit
    )
    stop_on_signal = StopOnSignal(can_resume)
    trainer.add_callback(stop_on_signal)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except RunIsDone:
        _end_training(trainer)
    except KeyError as error:
        name = trainer.args.metric_for_best_model
        if not name or f"eval_{name.removeprefix('eval_')}" not in str(error):
            raise
        measured = ", ".join(_evaluated(trainer))
        raise InputError(
            f"metric_for_best_model: {name} is not measured; expected one of {measured}"
        ) from None
    finally:
        stop_on_signal.restore()  # an error ends a training without `on_train_end`
    if trainer.is_world_process_zero():
        # Of an earlier end of this run, whose final files are written anew now.
        Path(str(trainer.args.output_dir), MANIFEST).unlink(missing_ok=True)


def _check_same_run(trainer: Trainer, fixed_settings: dict[str, Any]) -> None:
    """Raise InputError on all ranks if one has read other data than rank 0."""
    values = dict(fixed_settings)
    if isinstance(trainer.train_dataset, Dataset):
        values["the content of the training rows"] = sampled_fingerprint(trainer.train_dataset)
    check_same(
        values, "all ranks must read the same: put data and models on a disk that they share"
    )


def _evaluated(trainer: Trainer) -> list[str]:
    """The metrics of the last evaluation."""
    logs = [log for log in trainer.state.log_history if "eval_loss" in log]
    return [name for name in (logs[-1] if logs else ()) if name.startswith("eval_")]


def _end_training(trainer: Trainer) -> None:
    """What upstream does after the last step, for a run that has no step left: its state and
    weights are loaded.
    """
    trainer.is_in_train = False
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    handler = trainer.callback_handler
    trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)
