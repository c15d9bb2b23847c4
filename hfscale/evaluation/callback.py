"""Generated answers judged at each evaluation of a training."""

import sys

from datasets import Dataset
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from hfscale.config import TaskArguments
from hfscale.evaluation.answers import measure_answers, sample_texts


class GenerationMetrics(TrainerCallback):
    """At each evaluation all ranks together answer a fixed sample of the held-out examples; the task's metrics join
    those of `trainer.evaluate()` (so `metric_for_best_model` can name them) and go to every log, the first texts to
    the log history, TensorBoard and W&B. Training goes on as it would without. Add it with `trainer.add_callback`.

    `examples` are those of `load_task`, fitted to the context; at most `max_examples` are drawn, once, with `seed`.
    """

    def __init__(self, trainer: Trainer, examples: Dataset, args: TaskArguments, *, max_examples: int = 64,
                 seed: int = 0):
        self.trainer, self.args, self.samples = trainer, args, []
        order = examples.shuffle(seed=seed).select(range(min(max_examples, len(examples))))
        self.examples = order.flatten_indices()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        found, answers = measure_answers(self.trainer, self.examples, self.args, "eval")
        metrics.update(found)
        self.trainer.log({name: value for name, value in found.items() if isinstance(value, float)})
        self.samples = sample_texts(self.examples, answers)
        state.log_history.append({"eval_samples": self.samples, "step": state.global_step})
        if state.is_world_process_zero:
            self._show(state.global_step)

    def _show(self, step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer:
                callback.tb_writer.add_text("eval/samples", "\n\n".join(f"```\n{s}\n```" for s in self.samples), step)
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run:
            wandb.log({"eval/samples": wandb.Table(["text"], [[sample] for sample in self.samples]),
                       "train/global_step": step})
