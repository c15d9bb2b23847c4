"""Groups of answers that a training would begin with."""

from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.rewards.measure import Judges, answer

SHOWN_PROMPTS = 8


class Group(NamedTuple):
    """Answers of a model to one prompt."""

    prompt: str
    answers: str  # each different one, how often it came, and its reward
    mean: float
    teaches: bool


def draw_groups(
    args: Any,
    training_args: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset,
    judges: Judges,
) -> list[Group]:
    """Groups for the first few of the prompts, drawn as those of a training are."""
    size = args.num_generations
    some = prompts.select(range(min(SHOWN_PROMPTS, len(prompts))))
    asked = some.select(np.repeat(np.arange(len(some)), size))
    drawn = answer(
        model,
        tokenizer,
        asked,
        args,
        judges,
        do_sample=True,
        batch_size=64,
        seed=training_args.seed,
    )
    groups = []
    for i, prompt in enumerate(some["prompt"]):
        here = slice(i * size, (i + 1) * size)
        texts = drawn.texts[here]
        rewards = drawn.rewards[here]
        by_text = dict(zip(texts, rewards, strict=True))
        said = [f"{texts.count(text)} x {text!r}: {by_text[text]:g}" for text in by_text]
        teaches = len(set(rewards.tolist())) > 1
        groups.append(Group(prompt.strip(), ", ".join(said), float(rewards.mean()), teaches))
    return groups
