"""Gradients are clipped as PyTorch clips them, with or without the guard."""

import copy

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from hfscale.training.guards import clip_where_above


def parameters_with_norm(norm):
    """Three tensors whose gradients have this norm together, and one that is frozen."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 40, 500, 2)]
    gradients = [torch.randn(len(one), generator=generator) for one in parameters[:3]]
    length = torch.cat(gradients).norm()
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gradient * (norm / length)
    return parameters


@pytest.mark.parametrize("norm", [0.0, 0.5, 1 - 3e-6, 1 - 1e-7, 1.0, 1 + 1e-6, 2.0, 1e10])
@pytest.mark.parametrize("max_norm", [1.0, float("inf")])
def test_clipping_is_upstreams_bit_for_bit(norm, max_norm):
    ours = parameters_with_norm(norm)
    theirs = copy.deepcopy(ours)
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        other.grad = mine.grad.clone()
    assert torch.equal(clip_where_above(ours, max_norm), clip_grad_norm_(theirs, max_norm))
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(mine.grad, other.grad)
    assert ours[3].grad is None
