"""How far preference tuning moved a model: implied rewards of held-out answers, with intervals."""

from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from hfscale.metrics.intervals import bootstrap_sums, estimate, means, percentile_interval
from hfscale.metrics.perplexity import Window, score_windows
from hfscale.metrics.texts import TIE_NATS


def answer_logps(
    model: PreTrainedModel, rows: Dataset, column: str, batch_size: int = 8
) -> np.ndarray:
    """(rows,): nats of the answers in `column` (token ids) to `prompt_ids`, the same on every
    rank.
    """
    windows = [
        Window(np.array(row["prompt_ids"] + row[column]), len(row["prompt_ids"]), i)
        for i, row in enumerate(rows)
    ]
    return -np.array(score_windows(model, windows, batch_size))


def with_reference(rows: DatasetDict, reference: PreTrainedModel) -> DatasetDict:
    """The rows of `kto_rows` with what the model at the start makes of both answers: `ref_logps`
    and `ref_KL_logps`, TRL's names, in nats.
    """
    splits = DatasetDict()
    for name, split in rows.items():
        for column, ids in (("ref_logps", "completion_ids"), ("ref_KL_logps", "KL_completion_ids")):
            split = split.add_column(column, answer_logps(reference, split, ids).tolist())
        splits[name] = split
    return splits


def preference_metrics(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    pairs: Dataset,
    *,
    beta: float,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, float | list[float] | None]:
    """With a reference `eval_reward_accuracy` (share of pairs in which the chosen answer has the
    greater reward; a tie counts half). `eval_reward_margin` (mean difference) and each side's mean.
    `eval_pair_accuracy` (share of pairs in which the chosen answer has more nats per token; with a
    reference also the reference's, `before_eval_pair_accuracy`). All with 95 % bootstrap intervals,
    the same on every rank.

    The reward of an answer is beta times its log-likelihood ratio, in nats, of model to reference
    (Rafailov et al. 2023, arXiv:2305.18290, equation 5 without the term that cancels); without a
    reference, beta times its nats per token (Meng et al. 2024, arXiv:2405.14734, equation 4).
    `pairs` has the columns prompt_ids, chosen_ids and rejected_ids, as TRL makes them.
    """
    sides = ("chosen_ids", "rejected_ids")
    lengths = [np.array([len(ids) for ids in pairs[side]]) for side in sides]
    logps = [answer_logps(model, pairs, side, batch_size) for side in sides]
    columns = {"eval_pair_accuracy": _is_first_likelier(logps, lengths)}
    if reference is None:
        rewards = [beta * logp / length for logp, length in zip(logps, lengths, strict=True)]
    else:
        start = [answer_logps(reference, pairs, side, batch_size) for side in sides]
        columns["before_eval_pair_accuracy"] = _is_first_likelier(start, lengths)
        rewards = [beta * (now - before) for now, before in zip(logps, start, strict=True)]
    margin = rewards[0] - rewards[1]
    if reference is not None:
        is_tie = abs(margin) < beta * TIE_NATS
        columns["eval_reward_accuracy"] = np.where(is_tie, 0.5, margin > 0)
    columns |= {
        "eval_reward_margin": margin,
        "eval_reward_chosen": rewards[0],
        "eval_reward_rejected": rewards[1],
    }
    weights = np.ones(len(pairs))  # each pair counts once in the means
    rows = np.stack([*columns.values(), weights], axis=1)
    return estimate(rows, partial(means, tuple(columns)), seed=seed)


def _is_first_likelier(logps: list[np.ndarray], lengths: list[np.ndarray]) -> np.ndarray:
    """1 where the first of two answers has more nats per token, 0.5 for a tie."""
    difference = logps[0] / lengths[0] - logps[1] / lengths[1]
    return np.where(abs(difference) < TIE_NATS, 0.5, difference > 0)


def label_metrics(
    model: PreTrainedModel, answers: Dataset, *, beta: float, seed: int = 0
) -> dict[str, Any]:
    """`eval_reward_desirable` and `eval_reward_undesirable`, the mean rewards of answers whose
    label is true and false, and `eval_reward_margin`, their difference, with 95 % intervals, both
    sides drawn apart; the same on every rank.

    Rewards are those of `preference_metrics` with a reference. `answers` are rows of
    `with_reference`.
    """
    rewards = beta * (answer_logps(model, answers, "completion_ids") - answers["ref_logps"])
    labels = np.array(answers["label"])
    sides = {
        "eval_reward_desirable": rewards[labels],
        "eval_reward_undesirable": rewards[~labels],
    }
    metrics: dict[str, Any] = {}
    drawn = []
    for i, (name, values) in enumerate(sides.items()):
        rows = np.stack([values, np.ones(len(values))], axis=1)
        metrics |= estimate(rows, partial(means, (name,)), seed=seed + i)
        drawn.append(means((name,), bootstrap_sums(rows, seed=seed + i))[name])
    good, bad = (metrics[name] for name in sides)
    is_single = max(map(len, sides.values())) == 1
    interval = None if is_single else percentile_interval(drawn[0] - drawn[1])
    return metrics | {"eval_reward_margin": good - bad, "eval_reward_margin_ci95": interval}
