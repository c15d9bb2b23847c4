"""What a report shows of a model that learned from rewards: groups of answers as the trainer saw
them, why its loss reads zero, what clipping did, and signs of hacking.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hfscale.folders import REWARDS_RECORD
from hfscale.report.charts import Chart, Line, draw
from hfscale.report.tables import number
from hfscale.run_record import read_json

SHOWN_LOGS = 8  # rows of the table of losses
SHOWN_STEPS = 3  # of which groups are shown: the first, one in the middle, the last
CURVES = {
    "rewards": {"reward": "training", "eval_reward": "held out"},
    "entropy of the next token, nats": {"entropy": "entropy"},
    "KL from the start, nats per token": {"kl": "KL"},
    "length of the answers, tokens": {"completions/mean_length": "length"},
}
NOTHING_CLIPPED = (
    "Nothing was clipped, and nothing could be: each batch of answers was used for one step, at "
    "which the probabilities are still those that the answers were drawn with. Every ratio is 1."
)


class Answer(NamedTuple):
    """Equal answers of a group."""

    times: int
    text: str
    reward: float
    advantage: float
    tokens: int

    @property
    def effect(self) -> str:
        """What a step does to it."""
        if self.advantage == 0:
            return "nothing"
        return "made likelier" if self.advantage > 0 else "made less likely"


class Group(NamedTuple):
    """Answers to one prompt."""

    prompt: str
    references: list[str]
    answers: list[Answer]
    mean: float
    std: float
    sum_of_advantages: float

    @property
    def says(self) -> str:
        """What it teaches, in a sentence."""
        if self.std == 0:
            return (
                f"All rewards are {number(self.mean)}, so no answer is better than the mean of its "
                "group: all advantages are 0 and the group teaches nothing."
            )
        return (
            f"The mean reward is {number(self.mean, 3)}, the standard deviation "
            f"{number(self.std, 3)}; the advantages add up to "
            f"{number(abs(round(self.sum_of_advantages, 3)))}."
        )


class Rewards(NamedTuple):
    """All of it, as the template takes it."""

    signs: list[dict[str, Any]]
    groups: dict[int, list[Group]]  # by step
    formula: str  # of an advantage
    logs: list[dict[str, Any]]  # step, loss, kl, policy_loss, grad_norm
    zero: str  # why the loss reads zero
    clipping: str
    teaching: str
    charts: list[Chart]


def rewards_of(folder: str, history: Sequence[Mapping[str, Any]]) -> Rewards | None:
    """What the run in a folder learned from; None: it was not rewards.

    Raises InputError: a record that cannot be read.
    """
    path = Path(folder, REWARDS_RECORD)
    if not path.is_file():
        return None
    record = read_json(path, "runs", "write it again")
    config = record["config"]
    logs = [log for log in history if "frac_reward_zero_std" in log and "loss" in log]
    return Rewards(
        signs=record["signs"],
        groups=_shown_groups(record["groups"]),
        formula=_formula(config),
        logs=[_loss_row(log, config) for log in _spread(logs, SHOWN_LOGS)],
        zero=_why_zero(config),
        clipping=_clipping(config, logs),
        teaching=_teaching(logs),
        charts=_charts(history, logs),
    )


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


# ---- groups


def _shown_groups(lines: Sequence[Mapping[str, Any]]) -> dict[int, list[Group]]:
    steps = sorted({line["step"] for line in lines})
    return {
        step: [_group(line) for line in lines if line["step"] == step]
        for step in _spread(steps, SHOWN_STEPS)
    }


def _group(line: Mapping[str, Any]) -> Group:
    rewards = [answer["reward"] for answer in line["answers"]]
    by_text: dict[str, list[Mapping[str, Any]]] = {}
    for answer in line["answers"]:
        by_text.setdefault(answer["text"], []).append(answer)
    answers = [
        Answer(len(same), text, same[0]["reward"], same[0]["advantage"], same[0]["tokens"])
        for text, same in by_text.items()
    ]
    answers.sort(key=lambda answer: (-answer.advantage, -answer.times))
    return Group(
        prompt=line["prompt"],
        references=line["references"],
        answers=answers,
        mean=float(np.mean(rewards)),
        std=float(np.std(rewards, ddof=1)),
        sum_of_advantages=sum(answer["advantage"] for answer in line["answers"]),
    )


def _formula(config: Mapping[str, Any]) -> str:
    if config["method"] == "rloo":
        return "advantage = reward - mean of the group's other rewards"
    if config["scale_rewards"] == "none":
        return "advantage = reward - mean of the group's rewards"
    whose = "the group's" if config["scale_rewards"] == "group" else "all the step's"
    return (
        "advantage = (reward - mean of the group's rewards) / (standard deviation of "
        f"{whose} rewards + 0.0001)"
    )


# ---- the loss


def _loss_row(log: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What was logged at a step, and what of its loss is left without the KL term."""
    row = {"step": log["step"], "loss": log["loss"]}
    if "kl" in log and config["method"] == "grpo":
        kl_term = config["beta"] * log["kl"]
        row |= {"beta x KL": kl_term, "the rest": log["loss"] - kl_term}
    return row | {"gradient norm": log["grad_norm"], "reward": log["reward"]}


