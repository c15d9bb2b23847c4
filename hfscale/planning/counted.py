"""Parameters and floating-point operations of any architecture, counted from a model that has
shapes and no weights. GPT-2's need no model (`flops`).
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from hfscale.arguments import shape_of
from hfscale.planning.memory import Step
from hfscale.planning.plan import Model, Training, gpt2_in_training
from hfscale.planning.settings import (
    FINETUNED_LENGTH,
    MEASURE_INSTEAD,
    Planned,
    checked_targets,
    is_counted_by_formulas,
    planned_shape,
)
from hfscale.planning.shapes import find_vocab_size, stated_architecture
from hfscale.process import InputError


class Counted(NamedTuple):
    """A model whose weights are all trained, in numbers."""

    parameters: int
    active_parameters: int  # that a token meets: of experts those that read it
    matrix_flops: int  # of a token's products with weights, forward
    output_flops: int  # and of those, with the output embedding
    attention_width: int  # all heads of all blocks together

    def forward_flops(self, tokens: int, max_length: int) -> int:
        """Of reading `tokens` tokens in rows of `max_length`: two for each multiplication, scores
        and weighted values over the whole row, as `torch.utils.flop_counter` counts them.
        """
        attention = 2 * 2 * max_length * self.attention_width
        return tokens * (self.matrix_flops + attention)

    def block_flops(self, tokens: int, max_length: int) -> int:
        """Of those, the blocks'."""
        return self.forward_flops(tokens, max_length) - tokens * self.output_flops

    def training_flops(self, tokens: int, max_length: int) -> int:
        """Of forward and backward passes: each product has two gradients of its size."""
        return 3 * self.forward_flops(tokens, max_length)


def count_model(model: Any) -> Counted:
    """Of a model, which may have no weights (`meta_model`): products alone, and attention in every
    block.

    Args:
        model: a transformers.PreTrainedModel.

    Raises InputError: it has no attention, so its operations are others.
    """
    config = model.config
    if not hasattr(config, "num_attention_heads"):
        raise InputError(
            f"architecture {config.model_type}: has no attention, and plan does not count what it "
            f"has in its place; {MEASURE_INSTEAD}"
        )
    share = _share_of_experts(config)
    embeddings = {id(weight) for weight in _embedding_weights(model)}
    parameters = active = multiplied = 0.0
    for parameter in model.parameters():
        is_expert = parameter.ndim == 3
        met = parameter.numel() * (share if is_expert else 1)
        parameters += parameter.numel()
        active += met
        if parameter.ndim > 1 and id(parameter) not in embeddings:
            multiplied += met
    output = model.get_output_embeddings()
    if id(output.weight) in embeddings:  # tied
        multiplied += output.weight.numel()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Counted(
        int(parameters),
        int(active),
        int(2 * multiplied),
        2 * output.weight.numel(),
        config.num_hidden_layers * heads * head_dim,
    )


def _embedding_weights(model: Any) -> Iterator[Any]:
    """Those of which rows are looked up, not multiplied."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight


def _share_of_experts(config: Any) -> float:
    """Of the experts of a block, how many read a token; 1 where there are none."""
    from hfscale.new_models import num_experts

    experts = num_experts(config)
    return config.num_experts_per_tok / experts if experts else 1


def planned_model(planned: Planned, vocab_size: int | None) -> Model:
    """The model that is trained; `vocab_size` where the tokenizer does not tell it.

    Raises InputError: as `find_shape`, `checked_targets` and `counted_model`.
    """
    if not is_counted_by_formulas(planned):
        return counted_model(planned, vocab_size)
    shape = planned_shape(planned, vocab_size)
    in_training = functools.partial(gpt2_in_training, shape)
    return Model(
        architecture=planned.architecture,
        context=shape.n_positions,
        width=shape.n_embd,
        target_modules=checked_targets(planned, shape),
        in_training=in_training,
    )


def counted_model(planned: Planned, vocab_size: int | None) -> Model:
    """The new model that a training recipe would make, or the checkpoint that it would load.

    Raises InputError: as `new_config` and `find_vocab_size`; a checkpoint of no causal language
    model, or one that is to be trained in part.
    """
    # A model is made, of no weights: all of torch.
    from hfscale.models import read_config, stated_limit
    from hfscale.new_models import check_new_model, meta_model, new_config

    if planned.model is None:
        words = find_vocab_size(planned.tokenizer or "", vocab_size)
        config = new_config(**shape_of(planned), vocab_size=words)
    else:
        _check_trained_whole(planned)
        config = read_config(planned.model)
    check_new_model(config, in_memory=False)
    counted = count_model(meta_model(config))
    return Model(
        architecture=config.model_type,
        context=stated_limit(config) or FINETUNED_LENGTH,
        width=config.hidden_size,
        target_modules=(),
        in_training=functools.partial(_in_training, counted, config),
    )


def _check_trained_whole(planned: Planned) -> None:
    """Raise InputError for what is counted with formulas alone."""
    for name in ("lora_r", "freeze_layers", "load_in_4bit", "add_tokens"):
        if getattr(planned, name):
            raise InputError(
                f"{name}: plan counts it for GPT-2 alone, and {planned.model} is a "
                f"{stated_architecture(planned.model or '')}; leave it out, or {MEASURE_INSTEAD}"
            )


def _in_training(counted: Counted, config: Any, step: Step) -> Training:
    from hfscale.traced_memory import find_memory

    flops = counted.training_flops(1, step.max_length)
    again = counted.block_flops(1, step.max_length) if step.activation_checkpointing else 0
    return Training(
        parameters=counted.parameters,
        active_parameters=counted.active_parameters,
        trained=counted.parameters,
        has_idle_weights=False,
        flops_per_token=flops,
        computed_flops_per_token=flops + again,
        memory=find_memory(config, counted.parameters, step),
    )
