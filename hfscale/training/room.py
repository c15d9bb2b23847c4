"""Whether what a run will save fits on its disk, known before the first step."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hfscale.planning.settings import OPTIMIZER_BYTES
from hfscale.process import InputError, from_main_rank
from hfscale.training.averaging import averaging_of
from hfscale.training.word_checkpoints import marks_of

FP32_COPY_BYTES = 4  # of weights in 16 bits, which DeepSpeed keeps beside them


def check_room(trainer: Trainer, *, overwrite: bool = False) -> None:
    """Compare what a run saves with the room on its disk. Collective. A quota cannot be known.

    Args:
        overwrite: the earlier run in the folder is going to be deleted; what it takes counts as
            free.

    Raises:
        InputError: not even one checkpoint and the final model fit; where these do, but not all
            that are to be kept, a line on stderr says so.
    """
    from_main_rank(lambda: _check_room(trainer, overwrite))


def _check_room(trainer: Trainer, overwrite: bool) -> None:
    folder = Path(str(trainer.args.output_dir))
    free = shutil.disk_usage(_lowest_folder(folder)).free
    if overwrite:
        free += _bytes_below(folder)
    checkpoint, model = saved_bytes(trainer)
    marks = [mark for mark in marks_of(trainer) if overwrite or not (folder / mark.name).is_dir()]
    model *= 1 + len(marks)  # the final one, and those after so many words
    saves = trainer.args.save_strategy != "no"
    least = model + checkpoint * saves
    place = f"output_dir {folder}"
    numbers = f"{_size(free)} are free on its disk, {_size(least)} are needed"
    if least > free:
        what = "one checkpoint and the final model" if saves else "the final model"
        what += f" and {len(marks)} after so many words" * bool(marks)
        raise InputError(f"{place}: {numbers} for {what}; free some space or name another disk")
    if not saves:
        return
    # While a checkpoint is written, those before it are still there.
    kept = (trainer.args.save_total_limit or _number_of_saves(trainer)) + 1
    most = model + checkpoint * min(kept, _number_of_saves(trainer))
    if most > free:
        print(
            f"{place}: {_size(free)} are free on its disk, all checkpoints will take "
            f"{_size(most)}; lower save_total_limit, or the run ends when the disk is full",
            file=sys.stderr,
        )


def saved_bytes(trainer: Trainer) -> tuple[int, int]:
    """Of a checkpoint and of the final model: weights (of an adapter alone its own), and beside
    them the optimizer's state and the average of the weights, where there is one.
    """
    model: Any = trainer.model
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    is_adapter = hasattr(model, "peft_config")
    saved = trained if is_adapter else parameters
    model = sum(_numel(parameter) * parameter.element_size() for parameter in saved)
    checkpoint = model
    if averaging_of(trainer) is not None:
        checkpoint += sum(parameter.numel() * parameter.element_size() for parameter in trained)
    if trainer.args.save_only_model:
        return checkpoint, model
    # Of an optimizer that is not listed nothing is counted: no run is refused for a guess.
    each = OPTIMIZER_BYTES.get(trainer.args.optim, 0)
    if trainer.optimizer_cls_and_kwargs is not None:
        each = 0
    if trainer.is_deepspeed_enabled:
        each += FP32_COPY_BYTES
    return checkpoint + each * sum(map(_numel, trained)), model


def _numel(parameter: torch.nn.Parameter) -> int:
    """Numbers in a weight, also where ZeRO-3 has spread it over the ranks."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _number_of_saves(trainer: Trainer) -> int:
    args = trainer.args
    if args.save_strategy != "steps" or args.max_steps <= 0:
        return 2  # at least: their number is known later
    every = args.save_steps if args.save_steps >= 1 else args.save_steps * args.max_steps
    return max(1, round(args.max_steps / every))


def _lowest_folder(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _bytes_below(folder: Path) -> int:
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in paths)


def _size(num_bytes: int) -> str:
    """Bytes as people read them, the exact number beside."""
    return f"{num_bytes / 2**20:,.1f} MiB ({num_bytes:,} bytes)"
