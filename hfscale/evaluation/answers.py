"""A model's answers while it learns a task: measured beside a simple baseline, and shown."""

from collections.abc import Sequence

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import Trainer

from hfscale.config import TaskArguments
from hfscale.evaluation.tasks import predict, score_predictions

SAMPLES = 3


def measure_answers(answerer: Trainer | Sequence[str], examples: Dataset, args: TaskArguments,
                    prefix: str) -> tuple[dict, list[str]]:
    """The task's metrics, with intervals, under names that begin with `prefix`, and the answers. A trainer's model
    generates them greedily, all ranks together; `<prefix>_finished` is the share that it ended with EOS (or a stop
    string) before `max_new_tokens`."""
    metrics, answers = {}, answerer
    if isinstance(answerer, Trainer):
        model = answerer.accelerator.unwrap_model(answerer.model)
        found = predict(model, answerer.processing_class, examples, max_new_tokens=args.max_new_tokens,
                        stop_strings=args.stop_strings, batch_size=answerer.args.per_device_eval_batch_size,
                        progress=not answerer.args.disable_tqdm)
        answers = [answer["prediction"] for answer in found]
        metrics["finished"] = sum(answer["finished"] for answer in found) / len(found)
    metrics |= score_predictions(answers, examples, args.metrics, options=args.metric_options)
    return {f"{prefix}_{name}": value for name, value in metrics.items()}, list(answers)


def sample_texts(examples: Dataset, answers: Sequence[str]) -> list[str]:
    """The first few answers, with prompt and reference."""
    return [f"{example['prompt'].strip()}\n--- answer: {answer}\n--- reference: {example['target']}"
            for example, answer in zip(examples.select(range(min(SAMPLES, len(examples)))), answers, strict=False)]


def show_answers(metrics: dict, baseline: str, samples: Sequence[str]) -> None:
    """Print each metric before training, of the baseline and after training, and some answers."""
    table = Table("held out", "before training", baseline, "after training", "95 % interval")
    for name in [name.removeprefix("before_") for name in metrics if name.startswith("before_eval_")]:
        if not name.endswith("_ci95"):
            other = metrics.get(name.replace("eval_", "baseline_", 1))
            interval = metrics.get(f"{name}_ci95")
            table.add_row(name.removeprefix("eval_"), *("" if value is None else f"{value:.4g}" for value in (
                metrics[f"before_{name}"], other, metrics[name])), " to ".join(f"{end:.4g}" for end in interval or []))
    console = Console()
    console.print(table)
    for sample in samples:
        console.print(f"\n{sample}", markup=False, highlight=False)
