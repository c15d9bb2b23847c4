"""`rewards.json`: what rewards taught a model, and signs that it was not the task."""

from pathlib import Path
from typing import Any, NamedTuple

import evaluate
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer

from hfscale.folders import REWARDS_RECORD, write_json
from hfscale.metrics.evaluate_metrics import compute_with_intervals
from hfscale.rewards.findings import find_signs, training_reward
from hfscale.rewards.groups import GroupTrace
from hfscale.rewards.measure import Answered, Judges, answer, answer_metrics, gain

CONFIG = (
    "method",
    "loss_type",
    "scale_rewards",
    "num_generations",
    "num_iterations",
    "beta",
    "epsilon",
    "temperature",
    "reward",
    "reward_weights",
    "max_new_tokens",
)


class Both(NamedTuple):
    """The likeliest answers to all held-out prompts, and drawn ones."""

    greedy: Answered
    drawn: Answered


def measure_answers(
    trainer: Trainer,
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: Any,
    judges: Judges,
    task_metrics: evaluate.CombinedEvaluations,
    *,
    prefix: str,
) -> tuple[Both, dict[str, Any]]:
    """The answers of a trainer's model, all ranks together, and their metrics (see
    `answer_metrics`), those of the task among them.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch_size = trainer.args.per_device_eval_batch_size
    greedy, drawn = (
        answer(
            model,
            tokenizer,
            examples,
            args,
            judges,
            do_sample=do_sample,
            batch_size=batch_size,
            seed=trainer.args.seed,
        )
        for do_sample in (False, True)
    )
    measured: dict[str, Any] = {}
    if task_metrics.evaluation_modules:
        inputs = {"predictions": greedy.texts, "references": examples["references"][:]}
        of_task = compute_with_intervals(task_metrics, inputs)
        measured |= {f"{prefix}_{name}": value for name, value in of_task.items()}
    return Both(greedy, drawn), measured | answer_metrics(greedy, drawn, prefix)


def measure_baseline(
    answers: list[str], examples: Dataset, task_metrics: evaluate.CombinedEvaluations
) -> dict[str, Any]:
    """The task's metrics of what a program without a model answers."""
    if not task_metrics.evaluation_modules:
        return {}
    inputs = {"predictions": answers, "references": examples["references"][:]}
    measured = compute_with_intervals(task_metrics, inputs)
    return {f"baseline_{name}": value for name, value in measured.items()}


def write_rewards(
    output_dir: str,
    args: Any,
    trace: GroupTrace,
    metrics: dict[str, Any],
    before: Both,
    after: Both,
    examples: Dataset,
) -> list[dict[str, Any]]:
    """Write the record, add what it measures to `metrics`, and return the signs that were looked
    for (see `find_signs`).
    """
    metrics |= gain(before.greedy, after.greedy) | training_reward(trace.lines)
    signs = find_signs(metrics, before.greedy, after.greedy, examples)
    record = {
        "config": {name: getattr(args, name) for name in CONFIG},
        "signs": signs,
        "groups": [line for line in trace.lines if "answers" in line],
    }
    write_json(Path(output_dir, REWARDS_RECORD), record)
    return signs
