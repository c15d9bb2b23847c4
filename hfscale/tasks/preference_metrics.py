"""How far preference tuning moved a model: implied rewards of held-out pairs, with intervals."""

from functools import partial

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from hfscale.metrics.intervals import estimate, means
from hfscale.metrics.perplexity import Window, score_windows
from hfscale.metrics.texts import TIE_NATS


def preference_metrics(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    pairs: Dataset,
    *,
    beta: float,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, float | list[float] | None]:
    """`eval_reward_accuracy` (share of pairs in which the chosen answer has the greater reward; a
    tie counts half), `eval_reward_margin` (mean difference) and each side's mean, with 95 %
    bootstrap intervals; the same on every rank.

    The reward of an answer is beta times its log-likelihood ratio, in nats, of model to reference
    (Rafailov et al. 2023, arXiv:2305.18290, equation 5 without the term that cancels). `pairs` has
    the columns prompt_ids, chosen_ids and rejected_ids, as TRL makes them.
    """
    rewards = {}
    for name in ("chosen_ids", "rejected_ids"):
        windows = [
            Window(np.array(row["prompt_ids"] + row[name]), len(row["prompt_ids"]), i)
            for i, row in enumerate(pairs)
        ]
        nll = np.array(score_windows(model, windows, batch_size))
        reference_nll = np.array(score_windows(reference, windows, batch_size))
        rewards[name] = beta * (reference_nll - nll)
    margin = rewards["chosen_ids"] - rewards["rejected_ids"]
    is_tie = abs(margin) < beta * TIE_NATS
    columns = {
        "eval_reward_accuracy": np.where(is_tie, 0.5, margin > 0),
        "eval_reward_margin": margin,
        "eval_reward_chosen": rewards["chosen_ids"],
        "eval_reward_rejected": rewards["rejected_ids"],
    }
    weights = np.ones(len(pairs))  # each pair counts once in the means
    rows = np.stack([*columns.values(), weights], axis=1)
    return estimate(rows, partial(means, tuple(columns)), seed=seed)
