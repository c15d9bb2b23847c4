"""New models: which fields a configuration gets, and what is refused before anything is made."""

import json

import pytest
import torch
from transformers import AutoConfig, set_seed
from transformers.integrations import HfDeepSpeedConfig

from hfscale.architectures import ARCHITECTURES
from hfscale.arguments import ShapeArguments, shape_of
from hfscale.new_models import (
    check_new_model,
    count_new_parameters,
    new_config,
    new_model,
    settle_shape,
    trial_model,
)
from hfscale.process import InputError
from tests.tiny_models import BERT, LLAMA, MAMBA, OPT, tiny_tokenizer

SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 64,
}
# Parameters of the published models that the table names, from their model cards or papers.
PUBLISHED = {
    "gpt2": ({}, 50257, 124_439_808),
    "llama": (
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_size": 4096,
            "intermediate_size": 11008,
        },
        32000,
        6_738_415_616,
    ),
    "qwen3": (
        {
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "hidden_size": 1024,
            "head_dim": 128,
        },
        151936,
        596_049_920,
    ),
    "olmo2": (
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_size": 4096,
            "intermediate_size": 11008,
        },
        100352,
        7_298_617_344,
    ),
    "smollm3": (
        {"num_hidden_layers": 36, "num_attention_heads": 16, "hidden_size": 2048},
        128256,
        3_075_098_624,
    ),
    "nanochat": (
        {"num_hidden_layers": 20, "num_attention_heads": 10, "hidden_size": 1280},
        65536,
        560_988_160,
    ),
    "qwen3_moe": (
        {
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "hidden_size": 2048,
            "head_dim": 128,
            "num_experts": 128,
        },
        151936,
        30_532_122_624,
    ),
}


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_the_defaults_are_those_of_the_published_model(architecture):
    """With its depth and width alone, the parameters are the published ones to the last."""
    fields, vocab_size, parameters = PUBLISHED[architecture]
    assert count_new_parameters(new_config(architecture, vocab_size=vocab_size, **fields)) == (
        parameters
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_that_all_share_reach_every_configuration(architecture):
    fields = SIZES | {"intermediate_size": 96, "tie_word_embeddings": False}
    if architecture != "gpt2":
        fields["num_key_value_heads"] = 1
    tokenizer = tiny_tokenizer()
    model = new_model(tokenizer, architecture, **fields)
    config = model.config
    inner = "n_inner" if architecture == "gpt2" else "intermediate_size"
    for name, value in fields.items():
        assert getattr(config, inner if name == "intermediate_size" else name) == value
    assert config.model_type == architecture and model.dtype == torch.float32
    assert config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(config, name) == getattr(tokenizer, name)
    assert count_new_parameters(config) == model.num_parameters()


@pytest.mark.needs("deepspeed")
def test_under_zero_3_it_is_whole_and_draws_the_same_weights():
    """Not spread over the ranks yet, which are not even there."""
    set_seed(0)
    expected = new_model(tiny_tokenizer(), "llama", **SIZES).state_dict()
    zero3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert zero3.is_zero3()
    set_seed(0)
    weights = new_model(tiny_tokenizer(), "llama", **SIZES).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_widths_and_heads_that_are_not_given_follow_from_the_table():
    config = new_config("qwen3_moe", **SIZES | {"hidden_size": 256, "num_attention_heads": 8})
    assert (config.intermediate_size, config.moe_intermediate_size) == (768, 96)
    assert (config.num_key_value_heads, config.head_dim) == (1, 32)
    assert config.output_router_logits is True
    assert (
        new_config("llama", **SIZES | {"hidden_size": 256}).intermediate_size == 704
    )  # 8/3 of it, up to 32s
    # 12 heads, of which 8 are meant to share one: the largest number that divides both.
    assert new_config("qwen3_moe").num_key_value_heads == 3


def test_a_recipe_s_arguments_hold_the_sizes_that_are_made():
    args = ShapeArguments(architecture="llama", hidden_size=96, model_config={"mlp_bias": True})
    config = settle_shape(args)
    assert (args.num_hidden_layers, args.num_key_value_heads) == (12, 12)
    assert (args.intermediate_size, args.tie_word_embeddings) == (256, False)
    assert new_config(**shape_of(args)).to_dict() == config.to_dict() and config.mlp_bias
    gpt2 = ShapeArguments()
    settle_shape(gpt2)
    assert gpt2.num_key_value_heads is None  # it knows no such thing


def test_a_whole_number_is_a_float_where_the_class_wants_one():
    assert new_config("qwen3_moe", **SIZES, router_aux_loss_coef=1).router_aux_loss_coef == 1.0


@pytest.mark.parametrize(
    ("architecture", "fields", "says"),
    [
        ("lama", {}, "neither a file nor one of gpt2, llama, .*; did you mean llama"),
        ("mistral", {}, "architecture mistral: neither a file nor one of"),
        ("llama", {"rms_norm_epz": 1e-5}, "rms_norm_epz: LlamaConfig has no such field; did you "),
        ("llama", {"rms_norm_eps": "a"}, "Field 'rms_norm_eps' expected float, got str"),
        ("llama", {"attention_bias": 3}, "Field 'attention_bias' expected bool, got int"),
        ("llama", {"hidden_act": "swishy"}, "cannot be made: KeyError: 'swishy'"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder: LlamaConfig has no such"),
        ("gpt2", {"num_key_value_heads": 2}, "num_key_value_heads: GPT2Config has no such field"),
        ("gpt2", {"n_layer": 0}, "n_layer: got 0, expected at least 1"),
        ("gpt2", {"attn_pdrop": 1.0}, "attn_pdrop: got 1.0, expected a number from 0 to below 1"),
        ("qwen3", {"attention_dropout": -0.1}, "attention_dropout: got -0.1"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys in `rope_p"),
        (
            "llama",
            {"hidden_size": 33},
            "llama: The hidden size .33. is not a multiple of the number of",
        ),
        ("gpt2", {"n_embd": 33}, "hidden_size 33 is not a multiple of num_attention_heads 2"),
        ("llama", {"num_key_value_heads": 3}, "heads 2 is not a multiple of num_key_value_heads"),
        ("llama", {"hidden_size": 6}, "heads of width 3; rotary positions turn pairs"),
        ("qwen3_moe", {"num_experts": 4}, "num_experts_per_tok 8 is more than the 4 experts"),
        ("qwen3_moe", {"moe_intermediate_size": 0}, "moe_intermediate_size: got 0, expected at "),
        ("gpt2", {"hidden_size": 10**9}, "hidden_size 1000000000, .*cannot be made: RuntimeError"),
        ("llama", {"hidden_size": 10**7}, "the weights alone take .* GiB; choose smaller sizes|"),
        ("gpt2", {"max_position_embeddings": 10**12}, "1000000000000: the weights alone take "),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(architecture, fields, says):
    with pytest.raises(InputError, match=says) as error:
        check_new_model(new_config(architecture, **SIZES | fields))
    assert "\n" not in str(error.value)


def test_a_model_that_is_only_counted_may_be_larger_than_the_memory():
    config = new_config("gpt2", hidden_size=2**17, num_attention_heads=2, num_hidden_layers=100)
    check_new_model(config, in_memory=False)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hidden_size", "hidden_size has an argument of its own: --hidden_size"),
        ("architecture", "architecture has an argument of its own: --architecture"),
        ("vocab_size", "vocab_size follows from the tokenizer"),
    ],
)
def test_a_field_is_given_in_one_place(name, says):
    with pytest.raises(InputError, match=says):
        shape_of(ShapeArguments(model_config={name: 64}))


# ---- a config.json of another kind


def config_file(folder, kind, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(AutoConfig.for_model(kind, **values).to_dict()))
    return str(path)


@pytest.mark.parametrize(("kind", "values"), [("gemma2", LLAMA), ("mamba", MAMBA), ("opt", OPT)])
def test_a_file_is_taken_as_it_is_but_for_what_is_given(kind, values, tmp_path):
    path = config_file(tmp_path, kind, **values | {"num_hidden_layers": 1}, dtype="bfloat16")
    tokenizer = tiny_tokenizer()
    model = new_model(tokenizer, path, hidden_size=64)
    assert model.config.model_type == kind and model.dtype == torch.float32
    assert model.config.hidden_size == 64
    assert model.config.num_hidden_layers == 1
    assert model.config.vocab_size == len(tokenizer)
    assert trial_model(path) is not None and trial_model("gpt2") is None


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("t5", {}, "has an encoder"),
        ("vit", {}, "transformers has no causal language model of the kind vit"),
        ("gemma3", {}, "reads more than text"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config: new wei"),
        ("bert", {**BERT, "is_decoder": False}, "BertLMHeadModel sees later tokens"),
        ("mine", {"auto_map": {"AutoConfig": "mine.Config"}}, "--trust_remote_code if you trust"),
        (None, {}, "config.json: "),
    ],
)
def test_files_that_describe_no_new_causal_model(kind, values, says, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values | ({"model_type": kind} if kind else {})))
    with pytest.raises(InputError, match=says) as error:
        trial_model(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
