"""Whole checkpoints, and how a run stops and goes on."""

import hashlib
import json
import os
import signal
import sys
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

from hfscale.folders import describe_differences, write_atomically
from hfscale.process import InputError, is_main_rank, launched_engine
from hfscale.training.convert import (
    convert_checkpoint,
    forget_converted,
    parameter_names,
    restore_zero3_groups,
)

MANIFEST = "manifest.json"
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


class CheckpointManifest(TrainerCallback):
    """Writes `manifest.json` last into each checkpoint: sizes and hashes of its files. Without
    it, it is not whole. `fixed_settings` holds settings that, beside the arguments, decide which
    rows come when.
    """

    def __init__(self, fixed_settings: dict[str, Any] | None = None):
        self.fixed_settings = fixed_settings or {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Mend what ZeRO-3 has just loaded wrong from a rewritten checkpoint."""
        restore_zero3_groups(args, optimizer)

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
        """Write the manifest of the checkpoint that has just been saved."""
        PartialState().wait_for_everyone()  # every rank saves its own random state
        if not state.is_world_process_zero:
            return
        assert model is not None and optimizer is not None, "Trainer hands both over"
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        record = {
            "step": state.global_step,
            "world_size": args.world_size,
            "config": _config_of(args, self.fixed_settings),
            "parameters": parameter_names(model, optimizer),
            "files": _digests_of(folder),
        }
        write_atomically(folder / MANIFEST, json.dumps(record, indent=1))


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
        if step.isdigit():
            steps[folder] = int(step)
    return sorted(steps, key=lambda folder: steps[folder], reverse=True)


def _say(line: str) -> None:
    if is_main_rank():
        print(f"--resume auto: {line}", file=sys.stderr)


def _problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole; None: it is."""
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"no readable {MANIFEST}: it was not finished"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _digest(path) != expected:
            return f"{name} was changed after it was written"
    return None


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
    """SIGTERM: save a checkpoint at the end of the step, on all ranks alike, and exit with status
    143. `can_resume`: the recipe has --resume.
    """

    def __init__(self, can_resume: bool = True):
        self.can_resume = can_resume
        self.received = False
        self._previous: Any = None  # what `signal.signal` gave back: a function or a number
        self._pid: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the signal over."""
        self._pid = os.getpid()
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            # A worker that was forked meanwhile: it ends, or who waits for its end waits forever.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = True

    def restore(self) -> None:
        """Give the signal back to who had it before the training."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask Trainer to save and to stop, on all ranks if one of them got the signal."""
        if self._any_rank(args):
            self.received = True
            control.should_save = True
            control.should_training_stop = True

    def _any_rank(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.received
        flag = torch.tensor(float(self.received), device=args.device)
        torch.distributed.all_reduce(flag)
        return flag.item() > 0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the process with the status of SIGTERM, if that is why the training ends."""
        self.restore()
        if not self.received:
            return
        if is_main_rank():
            saved = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            goes_on = ", --resume auto goes on" if self.can_resume else f": {saved}"
            print(
                f"stopped by SIGTERM after step {state.global_step}; a checkpoint is "
                f"saved{goes_on}",
                file=sys.stderr,
            )
        raise SystemExit(128 + signal.SIGTERM)
