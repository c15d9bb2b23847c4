"""The next token of several texts at once, each with settings and a random state of its own."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

COLDEST = 1e-6  # below it, the likeliest token


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one text are drawn: the names of `transformers.GenerationConfig`, and the
    penalties of the OpenAI API.
    """

    temperature: float = 1.0  # 0: the likeliest token
    top_k: int = 50  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: other draws each time
    top_logprobs: int | None = None  # so many likeliest tokens with each; None: no probabilities

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < COLDEST


class Draws:
    """What the draws of one text depend on beside the model's logits."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling):
        self.sampling = sampling
        self.random = random.Random(sampling.seed)
        self.counts: Counter[int] = Counter()  # of the tokens that were drawn
        self._prompt = set(prompt)

    def change(self, logits: torch.Tensor) -> torch.Tensor:
        """(vocabulary,): the logits after penalties and biases. A repetition penalty is that of
        Keskar et al. 2019, and counts the prompt's tokens too; frequency and presence penalties are
        those of the OpenAI API, and do not.
        """
        wanted = self.sampling
        logits = logits.clone()
        if wanted.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._prompt | self.counts.keys()), device=logits.device)
            values = logits[seen]
            penalty = wanted.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self.counts and (wanted.frequency_penalty or wanted.presence_penalty):
            drawn = torch.tensor(list(self.counts), device=logits.device)
            counts = torch.tensor(list(self.counts.values()), device=logits.device)
            logits[drawn] -= wanted.frequency_penalty * counts + wanted.presence_penalty
        for token, bias in wanted.logit_bias.items():
            logits[token] += bias
        return logits

    @property
    def changes(self) -> bool:
        """Whether `change` does anything."""
        wanted = self.sampling
        penalties = (wanted.frequency_penalty, wanted.presence_penalty, *wanted.logit_bias.values())
        return wanted.repetition_penalty != 1 or any(penalties)


class Chance(NamedTuple):
    """How likely the model found a token, before any setting: logarithms of probabilities."""

    token: int
    logprob: float
    top: list[tuple[int, float]]  # the likeliest tokens, with theirs


def next_tokens(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int]:
    """One token for each row of the logits, (rows, vocabulary).

    A token is drawn where the running sum of the probabilities, from the likeliest down, passes a
    random number of the row's own: what is drawn for a row does not depend on the others.
    """
    if any(row.changes for row in draws):
        rows = zip(logits, draws, strict=True)
        logits = torch.stack([row.change(values) for values, row in rows])
    tokens = [0] * len(draws)
    for choose, is_greedy in ((_likeliest, True), (_draw, False)):
        places = [i for i, row in enumerate(draws) if row.sampling.is_greedy == is_greedy]
        if places:
            chosen = choose(logits[places], [draws[i] for i in places])
            for i, token in zip(places, chosen, strict=True):
                tokens[i] = token
    for row, token in zip(draws, tokens, strict=True):
        row.counts[token] += 1
    return tokens


def _likeliest(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int]:
    return logits.argmax(-1).tolist()


def _draw(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int]:
    size = logits.shape[-1]
    limits = [row.sampling.top_k or size for row in draws]
    values, ids = logits.float().topk(min(size, max(limits)))  # from the likeliest down
    temperatures = _column([row.sampling.temperature for row in draws], values)
    places = torch.arange(values.shape[-1], device=values.device)
    is_out = places >= _column(limits, values)
    values = (values.double() / temperatures).masked_fill(is_out, -math.inf)
    probabilities = values.softmax(-1)
    sums = probabilities.cumsum(-1)
    # As upstream's top_p: the likeliest tokens, up to the one with which their sum reaches it.
    before = sums - probabilities
    is_kept = before < _column([row.sampling.top_p for row in draws], values)
    is_kept[:, 0] = True
    kept_sum = (probabilities * is_kept).sum(-1, keepdim=True)
    thresholds = _column([row.random.random() for row in draws], values) * kept_sum
    chosen = (sums <= thresholds).sum(-1, keepdim=True)
    # Never past the last one that is kept, whatever the rounding.
    last = (is_kept & (probabilities > 0)).sum(-1, keepdim=True) - 1
    return ids.gather(-1, torch.minimum(chosen, last)).flatten().tolist()


def _column(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=like.device).unsqueeze(-1)


def chances(
    logits: torch.Tensor, tokens: Sequence[int], draws: Sequence[Draws]
) -> list[Chance | None]:
    """For each row of the logits that asks for it, how likely its token was."""
    found: list[Chance | None] = [None] * len(draws)
    asking = [i for i, row in enumerate(draws) if row.sampling.top_logprobs is not None]
    if not asking:
        return found
    logprobs = logits[asking].float().log_softmax(-1)
    sizes = [draws[i].sampling.top_logprobs or 0 for i in asking]
    values, ids = logprobs.topk(min(max(sizes), logprobs.shape[-1]))
    for place, (i, size) in enumerate(zip(asking, sizes, strict=True)):
        top = list(zip(ids[place, :size].tolist(), values[place, :size].tolist(), strict=True))
        found[i] = Chance(tokens[i], logprobs[place, tokens[i]].item(), top)
    return found
