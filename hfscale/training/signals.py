"""What the signals that end a process, or ask it to save, do to a training."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfscale.manifest import MANIFEST
from hfscale.process import is_main_rank
from hfscale.stopping import SignalHandler, describe_signal
from hfscale.training.saving import newest_step


class EvaluationStopped(Exception):
    """A signal ended an evaluation while a run trains; raised on all ranks after the same batch."""


class StopOnSignal(TrainerCallback, SignalHandler):
    """Saves a checkpoint at the end of the step, on all ranks alike, and ends the process with 128
    and the signal's number (Ctrl-C: 130, SIGTERM: 143, SIGHUP: 129), or goes on (SIGUSR1). A second
    signal that ends the process does so at once.

    An evaluation is broken off after the batch: EvaluationStopped is raised (`end_evaluation`).

    `can_resume`: the recipe has --resume.
    """

    def __init__(self, can_resume: bool = True):
        super().__init__()
        self.can_resume = can_resume
        self.is_save_asked = False
        self.first_step = 0  # of this part of the run: the step that it went on from
        self.world_size = 1
        self.device = torch.device("cpu")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the signals over."""
        self.first_step = state.global_step
        self.world_size = args.world_size
        self.device = args.device
        self.install()

    def on_save_signal(self, number: int) -> None:
        """Remember it until the step is done."""
        self.is_save_asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask Trainer to save, and to stop, on all ranks if one of them got the signal."""
        is_save_asked = self._ask_all_ranks()
        self.is_save_asked = False
        if self.received or is_save_asked:
            control.should_save = True
        if self.received:
            control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Break an evaluation off."""
        self.between_batches()

    def between_batches(self) -> None:
        """Raise EvaluationStopped on all ranks if one of them got a signal. Collective."""
        if self._ask_all_ranks():
            self.is_save_asked = True  # not lost: after the next step
        if self.received:
            raise EvaluationStopped

    def _ask_all_ranks(self) -> bool:
        """Take over what any rank `received`; whether one was asked to save."""
        if self.world_size == 1:
            return self.is_save_asked
        flags = torch.tensor([self.received, int(self.is_save_asked)], device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        self.received, is_save_asked = flags.tolist()
        return bool(is_save_asked)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the process with the status of the signal, if that is why the training ends."""
        self._ask_all_ranks()  # which may have come after the last step
        if self.received:
            self.end(args, f"after step {state.global_step}", state.global_step)
        self.restore()

    def end(self, args: TrainingArguments, where: str, step: int, advice: str = "") -> NoReturn:
        """End the process, on all ranks together: a launcher ends what is left once one is gone.

        Args:
            where: in the run the signal came.
            step: whose checkpoint should be there.
            advice: what --resume auto does beside going on.
        """
        PartialState().wait_for_everyone()
        if args.world_size > 1:
            self.ignore()
        self.end_alone(f"{where}; {self.what_is_kept(args, step)}{advice}")

    def end_alone(self, where: str) -> NoReturn:
        """End this process, with one line."""
        if is_main_rank():
            print(f"stopped by {describe_signal(self.received)} {where}", file=sys.stderr)
        raise SystemExit(128 + self.received)

    def what_is_kept(self, args: TrainingArguments, step: int) -> str:
        """What is there to go on from, at best the checkpoint of a step."""
        goes_on = ", --resume auto goes on" if self.can_resume else ""
        saved = Path(str(args.output_dir), f"checkpoint-{step}")
        if (saved / MANIFEST).is_file():
            place = "" if self.can_resume else f": {saved}"
            return f"a checkpoint is saved{goes_on}{place}"
        last = newest_step(Path(str(args.output_dir)))
        if last is not None:
            return f"checkpoint-{last} is kept{goes_on}"
        if step == 0:
            return "nothing was trained yet, the same command starts again"
        return "no checkpoint was saved"
