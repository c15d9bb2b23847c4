"""How a certificate asks a model: the original, and an export through its own runtime."""

from collections.abc import Callable
from typing import Protocol

import torch
from transformers import PreTrainedModel

UNLIMITED_CONTEXT = 1024  # tokens read at once of a model that states no limit


class Runner(Protocol):
    """One model, wherever it runs. Results are float32 and int64, on the CPU."""

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) ids -> (batch, length, vocabulary)."""

    def continue_greedily(self, input_ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """(batch, length) ids -> the likeliest next ones, (batch, `max_new_tokens`)."""


class TorchRunner:
    """A model of transformers, on the accelerator if there is one."""

    def __init__(self, model: PreTrainedModel) -> None:
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self.model = model.to(device)  # type: ignore[arg-type]  # the stub takes it for self

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All at once."""
        outputs = self.model(input_ids.to(self.model.device), use_cache=False)
        return outputs.logits.float().cpu()

    def continue_greedily(self, input_ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """Without `generate`, whose settings come from the model's folder, and without a cache."""
        return grow_greedily(lambda ids: self.logits(ids)[:, -1], input_ids, max_new_tokens)


def grow_greedily(
    next_logits: Callable[[torch.Tensor], torch.Tensor],
    input_ids: torch.Tensor,
    max_new_tokens: int,
) -> torch.Tensor:
    """The likeliest tokens after `input_ids`, one by one.

    Args:
        next_logits: (batch, length) ids so far -> (batch, vocabulary) of the next place.
    """
    ids = input_ids
    for _ in range(max_new_tokens):
        ids = torch.cat([ids, next_logits(ids).argmax(-1, keepdim=True)], dim=1)
    return ids[:, input_ids.shape[1] :]
