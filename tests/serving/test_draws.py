"""Tokens are drawn with the probabilities that upstream's processors give, and each text draws for
itself.
"""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hfscale.serving.draws import Draws, Sampling, chances, next_tokens

LOGITS = torch.randn(30, generator=torch.Generator().manual_seed(0)) * 2


class Fixed:
    """A random state that gives the numbers it is told."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=0),
        Sampling(temperature=0.5, top_k=5),
        Sampling(temperature=2.0, top_k=0, top_p=0.6),
        Sampling(temperature=0.8, top_k=7, top_p=0.9),
        Sampling(top_k=100, top_p=1e-6),
    ],
)
def test_the_probabilities_are_upstreams(sampling):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    warpers.append(TopPLogitsWarper(sampling.top_p))
    expected = warpers(None, LOGITS[None])[0].softmax(-1)

    count = 4000
    draws = [Draws([0], sampling) for _ in range(count)]
    for i, row in enumerate(draws):
        row.random = Fixed([(i + 0.5) / count])
    tokens = next_tokens(LOGITS.expand(count, -1), draws)
    shares = torch.bincount(torch.tensor(tokens), minlength=30) / count
    assert (shares - expected).abs().max() <= 1.5 / count


def test_a_text_draws_what_it_draws_alone():
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    settings = [
        Sampling(seed=5),
        Sampling(temperature=0),
        Sampling(seed=6, top_p=0.5),
        Sampling(seed=5, top_k=0, frequency_penalty=1.0),
    ]
    together = next_tokens(rows, [Draws([0], one) for one in settings])
    alone = [next_tokens(rows[i : i + 1], [Draws([0], one)])[0] for i, one in enumerate(settings)]
    assert together == alone
    assert together[1] == rows[1].argmax().item()


def test_penalties_and_biases():
    prompt = [3, 4, 4]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), LOGITS[None].clone())
    draws = Draws(prompt, Sampling(repetition_penalty=1.7))
    assert torch.equal(draws.change(LOGITS), expected[0])

    draws = Draws([0], Sampling(frequency_penalty=0.5, presence_penalty=0.25, logit_bias={7: -9.0}))
    draws.counts.update([1, 1, 2])
    change = torch.zeros(30)
    change[1], change[2], change[7] = -1.25, -0.75, -9
    assert torch.allclose(draws.change(LOGITS) - LOGITS, change, atol=1e-5)


def test_the_probabilities_shown_are_the_models_own():
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    draws = [Draws([0], Sampling()), Draws([0], Sampling(temperature=3.0, top_k=2, top_logprobs=3))]
    nothing, chance = chances(rows, [1, 2], draws)
    assert nothing is None
    expected = rows[1].log_softmax(-1)
    assert chance.token == 2 and chance.logprob == pytest.approx(expected[2].item())
    values, ids = expected.topk(3)
    assert chance.top == list(zip(ids.tolist(), values.tolist(), strict=True))
