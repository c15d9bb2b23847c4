"""A model's answers while it learns a task: measured beside a simple baseline, at each evaluation
too, and shown.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from hfscale.arguments import TaskArguments
from hfscale.generation.task_prompt import TaskPrompt
from hfscale.generation.terminal import ready_command
from hfscale.metrics.evaluate_metrics import (
    MORE_THAN_TEXT,
    check_metric_names,
    compute_with_intervals,
    load_metrics,
)
from hfscale.metrics.intervals import by_note, interval_notes
from hfscale.process import InputError, is_main_rank
from hfscale.report.tables import show_records, show_table
from hfscale.shown import show_text
from hfscale.tasks.answers import predict
from hfscale.tasks.examples import COUNTED, Counts

SAMPLES = 3  # answers that are shown and recorded
LONG_PROMPT_CHARACTERS = 500  # to be read in a command
SPLIT_HEADS = {"train": "train", "validation": "held out"}


def measure_answers(
    answerer: Trainer | Sequence[str],
    examples: Dataset,
    args: TaskArguments,
    metrics: evaluate.CombinedEvaluations,
    prefix: str,
) -> tuple[dict[str, Any], list[str]]:
    """The values of `metrics`, with intervals, under names that begin with `prefix`, and the
    answers. A trainer's model generates them greedily, all ranks together; `<prefix>_finished` is
    the share that it ended with EOS (or a stop string) before `max_new_tokens`.
    """
    measured: dict[str, Any] = {}
    if isinstance(answerer, Trainer):
        answers, measured["finished"] = _ask_model(answerer, examples, args)
    else:
        answers = list(answerer)
    # Every rank has all answers, so each computes the same values.
    inputs = {"predictions": answers, "references": examples["references"][:]}
    measured |= compute_with_intervals(metrics, inputs)
    return {f"{prefix}_{name}": value for name, value in measured.items()}, answers


def _ask_model(trainer: Trainer, examples: Dataset, args: TaskArguments) -> tuple[list[str], float]:
    """The answers of a trainer's model, and which share of them it ended itself."""
    tokenizer = trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    records = predict(
        trainer.accelerator.unwrap_model(trainer.model),
        tokenizer,
        examples,
        max_new_tokens=args.max_new_tokens,
        stop_strings=args.stop_strings,
        batch_size=trainer.args.per_device_eval_batch_size,
        progress=not trainer.args.disable_tqdm,
    )
    finished = sum(record["finished"] for record in records) / len(records)
    return [record["prediction"] for record in records], finished


def not_measured(args: TaskArguments) -> list[str]:
    """The task's metrics that need more than answers: likelihoods of choices, or to run programs.
    `score` has them.
    """
    return [name for name in args.metrics if name in MORE_THAN_TEXT]


def check_task_metrics(args: TaskArguments, *, trust_remote_code: bool = False) -> None:
    """Raise InputError as `check_metric_names`, or for accuracy without choices."""
    check_metric_names(args.metrics, args.metric_options, trust_remote_code=trust_remote_code)
    if "accuracy" in args.metrics and args.choices is None:
        raise InputError(
            "metrics: accuracy needs choices; name the column that lists them with --choices"
        )


def load_answer_metrics(
    args: TaskArguments, *, trust_remote_code: bool = False
) -> evaluate.CombinedEvaluations:
    """The task's metrics that judge answers: all but those of `not_measured`.

    Raises InputError: as `check_task_metrics` and `load_metrics`.
    """
    check_task_metrics(args, trust_remote_code=trust_remote_code)
    names = [name for name in args.metrics if name not in MORE_THAN_TEXT]
    options = {name: value for name, value in args.metric_options.items() if name in names}
    return evaluate.combine(load_metrics(names, options, trust_remote_code=trust_remote_code))


def sample_texts(examples: Dataset, answers: Sequence[str]) -> list[str]:
    """The first few answers, with prompt and reference."""
    shown = examples.take(min(SAMPLES, len(examples)))
    return [
        f"{example['prompt'].strip()}\n--- answer: {answer}\n--- reference: {example['target']}"
        for example, answer in zip(shown, answers, strict=False)
    ]


