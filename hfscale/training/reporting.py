"""A tracker that fails ends no run."""

import sys
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback

TRACKERS = "transformers.integrations"  # where upstream keeps their callbacks
# What a tracker does once the run goes on; what it finds wrong at the start is still an error.
EVENTS = ("on_log", "on_evaluate", "on_save", "on_predict", "on_train_end")


def guard_trackers(trainer: Trainer) -> None:
    """Let a tracker (TensorBoard, W&B and others) that cannot write any more, for a full disk or a
    network that is gone, be silent for the rest of the run, with one line on stderr.
    """
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith(TRACKERS):
            _guard(callback)


def _guard(callback: TrainerCallback) -> None:
    failures: list[Exception] = []

    def guarded(event: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if failures:
                return None
            try:
                return event(*args, **kwargs)
            except Exception as error:
                failures.append(error)
                reason = " ".join(str(error).split()) or type(error).__name__
                print(
                    f"{type(callback).__name__}: {reason}; it logs no more, the run goes on",
                    file=sys.stderr,
                )
            return None

        return call

    for name in EVENTS:
        setattr(callback, name, guarded(getattr(callback, name)))
