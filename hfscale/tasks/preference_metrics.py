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
    rewards = []
    for name in ("chosen_ids", "rejected_ids"):
        windows = [
            Window(np.array(row["prompt_ids"] + row[name]), len(row["prompt_ids"]), i)
            for i, row in enumerate(pairs)
        ]
        after, before = (score_windows(side, windows, batch_size) for side in (model, reference))
        rewards.append(beta * (np.array(before) - np.array(after)))
    chosen, rejected = rewards
    margin = chosen - rejected
    right = np.where(abs(margin) < beta * TIE_NATS, 0.5, margin > 0)
    columns = np.stack([right, margin, chosen, rejected, np.ones(len(pairs))], axis=1)
    names = (
        "eval_reward_accuracy",
        "eval_reward_margin",
        "eval_reward_chosen",
        "eval_reward_rejected",
    )
    return estimate(columns, partial(means, names), seed=seed)
