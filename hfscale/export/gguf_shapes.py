"""How architectures of transformers are written as GGUF: for each where llama.cpp looks for its
sizes, what the format cannot say, and which weights lie in another order.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from hfscale.process import InputError

UNSET = (None, False)


class Shape(NamedTuple):
    """One `model_type` of transformers as GGUF. The names of its weights are in the package `gguf`.

    Attributes:
        values: methods of `gguf.GGUFWriter`, and the field that each writes: a path through the
            configuration, or a function of it.
        only: fields for which the format has no place, with the values that it takes for granted.
        transposed: ends of the names of weights that transformers keeps as (inputs, outputs).
        rotary: ends of the names of weights whose rows llama.cpp expects in another order, and the
            field with the number of their heads.
        read_back: fields that transformers' GGUF reader leaves at their defaults, and the keys of
            the file that hold them.
    """

    values: Mapping[str, str | Callable[[Any], Any]]
    only: Mapping[str, tuple[Any, ...]]
    transposed: tuple[str, ...] = ()
    rotary: Mapping[str, str] = {}
    read_back: Mapping[str, str] = {}


def _inner_width(config: Any) -> int:
    return config.n_inner or 4 * config.n_embd


# What Llama and its kin have in common.
ROTARY_VALUES: dict[str, str | Callable[[Any], Any]] = {
    "add_context_length": "max_position_embeddings",
    "add_embedding_length": "hidden_size",
    "add_block_count": "num_hidden_layers",
    "add_feed_forward_length": "intermediate_size",
    "add_head_count": "num_attention_heads",
    "add_head_count_kv": "num_key_value_heads",
    "add_key_length": "head_dim",
    "add_value_length": "head_dim",
    "add_rope_freq_base": "rope_parameters.rope_theta",
    "add_layer_norm_rms_eps": "rms_norm_eps",
}
ROTARY_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": UNSET,
    "rope_parameters.rope_type": ("default",),
}

SHAPES: dict[str, Shape] = {
    "gpt2": Shape(
        values={
            "add_context_length": "n_positions",
            "add_embedding_length": "n_embd",
            "add_block_count": "n_layer",
            "add_feed_forward_length": _inner_width,
            "add_head_count": "n_head",
            "add_layer_norm_eps": "layer_norm_epsilon",
        },
        only={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": UNSET,
            "add_cross_attention": UNSET,
        },
        # transformers' Conv1D
        transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
        read_back={
            "n_positions": "gpt2.context_length",
            "n_inner": "gpt2.feed_forward_length",
        },
    ),
    "llama": Shape(
        values=ROTARY_VALUES | {"add_rope_dimension_count": "head_dim"},
        only=ROTARY_ONLY | {"mlp_bias": UNSET},
        rotary={
            "q_proj.weight": "num_attention_heads",
            "k_proj.weight": "num_key_value_heads",
        },
    ),
    "qwen3": Shape(
        values=ROTARY_VALUES,
        only=ROTARY_ONLY | {"use_sliding_window": UNSET},
        read_back={"head_dim": "qwen3.attention.key_length"},
    ),
}


def shape_as_gguf(config: PreTrainedConfig) -> Shape:
    """Raises InputError: no such architecture here, or a setting for which GGUF has no place."""
    kind = config.model_type
    if kind not in SHAPES:
        raise InputError(
            f"to gguf: models of the kind {kind} are not written, only {', '.join(SHAPES)}; "
            "--to safetensors takes any"
        )
    check_fields(config, SHAPES[kind].only, "to gguf", "llama.cpp")
    return SHAPES[kind]


def check_fields(
    config: PreTrainedConfig, only: Mapping[str, tuple[Any, ...]], place: str, program: str
) -> None:
    """Raise InputError for a field with another value than those that a program takes for granted
    (`Shape.only`).
    """
    for field, allowed in only.items():
        value = value_of(config, field)
        if value not in allowed:
            raise InputError(
                f"{place}: {field} is {value!r}, and {program} runs {config.model_type} with "
                f"{' or '.join(map(repr, allowed))} alone; --to safetensors keeps it"
            )


def value_of(config: Any, field: str | Callable[[Any], Any]) -> Any:
    """Of a path such as `rope_parameters.rope_theta`, or of a function; None: it is not there."""
    if callable(field):
        return field(config)
    value = config
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value
