"""Weights under the names that they have in the model: its files may have others, such as one for
each expert where the model holds all experts of a block in one tensor."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.integrations.deepspeed import _apply_weight_conversions_to_state_dict


def in_model_names(
    model: PreTrainedModel, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A file's weights as `from_pretrained` gives them to the model, which may be on `meta`; those
    that have the model's names already come back as they are.
    """
    conversions = get_model_conversion_mapping(model)
    if not conversions or weights.keys() <= model.state_dict().keys():
        return weights
    named: dict[str, torch.Tensor] = {}
    for part in _apply_weight_conversions_to_state_dict(model, dict(weights), conversions):
        named.update(part)
    return named


def load_in_model_names(trainer: Trainer) -> None:
    """Let a trainer's model take the weights of its checkpoints, of the last one and of the best
    one. Upstream's Trainer gives them to `load_state_dict` as they are in the file, and passes over
    those that the model does not know: a mixture of experts would go on with random experts.
    """
    if isinstance(trainer.model, PreTrainedModel):
        trainer.model.register_load_state_dict_pre_hook(_rename)


def _rename(module: nn.Module, state_dict: dict[str, torch.Tensor], *details: Any) -> None:
    assert isinstance(module, PreTrainedModel), "the hook is put on no other"
    named = in_model_names(module, state_dict)
    if named is not state_dict:
        state_dict.clear()
        state_dict.update(named)
