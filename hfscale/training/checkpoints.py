"""Whole checkpoints of finite weights, and how a run stops and goes on."""

import hashlib
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from hfscale.folders import apply_umask, describe_differences, flush_to_disk, write_atomically
from hfscale.process import InputError, is_main_rank, launched_engine
from hfscale.training.convert import (
    convert_checkpoint,
    forget_converted,
    parameter_names,
    restore_zero3_groups,
)

MANIFEST = "manifest.json"
ADVICE = "try a lower learning_rate"  # to who finds numbers that are not finite
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
    """A run that is to go on has no step left; see `end_training`."""


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
        flush_to_disk(folder)
        record = {
            "step": state.global_step,
            "world_size": args.world_size,
            "config": _config_of(args, self.fixed_settings),
            "parameters": parameter_names(model, optimizer),
            "files": _digests_of(folder),
        }
        write_atomically(folder / MANIFEST, json.dumps(record, indent=1))
        flush_to_disk(folder)
        checkpoints = _checkpoints(folder.parent)
        rotate(checkpoints, MANIFEST, self.save_total_limit, state.best_model_checkpoint)


def guard_gradients(trainer: Trainer) -> None:
    """Let a trainer stop, with FloatingPointError, before a step whose gradients are not finite.

    Their norm is computed at each step anyway, so this costs a comparison. In float16 such steps
    are left out by the scaler.
    """
    if trainer.args.fp16:
        return
    clip = trainer.accelerator.clip_grad_norm_

    def checked(*args: Any, **kwargs: Any) -> Any:
        norm = clip(*args, **kwargs)
        if norm is not None and not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradients became {float(norm)} at step {trainer.state.global_step + 1}; the "
                f"weights of the last checkpoint are good; {ADVICE}"
            )
        return norm

    trainer.accelerator.clip_grad_norm_ = checked


def check_weights(model: torch.nn.Module, step: int) -> None:
    """Raise FloatingPointError for weights that are NaN or infinite.

    Shards are passed over: one rank would stop alone. The norm of all their gradients was finite.
    """
    for name, parameter in model.named_parameters():
        if type(parameter.data) is torch.Tensor and not torch.isfinite(parameter.data).all():
            raise FloatingPointError(
                f"{name} is not finite at step {step}, of which no checkpoint is kept; the one "
                f"before it is good; {ADVICE}"
            )


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


def train_guarded(trainer: Trainer, checkpoint: str | None) -> None:
    """Train with a trainer that is not an `LMTrainer` (TRL's) as that one does: stopped by
    gradients that are not finite, and not a step beyond the end.
    """
    guard_gradients(trainer)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except RunIsDone:
        end_training(trainer)


def end_training(trainer: Trainer) -> TrainOutput:
    """What upstream does after the last step, for a run that has no step left (`RunIsDone`): its
    state and weights are loaded.
    """
    trainer.is_in_train = False
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    handler = trainer.callback_handler
    trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)
    return TrainOutput(trainer.state.global_step, math.nan, {})


def _digests_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file below the folder, by its path there."""
    return {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


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
        if problem := _problem(folder):
            _say(f"{folder} is not whole ({problem}); trying an older one")
            continue
        record = json.loads((folder / MANIFEST).read_text("utf-8"))
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


def _problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole; None: it is."""
    try:
        record = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}: it was not finished"
    for name in ("files", "config"):
        if not isinstance(record, dict) or not isinstance(record.get(name), dict):
            return f"{MANIFEST} has no {name}"
    problems = (_file_problem(folder, *item) for item in record["files"].items())
    return next((problem for problem in problems if problem), None)


def _file_problem(folder: Path, name: str, expected: Any) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    digest = _digest(path)
    if digest == expected:
        return None
    if isinstance(expected, dict) and digest["bytes"] != expected.get("bytes"):
        return f"{name} has {digest['bytes']} bytes instead of {expected.get('bytes')}"
    return f"{name} was changed after it was written"


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


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint at the end of the step, on all ranks alike, and ends the process with 128
    and the signal's number (SIGTERM: 143, SIGHUP: 129), or goes on (SIGUSR1). A second signal that
    ends the process does so at once.

    `can_resume`: the recipe has --resume.
    """

    ENDING = (signal.SIGTERM, signal.SIGHUP)
    SAVING = signal.SIGUSR1

    def __init__(self, can_resume: bool = True):
        self.can_resume = can_resume
        self.received = 0  # the number of the signal that ends the training; 0: none came
        self.is_save_asked = False
        self._previous: dict[int, Any] = {}  # who had each signal before: functions or numbers
        self._pid: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the signals over."""
        self._pid = os.getpid()
        for number in (*self.ENDING, self.SAVING):
            self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        is_second = self.received and number in self.ENDING
        if os.getpid() != self._pid or is_second:
            # A worker that was forked meanwhile ends, or who waits for its end waits forever.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == self.SAVING:
            self.is_save_asked = True
        else:
            self.received = number

    def restore(self) -> None:
        """Give the signals back to who had them before the training."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask Trainer to save, and to stop, on all ranks if one of them got the signal."""
        self.received, is_save_asked = self._of_all_ranks(args)
        self.is_save_asked = False
        if self.received or is_save_asked:
            control.should_save = True
        if self.received:
            control.should_training_stop = True

    def _of_all_ranks(self, args: TrainingArguments) -> tuple[int, bool]:
        if args.world_size == 1:
            return self.received, self.is_save_asked
        flags = torch.tensor([self.received, int(self.is_save_asked)], device=args.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        number, is_save_asked = flags.tolist()
        return number, bool(is_save_asked)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the process with the status of the signal, if that is why the training ends."""
        self.restore()
        if not self.received:
            return
        if is_main_rank():
            saved = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            goes_on = ", --resume auto goes on" if self.can_resume else f": {saved}"
            print(
                f"stopped by {signal.Signals(self.received).name} after step "
                f"{state.global_step}; a checkpoint is saved{goes_on}",
                file=sys.stderr,
            )
        raise SystemExit(128 + self.received)
