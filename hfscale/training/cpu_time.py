"""The CPU seconds of a training, which other programs on the machine do not make longer."""

import os
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class CpuTime(TrainerCallback):
    """Measures what this process, and its children that have ended, compute while it trains."""

    def __init__(self) -> None:
        self.cpu_seconds: float | None = None  # None: the training has not ended
        self._at_begin = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count."""
        self._at_begin = _process_seconds()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count no further: what follows is no training."""
        self.cpu_seconds = _process_seconds() - self._at_begin


def cpu_seconds_of(trainer: Trainer) -> float | None:
    """Of a training that has ended, or of its last part where it went on; None: not measured."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, CpuTime):
            return callback.cpu_seconds
    return None


def _process_seconds() -> float:
    """In user code and in the system, of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
