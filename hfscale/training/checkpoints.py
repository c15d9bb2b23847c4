"""The run folder: who may write into it, whole checkpoints, and how a run stops and goes on."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments

from hfscale.folders import write_atomically
from hfscale.process import InputError, is_main_rank, launched_engine
from hfscale.training.convert import (
    convert_checkpoint,
    forget_converted,
    parameter_names,
    restore_zero3_groups,
)

MANIFEST = "manifest.json"
# What may change between a run and its continuation: everything else would be silently ignored or
# mix two runs.
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

    def on_train_begin(self, args: TrainingArguments, state, control, optimizer=None, **kwargs):
        restore_zero3_groups(args, optimizer)

    def on_step_end(
        self, args: TrainingArguments, state, control, **kwargs
    ):  # every rank has read it by now
        forget_converted(args)

    def on_save(
        self, args: TrainingArguments, state, control, model=None, optimizer=None, **kwargs
    ):
        PartialState().wait_for_everyone()  # every rank saves its own random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            files = {
                str(p.relative_to(folder)): _digest(p)
                for p in sorted(folder.rglob("*"))
                if p.is_file() and p.name != MANIFEST
            }
            record = {
                "step": state.global_step,
                "world_size": args.world_size,
                "config": _config_of(args, self.fixed_settings),
                "parameters": parameter_names(model, optimizer),
                "files": files,
            }
            write_atomically(folder / MANIFEST, json.dumps(record, indent=1))


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
    folders = [
        p for p in Path(args.output_dir).glob("checkpoint-*") if p.name.partition("-")[2].isdigit()
    ]
    for folder in sorted(folders, key=lambda p: -int(p.name.partition("-")[2])):
        if problem := _problem(folder):
            if is_main_rank():
                print(
                    f"--resume auto: {folder} is not whole ({problem}); trying an older one",
                    file=sys.stderr,
                )
        else:
            record, now = (
                json.loads((folder / MANIFEST).read_text()),
                _config_of(args, fixed_settings or {}),
            )
            _check_same_config(record["config"], now, folder)
            if record["config"]["optimizer_state"] == now["optimizer_state"]:
                return str(folder)
            return str(convert_checkpoint(folder, record, now["optimizer_state"], args))
    if is_main_rank():
        print(
            f"--resume auto: no whole checkpoint in {args.output_dir}; starting anew",
            file=sys.stderr,
        )
    return None


def _problem(folder: Path) -> str | None:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
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
    kept = {
        name: value for name, value in args.to_dict().items() if not name.startswith(MAY_CHANGE)
    }
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    now = {"global_batch_size": rows, "optimizer_state": _optimizer_state(args.world_size)}
    fixed_settings = {
        name: value for name, value in fixed_settings.items() if name != "trust_remote_code"
    }
    return json.loads(json.dumps(kept | now | fixed_settings, default=str))


def _optimizer_state(processes: int) -> str:
    """In whose form a checkpoint holds it. DeepSpeed's is in shards, the others' whole."""
    return (engine := launched_engine()) + f" on {processes} processes" * engine.startswith("ZeRO")


def _check_same_config(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    names = sorted((before.keys() | now.keys()) - {"optimizer_state"})
    changed = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise InputError(
            f"--resume auto: {folder} belongs to a run with other settings ({'; '.join(changed)}); "
            "put them back, or start a run in another output_dir"
        )


class StopOnSignal(TrainerCallback):
    """SIGTERM: save a checkpoint at the end of the step, on all ranks alike, and exit with status
    143. `can_resume`: the recipe has --resume.
    """

    def __init__(self, can_resume: bool = True):
        self.can_resume = can_resume
        self.received = False
        self._previous = None
        self._pid = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._pid = os.getpid()
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number, frame):
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

    def on_step_end(self, args, state, control, **kwargs):
        if self._any_rank(args):
            self.received = control.should_save = control.should_training_stop = True

    def _any_rank(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.received
        flag = torch.tensor(float(self.received), device=args.device)
        torch.distributed.all_reduce(flag)
        return flag.item() > 0

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
        if self.received:
            if is_main_rank():
                saved = Path(args.output_dir, f"checkpoint-{state.global_step}")
                goes_on = ", --resume auto goes on" if self.can_resume else f": {saved}"
                print(
                    f"stopped by SIGTERM after step {state.global_step}; a checkpoint is "
                    f"saved{goes_on}",
                    file=sys.stderr,
                )
            raise SystemExit(128 + signal.SIGTERM)
