"""What a model answers to held-out prompts and how that is rewarded: likeliest and drawn answers,
their length, and how far the model went from its start.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.tokens import encode_continuations, encode_prompts
from hfscale.metrics.intervals import compare_paired, estimate, means
from hfscale.metrics.perplexity import Window, score_windows
from hfscale.rewards.functions import Reward, reward_of
from hfscale.tasks.answers import predict


class Judges(NamedTuple):
    """By what answers are rewarded, and how they are drawn."""

    rewards: Sequence[Reward]
    weights: Sequence[float] | None
    temperature: float


class Answered(NamedTuple):
    """The answers to each example, and (examples,) float64 of each."""

    texts: list[str]
    rewards: np.ndarray
    finished: np.ndarray  # 1: it ended by itself
    tokens: np.ndarray  # of the answer, EOS included


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    args: TaskArguments,
    judges: Judges,
    *,
    do_sample: bool,
    batch_size: int,
    seed: int = 0,
) -> Answered:
    """The likeliest answer to each example, or one that is drawn as those to learn from are; the
    same on every rank. Raises as `predict` and the rewards.
    """
    sampling: dict[str, Any] = {"temperature": judges.temperature, "top_k": 0} if do_sample else {}
    records = predict(
        model,
        tokenizer,
        examples,
        max_new_tokens=args.max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        do_sample=do_sample,
        **sampling,
    )
    texts = [record["prediction"] for record in records]
    finished = np.array([record["finished"] for record in records], dtype=np.float64)
    lengths = [len(ids) for ids in encode_continuations(texts, tokenizer)]
    rewards = reward_of(judges.rewards, judges.weights, examples, texts)
    return Answered(texts, rewards, finished, lengths + finished)


def answer_metrics(greedy: Answered, drawn: Answered, prefix: str) -> dict[str, Any]:
    """Under names that begin with `prefix`, means over the examples with 95 % intervals: `reward`
    of the likeliest answers, `finished` and `answer_tokens` of these; `drawn_reward` of drawn ones.
    """
    columns = {
        "finished": greedy.finished,
        "reward": greedy.rewards,
        "drawn_reward": drawn.rewards,
        "answer_tokens": greedy.tokens,
    }
    named = {f"{prefix}_{name}": values for name, values in columns.items()}
    rows = np.column_stack([*named.values(), np.ones(len(greedy.rewards))])
    return estimate(rows, partial(means, list(named)))


def gain(before: Answered, after: Answered) -> dict[str, Any]:
    """`reward_gain`, after minus before over the same examples, with its paired interval and the
    p-value of swapping both (see `compare_paired`).
    """
    first, second = (
        np.column_stack([answered.rewards, np.ones(len(answered.rewards))])
        for answered in (before, after)
    )
    found = compare_paired(first, second, partial(means, ["reward"]))["reward"]
    return {
        "reward_gain": found["difference"],
        "reward_gain_ci95": found["difference_ci95"],
        "reward_gain_p_value": found["p_value"],
    }


def kl_from_start(
    model: PreTrainedModel,
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    drawn: Answered,
    *,
    is_chat: bool,
) -> dict[str, Any]:
    """`eval_kl` in nats per answer with its 95 % interval: the mean over answers that `model` drew
    at temperature 1 of log p(answer | prompt) under it minus that under `start`, an estimate of the
    Kullback-Leibler divergence of the two without bias; `eval_kl_per_token` beside it.
    """
    prompts = encode_prompts(examples["prompt"][:], tokenizer, add_special_tokens=not is_chat)
    eos = tokenizer.eos_token_id
    windows = []
    for i, ids in enumerate(encode_continuations(drawn.texts, tokenizer)):
        whole = [*prompts[i], *ids, *([eos] if drawn.finished[i] else [])]
        if len(whole) > len(prompts[i]):
            windows.append(Window(np.array(whole), len(prompts[i]), i))
    if not windows:
        return {"eval_kl": None, "eval_kl_per_token": None}
    nll = np.array(score_windows(model, windows, batch_size=32))
    start_nll = np.array(score_windows(start, windows, batch_size=32))
    tokens = np.array([len(window.ids) - window.first for window in windows])
    rows = np.column_stack([start_nll - nll, tokens, np.ones(len(windows))])

    def values(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "eval_kl": sums[..., 0] / sums[..., 2],
            "eval_kl_per_token": sums[..., 0] / sums[..., 1],
        }

    return estimate(rows, values)
