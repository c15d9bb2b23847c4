"""A model's answers while it learns a task: measured beside a simple baseline, at each evaluation
too, and shown.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from hfscale.arguments import TaskArguments
from hfscale.generation.terminal import ready_command
from hfscale.metrics.evaluate_metrics import (
    MORE_THAN_TEXT,
    check_metric_names,
    compute_with_intervals,
    load_metrics,
)
from hfscale.metrics.intervals import by_note, interval_notes
from hfscale.process import InputError
from hfscale.report.tables import show_records, show_table
from hfscale.tasks.answers import predict
from hfscale.tasks.examples import COUNTED, Counts
from hfscale.tasks.prompt import TaskPrompt

SAMPLES = 3  # shown at the end: enough to see what kind of answer the model gives
LONG_PROMPT_CHARACTERS = 500  # to be read in a command


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


def not_measured(args: TaskArguments, *, trust_remote_code: bool = False) -> list[str]:
    """The task's metrics that need more than answers: likelihoods of choices, or to run programs.
    `score` has them.

    Raises InputError: as `check_metric_names`; accuracy without choices.
    """
    check_metric_names(args.metrics, args.metric_options, trust_remote_code=trust_remote_code)
    if "accuracy" in args.metrics and args.choices is None:
        raise InputError(
            "metrics: accuracy needs choices; name the column that lists them with --choices"
        )
    return [name for name in args.metrics if name in MORE_THAN_TEXT]


def load_answer_metrics(
    args: TaskArguments, *, trust_remote_code: bool = False
) -> evaluate.CombinedEvaluations:
    """The task's metrics that judge answers: all but those of `not_measured`. Raises InputError as
    `load_metrics`."""
    names = [name for name in args.metrics if name not in MORE_THAN_TEXT]
    options = {name: value for name, value in args.metric_options.items() if name in names}
    return evaluate.combine(load_metrics(names, options, trust_remote_code=trust_remote_code))


def sample_texts(examples: Dataset, answers: Sequence[str]) -> list[str]:
    """The first few answers, with prompt and reference."""
    first = examples.take(min(SAMPLES, len(examples)))
    return [
        f"{example['prompt'].strip()}\n--- answer: {answer}\n--- reference: {example['target']}"
        for example, answer in zip(first, answers, strict=False)
    ]


def show_examples(counts: Counts) -> None:
    """Print what became of the examples of each split."""
    heads = {"train": "train", "validation": "held out"}
    rows = []
    for name, description in COUNTED.items():
        numbers = [count[name] for count in counts.values()]
        if any(numbers):
            rows.append([description, *(f"{number:,}" for number in numbers)])
    show_table(["examples", *(heads.get(split, split) for split in counts)], rows)


def asking_command(folder: str, task: TaskPrompt, examples: Dataset) -> str:
    """A line for the shell that asks the model about a held-out example: of those shown as samples
    the shortest, unless that is long.
    """
    shown = examples.take(min(SAMPLES, len(examples)))
    example = min(shown, key=lambda row: len(row["prompt"]))
    if len(example["prompt"]) > LONG_PROMPT_CHARACTERS:
        example = min(examples, key=lambda row: len(row["prompt"]))
    if "messages" in example:
        turns = [turn["content"] for turn in example["messages"] if turn["role"] == "user"]
        return ready_command("chat", folder, turns, "--do_sample", "false")
    typed = task.typed(json.loads(example["columns"]))
    return ready_command("generate", folder, [typed], "--do_sample", "false")


def show_answers(
    metrics: dict, baseline: str, samples: Sequence[str], notes: dict[str, str] | None = None
) -> None:
    """Print each metric before training, of the baseline and after training, some answers, and what
    intervals cannot show; `notes` are more of these, by name.
    """
    rows = []
    for before_name, before in metrics.items():
        name = before_name.removeprefix("before_eval_")
        if name == before_name or name.endswith("_ci95"):
            continue
        rows.append(
            {
                "held out": name,
                "before training": before,
                baseline: metrics.get(f"baseline_{name}", ""),
                "after training": metrics[f"eval_{name}"],
                "after training_ci95": metrics.get(f"eval_{name}_ci95"),
            }
        )
    show_records(rows)
    for note, about in by_note(interval_notes(metrics) | (notes or {})).items():
        print(f"{about}: {note}")
    for sample in samples:
        print(f"\n{sample}")


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
        self.samples: list[str] = []
        drawn = examples.shuffle(seed=seed).take(min(max_examples, len(examples)))
        self.examples = drawn.flatten_indices()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Answer, and add the values to what the evaluation measured."""
        measured, answers = measure_answers(
            self.trainer, self.examples, self.args, self.metrics, "eval"
        )
        metrics.update(measured)
        # Not the intervals: a log takes numbers.
        self.trainer.log(
            {name: value for name, value in measured.items() if isinstance(value, float)}
        )
        self.samples = sample_texts(self.examples, answers)
        state.log_history.append({"eval_samples": self.samples, "step": state.global_step})
        if state.is_world_process_zero:
            self._show(state.global_step)

    def _show(self, step: int) -> None:
        blocks = "\n\n".join(f"```\n{sample}\n```" for sample in self.samples)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer:
                callback.tb_writer.add_text("eval/samples", blocks, step)
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run:
            table = wandb.Table(["text"], [[sample] for sample in self.samples])
            wandb.log({"eval/samples": table, "train/global_step": step})
