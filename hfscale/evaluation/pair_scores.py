"""What a model scores on minimal pairs: in all, and in each of their groups."""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.evaluation.scores import System, measure_items
from hfscale.metrics.batches import Journal
from hfscale.metrics.intervals import (
    Statistics,
    bootstrap_sums,
    interval_notes,
    means,
    percentile_interval,
)
from hfscale.models import context_limit
from hfscale.tasks.choice_scores import score_choices
from hfscale.tasks.minimal_pairs import TERM_COLUMN

GROUP_MEAN = "accuracy_group_mean"


def score_pairs(
    system: System,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    metrics: evaluate.CombinedEvaluations,
    *,
    batch_size: int,
    seed: int,
    journal: Journal,
) -> None:
    """The accuracy over all pairs (`metrics` holds it alone) and its mean over groups, in the
    system's metrics; that of each group and linguistic term in its `groups`.

    A pair whose sentences are equally likely counts a half (see `choice_statistics`).
    """
    inputs, scored = score_choices(
        model, tokenizer, pairs, batch_size=batch_size, journal=journal, progress=True
    )
    told = pairs.remove_columns(["prompt", "answer", "references"])
    system.records = [pair | scores for pair, scores in zip(told, scored, strict=True)]
    system.settings["context"] = context_limit(model)
    system.settings["cut_items"] = sum(record["cut_tokens"] > 0 for record in scored)
    measure_items(system, metrics, inputs, pairs["references"][:], {}, seed)

    right = system.statistics["accuracy"].rows[:, 0]
    is_tied = np.array(["accuracy" in record["tied"] for record in scored])
    groups = np.array(pairs["group"][:])
    terms = np.array([term or "" for term in pairs[TERM_COLUMN]])
    of_groups, drawn = _accuracies(right, is_tied, groups, seed)
    system.groups = {"group": of_groups}
    if any(terms):
        system.groups[TERM_COLUMN], _ = _accuracies(
            right[terms != ""], is_tied[terms != ""], terms[terms != ""], seed
        )

    group_mean = {
        GROUP_MEAN: float(np.mean([score["accuracy"] for score in of_groups.values()])),
        f"{GROUP_MEAN}_ci95": percentile_interval(drawn.mean(axis=0)) if len(right) > 1 else None,
    }
    system.metrics = group_mean | system.metrics
    system.notes |= interval_notes(group_mean)
    system.statistics[GROUP_MEAN] = _weighted(right, groups)


def _accuracies(
    right: np.ndarray, is_tied: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """{group: its number of pairs, accuracy with interval, and share of ties}, and accuracies of
    samples of each group's own pairs (groups x resamples).

    Args:
        right: what each pair counts, 0 to 1.
        is_tied: whether its sentences are equally likely.
        groups: which group it belongs to.
    """
    scores = {}
    drawn = []
    for number, group in enumerate(dict.fromkeys(groups.tolist())):
        of_group = groups == group
        rows = np.column_stack([right[of_group], np.ones(of_group.sum())])
        # Another seed for each: groups of one size would else draw the same pairs.
        sums = bootstrap_sums(rows, seed=seed + number)
        samples = sums[:, 0] / sums[:, 1]
        drawn.append(samples)
        scores[group] = {
            "pairs": len(rows),
            "accuracy": float(rows[:, 0].mean()),
            "accuracy_ci95": percentile_interval(samples) if len(rows) > 1 else None,
            "ties": float(is_tied[of_group].mean()),
        }
    return scores, np.stack(drawn)


def _weighted(right: np.ndarray, groups: Sequence[str] | np.ndarray) -> Statistics:
    """What each pair adds to the mean over groups, times the number of pairs; so two systems are
    compared on it pair by pair.
    """
    _, group_of_pair, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights = len(right) / (len(sizes) * sizes[group_of_pair])
    rows = np.column_stack([weights * right, np.ones(len(right))])
    return Statistics(rows, lambda sums: means([GROUP_MEAN], sums))