def show_examples(counts: Counts) -> None:
    """Print (rank 0) what became of the examples of each split."""
    if not is_main_rank():
        return
    heads = ["examples", *(SPLIT_HEADS.get(split, split) for split in counts)]
    lines = []
    for name, meaning in COUNTED.items():
        numbers = [count[name] for count in counts.values()]
        if any(numbers):
            lines.append([meaning, *(f"{number:,}" for number in numbers)])
    show_table(heads, lines)


def asking_command(folder: str, task: TaskPrompt, examples: Dataset) -> str:
    """A line for the shell that asks the model about a held-out example: of those shown as samples
    the shortest, unless that is long.
    """
    shown = examples.take(min(SAMPLES, len(examples)))
    example = min(shown, key=lambda row: len(row["prompt"]))
    if len(example["prompt"]) > LONG_PROMPT_CHARACTERS:
        example = min(examples, key=lambda row: len(row["prompt"]))
    if "messages" in example:
        questions = [turn["content"] for turn in example["messages"] if turn["role"] == "user"]
        return ready_command("chat", folder, questions, "--do_sample", "false")
    prompt = task.typed(json.loads(example["columns"]))
    return ready_command("generate", folder, [prompt], "--do_sample", "false")


def show_answers(
    metrics: dict[str, Any],
    baseline: str,
    samples: Sequence[str],
    notes: dict[str, str] | None = None,
) -> None:
    """Print each metric before training, of the baseline and after training, some answers, and what
    intervals cannot show; `notes` are more of these, by name.
    """
    measured = [name for name in metrics if name.startswith("before_eval_")]
    records = []
    for name in measured:
        if name.endswith("_ci95"):
            continue
        metric = name.removeprefix("before_eval_")
        records.append(
            {
                "held out": metric,
                "before training": metrics[name],
                baseline: metrics.get(f"baseline_{metric}", ""),
                "after training": metrics[f"eval_{metric}"],
                "after training_ci95": metrics.get(f"eval_{metric}_ci95"),
            }
        )
    show_records(records)
    for note, about in by_note(interval_notes(metrics) | (notes or {})).items():
        show_text(f"{about}: {note}")
    for sample in samples:
        show_text(f"\n{sample}")


class GenerationMetrics(TrainerCallback):
    """At each evaluation all ranks together answer a fixed sample of the held-out examples; the
    task's metrics join those of `trainer.evaluate()` (so `metric_for_best_model` can name them) and
    go to every log, the first texts to the log history, TensorBoard and W&B. Training goes on as it
    would without. Add it with `trainer.add_callback`.

    `examples` are those of `load_task`, fitted to the context; at most `max_examples` are drawn,
    once, with `seed`.
    """

    def __init__(
        self,
        trainer: Trainer,
        examples: Dataset,
        args: TaskArguments,
        metrics: evaluate.CombinedEvaluations,
        *,
        max_examples: int = 64,
        seed: int = 0,
    ):
        self.trainer = trainer
        self.args = args
        self.metrics = metrics
        self.samples: list[str] = []  # of the last evaluation
        drawn = examples.shuffle(seed=seed).take(min(max_examples, len(examples)))
        self.examples = drawn.flatten_indices()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Answer the sample, and add what that shows to the `metrics` and to the logs."""
        measured, answers = measure_answers(
            self.trainer, self.examples, self.args, self.metrics, "eval"
        )
        kwargs["metrics"].update(measured)
        # Loggers take single numbers, no intervals.
        numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
        self.trainer.log(numbers)
        self.samples = sample_texts(self.examples, answers)
        logged: dict[str, Any] = {"eval_samples": self.samples, "step": state.global_step}
        state.log_history.append(logged)
        if state.is_world_process_zero:
            self._show(state.global_step)

    def _show(self, step: int) -> None:
        page = "\n\n".join(f"```\n{sample}\n```" for sample in self.samples)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer:
                callback.tb_writer.add_text("eval/samples", page, step)
        wandb = sys.modules.get("wandb")  # imported by the Trainer where it reports there
        if wandb and wandb.run:
            table = wandb.Table(["text"], [[sample] for sample in self.samples])
            wandb.log({"eval/samples": table, "train/global_step": step})
