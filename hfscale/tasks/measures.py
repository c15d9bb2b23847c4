"""A model's answers while it learns a task: measured beside a simple baseline, at each evaluation
too, and shown.
"""

import json
import sys
from collections.abc import Sequence

from datasets import Dataset
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from hfscale.arguments import TaskArguments
from hfscale.generation.terminal import ready_command
from hfscale.metrics.intervals import by_note, interval_notes
from hfscale.metrics.options import check_options
from hfscale.metrics.texts import TEXT_METRICS, metrics_of, text_statistics
from hfscale.process import InputError
from hfscale.report.tables import show_records, show_table
from hfscale.tasks.answers import predict
from hfscale.tasks.examples import COUNTED, Counts
from hfscale.tasks.prompt import TaskPrompt

SAMPLES = 3
LONG_PROMPT_CHARACTERS = 500  # to be read in a command


def measure_answers(
    answerer: Trainer | Sequence[str], examples: Dataset, args: TaskArguments, prefix: str
) -> tuple[dict, list[str]]:
    """The task's metrics, with intervals, under names that begin with `prefix`, and the answers. A
    trainer's model generates them greedily, all ranks together; `<prefix>_finished` is the share
    that it ended with EOS (or a stop string) before `max_new_tokens`. Metrics of `not_measured` are
    left out.
    """
    metrics, answers = {}, answerer
    names = [name for name in args.metrics if name in TEXT_METRICS]
    if isinstance(answerer, Trainer):
        model = answerer.accelerator.unwrap_model(answerer.model)
        found = predict(
            model,
            answerer.processing_class,
            examples,
            max_new_tokens=args.max_new_tokens,
            stop_strings=args.stop_strings,
            batch_size=answerer.args.per_device_eval_batch_size,
            progress=not answerer.args.disable_tqdm,
        )
        answers = [answer["prediction"] for answer in found]
        metrics["finished"] = sum(answer["finished"] for answer in found) / len(found)
    columns = text_statistics(answers, examples["references"][:], names, args.metric_options)
    metrics |= metrics_of(columns, args.metric_options)
    return {f"{prefix}_{name}": value for name, value in metrics.items()}, list(answers)


def not_measured(args: TaskArguments) -> list[str]:
    """The task's metrics that need more than answers: likelihoods of choices, or to run programs.
    `score` has them.

    Raises InputError: accuracy without choices; options that a metric does not take, or of one that
    is not asked for.
    """
    check_options(args.metric_options, args.metrics)
    if "accuracy" in args.metrics and args.choices is None:
        raise InputError(
            "metrics: accuracy needs choices; name the column that lists them with --choices"
        )
    return [name for name in args.metrics if name not in TEXT_METRICS]


def sample_texts(examples: Dataset, answers: Sequence[str]) -> list[str]:
    """The first few answers, with prompt and reference."""
    return [
        f"{example['prompt'].strip()}\n--- answer: {answer}\n--- reference: {example['target']}"
        for example, answer in zip(
            examples.take(min(SAMPLES, len(examples))), answers, strict=False
        )
    ]


def show_examples(counts: Counts) -> None:
    """Print what became of the examples of each split."""
    names = [name for name in COUNTED if any(count[name] for count in counts.values())]
    heads = {"train": "train", "validation": "held out"}
    show_table(
        ["examples", *(heads.get(split, split) for split in counts)],
        ([COUNTED[name], *(f"{count[name]:,}" for count in counts.values())] for name in names),
    )


def asking_command(folder: str, task: TaskPrompt, examples: Dataset) -> str:
    """A line for the shell that asks the model about a held-out example: of those shown as samples
    the shortest, unless that is long.
    """
    shown = examples.take(min(SAMPLES, len(examples)))
    example = min(shown, key=lambda row: len(row["prompt"]))
    if len(example["prompt"]) > LONG_PROMPT_CHARACTERS:
        example = min(examples, key=lambda row: len(row["prompt"]))
    if "messages" in example:
        said = [turn["content"] for turn in example["messages"] if turn["role"] == "user"]
        return ready_command("chat", folder, said, "--do_sample", "false")
    typed = task.typed(json.loads(example["columns"]))
    return ready_command("generate", folder, [typed], "--do_sample", "false")


def show_answers(
    metrics: dict, baseline: str, samples: Sequence[str], notes: dict[str, str] | None = None
) -> None:
    """Print each metric before training, of the baseline and after training, some answers, and what
    intervals cannot show; `notes` are more of these, by name.
    """
    names = [
        name.removeprefix("before_eval_") for name in metrics if name.startswith("before_eval_")
    ]
    show_records(
        [
            {
                "held out": name,
                "before training": metrics[f"before_eval_{name}"],
                baseline: metrics.get(f"baseline_{name}", ""),
                "after training": metrics[f"eval_{name}"],
                "after training_ci95": metrics.get(f"eval_{name}_ci95"),
            }
            for name in names
            if not name.endswith("_ci95")
        ]
    )
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
        *,
        max_examples: int = 64,
        seed: int = 0,
    ):
        self.trainer, self.args, self.samples = trainer, args, []
        self.examples = (
            examples.shuffle(seed=seed).take(min(max_examples, len(examples))).flatten_indices()
        )

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
                callback.tb_writer.add_text(
                    "eval/samples", "\n\n".join(f"```\n{s}\n```" for s in self.samples), step
                )
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run:
            wandb.log(
                {
                    "eval/samples": wandb.Table(["text"], [[sample] for sample in self.samples]),
                    "train/global_step": step,
                }
            )
