"""An evaluation that a signal broke off: the run ends with a checkpoint of its step, and the run
that goes on from there makes up for it.
"""

from pathlib import Path
from typing import Any, NoReturn

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfscale.training.checkpoints import RunIsDone
from hfscale.training.signals import StopOnSignal


def end_evaluation(trainer: Trainer, signals: StopOnSignal) -> NoReturn:
    """Save the step after which an evaluation was broken off, and end the process. The checkpoint
    says that the evaluation is missing; `MissedEvaluation` makes up for it.
    """
    state = trainer.state
    step = state.global_step
    if step == signals.first_step:  # which lies on the disk, or is none yet
        where = "in an evaluation" if step else "in the evaluation before the first step"
        signals.end(trainer.args, where, step)
    trainer.control.should_evaluate = True
    trainer._save_checkpoint(trainer.model_wrapped, None)
    handler = trainer.callback_handler
    trainer.control = handler.on_save(trainer.args, state, trainer.control)
    advice = " with this evaluation" if signals.can_resume else ""
    signals.end(trainer.args, f"in the evaluation after step {step}", step, advice)


class MissedEvaluation(TrainerCallback):
    """Makes up for the evaluation that a signal broke off before the checkpoint that a run goes on
    from was saved: the best checkpoint is then chosen as if nothing had happened.

    Upstream saves with each checkpoint what its TrainerControl still asks for.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate, if that is missing. Add this callback behind StopOnSignal: it can be broken off
        again.
        """
        callbacks: Any = state.stateful_callbacks
        saved = callbacks.get("TrainerControl", {})
        is_missing = saved.get("args", {}).get("should_evaluate", False)
        if not is_missing or state.global_step == 0 or args.eval_strategy == "no":
            return
        metrics = self.trainer._evaluate(None, None)
        if self.trainer._determine_best_metric(metrics=metrics, trial=None):
            best = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            state.best_model_checkpoint = str(best)
        if control.should_training_stop:  # it was evaluated for the last time
            raise RunIsDone