def _why_zero(config: Mapping[str, Any]) -> str:
    said = (
        "A step takes answers that were just drawn: new and old probabilities are equal, their "
        "ratio is 1, and what an answer adds to the loss is minus its advantage. The advantages of "
        "a group add up to 0, so the loss reads 0 whatever is learned. "
    )
    if config["method"] == "grpo" and config["beta"]:
        said += "What it does show is beta times the KL divergence from the start. "
    if (config["loss_type"] or "grpo") != "grpo":
        said += (
            f"Loss type {config['loss_type']} counts each token alike, so that where the answers "
            "of a group differ in length, a little is left. "
        )
    if config["num_iterations"] > 1:
        said += (
            f"Of the {config['num_iterations']} steps on the same answers that holds for the "
            "first; at the others the ratios have moved. "
        )
    return said + (
        "Its gradient is not 0: it is the sum of each answer's advantage times the gradient of its "
        "log-probability. Read the reward, not the loss."
    )


def _clipping(config: Mapping[str, Any], logs: Sequence[Mapping[str, Any]]) -> str:
    if config["num_iterations"] == 1:
        return NOTHING_CLIPPED
    clipped = [log.get("clip_ratio/region_mean") or 0.0 for log in logs]
    epsilon = config["epsilon"]
    of_what = "answers" if config["method"] == "rloo" else "tokens"
    return (
        f"Of the {of_what}, {np.mean(clipped) if clipped else 0:.2%} on average were clipped, "
        f"{max(clipped, default=0):.2%} at most: those that had moved by more than "
        f"{number(epsilon)} in the direction of their advantage, out of {number(1 - epsilon)} to "
        f"{number(1 + epsilon)}. They add nothing to the gradient."
    )


def _teaching(logs: Sequence[Mapping[str, Any]]) -> str:
    if not logs:
        return ""
    first, last = (1 - logs[i]["frac_reward_zero_std"] for i in (0, -1))
    return (
        f"Of the groups {first:.0%} taught something at the beginning and {last:.0%} at the end; "
        "in the others all answers were rewarded alike."
    )


# ---- curves


def _charts(history: Sequence[Mapping[str, Any]], logs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    charts = []
    for title, keys in CURVES.items():
        lines = [
            Line(name, [(log["step"], log[key]) for log in history if key in log])
            for key, name in keys.items()
        ]
        drawn = [line for line in lines if line.points]
        if drawn:
            charts.append(draw(title, drawn, is_small=True))
    teaching = Line("groups", [(log["step"], 1 - log["frac_reward_zero_std"]) for log in logs])
    if teaching.points:
        charts.append(draw("share of the groups that teach", [teaching], is_small=True))
    return charts
