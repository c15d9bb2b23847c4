"""The architectures of new models: for each what transformers' own defaults do not say of a model
of any size, with its source.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

# GPT-2 small's (Radford et al. 2019), for every architecture where nothing is said.
SIZES: dict[str, int] = {
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "max_position_embeddings": 1024,
}
WIDTH_MULTIPLE = 32  # to which widths that follow from hidden_size are rounded up


class Architecture(NamedTuple):
    """Defaults of one `model_type` of transformers.

    Attributes:
        source: where the numbers are from.
        widths: fields that are this part of hidden_size.
        query_heads: attention heads that share a key/value head.
        config: other fields that differ from the configuration class' own defaults.
        names: shared names that the class knows by another one, beside its `attribute_map`.
        has_memory_formulas: `plan` knows what its training takes without a model.
    """

    source: str
    widths: Mapping[str, float] = {}
    query_heads: int = 1
    config: Mapping[str, Any] = {}
    names: Mapping[str, str] = {}
    has_memory_formulas: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        "Radford et al. 2019; its GELU in one kernel, and no dropout, since pretraining seldom "
        "repeats its text",
        config={
            "activation_function": "gelu_pytorch_tanh",
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        names={"intermediate_size": "n_inner"},
        has_memory_formulas=True,
    ),
    "llama": Architecture(
        "Touvron et al. 2023 (arXiv:2302.13971), section 2.2",
        widths={"intermediate_size": 8 / 3},
    ),
    "qwen3": Architecture(
        "config.json of Qwen/Qwen3-0.6B-Base",
        widths={"intermediate_size": 3},
        query_heads=2,
        config={"tie_word_embeddings": True},
    ),
    "olmo2": Architecture(
        "OLMo Team 2024 (arXiv:2501.00656), table 1: OLMo 2 7B",
        widths={"intermediate_size": 8 / 3},
    ),
    "smollm3": Architecture(
        "config.json of HuggingFaceTB/SmolLM3-3B-Base",
        widths={"intermediate_size": 43 / 8},
        query_heads=4,
    ),
    "nanochat": Architecture(
        "github.com/karpathy/nanochat, nanochat/gpt.py",
        widths={"intermediate_size": 4},
    ),
    "qwen3_moe": Architecture(
        "config.json of Qwen/Qwen3-30B-A3B-Base, with 32 in place of 128 experts so that a small "
        "model stays small; trained with its router loss",
        widths={"intermediate_size": 3, "moe_intermediate_size": 3 / 8},
        query_heads=8,
        config={
            "head_dim": None,  # the model reads it, its configuration class does not declare it
            "num_experts": 32,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.001,
        },
    ),
}


def has_memory_formulas(architecture: str) -> bool:
    """Whether what training takes is known from the sizes alone; others are traced."""
    entry = ARCHITECTURES.get(architecture)
    return entry is not None and entry.has_memory_formulas


def default_fields(architecture: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a new model's configuration, in the names that all architectures share: what was
    given, and for the rest the sizes of GPT-2 small and what the table says.

    Args:
        architecture: a key of `ARCHITECTURES`.
        given: fields that were given, which go before.
    """
    entry = ARCHITECTURES[architecture]
    fields = SIZES | dict(entry.config) | dict(given)
    for name, part in entry.widths.items():
        width = WIDTH_MULTIPLE * math.ceil(part * fields["hidden_size"] / WIDTH_MULTIPLE)
        fields.setdefault(name, width)
    # Some classes have a width of heads that does not follow from the model's.
    if fields.get("head_dim") is None:
        fields["head_dim"] = fields["hidden_size"] // max(1, fields["num_attention_heads"])
    # As many as divide the heads: 3 for 12 heads where 8 are meant to share one.
    sharing = math.gcd(fields["num_attention_heads"], entry.query_heads)
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"] // sharing)
    return fields
