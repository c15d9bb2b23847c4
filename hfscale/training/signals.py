"""What the signals that end a process, or ask it to save, do to a training."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfscale.process import is_main_rank


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
