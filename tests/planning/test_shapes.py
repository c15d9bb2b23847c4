"""A model's sizes from its configuration file: those of the model that transformers builds from the
same file.
"""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from hfscale.architectures import ARCHITECTURES
from hfscale.arguments import ShapeArguments, shape_of
from hfscale.new_models import new_config
from hfscale.planning import shapes
from hfscale.planning.shapes import find_shape, shape_of_config
from hfscale.process import InputError

CONFIGURATIONS = [
    {},
    {"n_layer": 3},
    {"n_head": 4},
    {"n_embd": 96},
    {"n_positions": 77},
    {"vocab_size": 50304},
    {"n_inner": 100},
    {"n_inner": 1000},
    {"tie_word_embeddings": False},
    {"add_cross_attention": True},
    {"add_cross_attention": True, "tie_word_embeddings": False, "n_inner": 48},
    {"resid_pdrop": 0.2, "embd_pdrop": 0, "attn_pdrop": 0.5},
    {"activation_function": "relu"},
    {
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
    },
    {
        "summary_use_proj": False,
        "use_cache": False,
        "layer_norm_epsilon": 1e-3,
        "initializer_range": 0.1,
    },
    {"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 0, "num_labels": 5},
]
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 32, "vocab_size": 101}


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda config: "-".join(config) or "plain")
def test_a_saved_configuration_is_read_as_transformers_reads_it(config, tmp_path):
    GPT2Config(**TINY | config).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(loaded)
    shape = find_shape(str(tmp_path), {}, "", None)
    assert shape.parameters() == model.num_parameters()
    assert {name: getattr(loaded, name) for name in shape._fields} == shape._asdict()


def test_a_file_that_says_little_means_what_upstream_means(tmp_path):
    little = {"model_type": "gpt2", "hidden_size": 96, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(little))
    loaded = AutoConfig.from_pretrained(tmp_path)
    shape = find_shape(str(tmp_path), {}, "", None)
    assert shape.n_embd == 96 and shape.n_layer == 1
    assert {name: getattr(loaded, name) for name in shape._fields} == shape._asdict()


def test_every_field_of_upstream_is_known():
    """A new version of transformers that adds a field must be looked at."""
    known = shapes.DEFAULTS.keys() | shapes.NOT_COUNTED | shapes.ONLY_WITH.keys()
    assert GPT2Config().to_dict().keys() <= known
    assert GPT2Config.attribute_map | ARCHITECTURES["gpt2"].names == shapes.ALIASES
    assert {name: getattr(GPT2Config(), name) for name in shapes.DEFAULTS} == shapes.DEFAULTS


def test_a_new_model_is_what_pretrain_builds():
    args = ShapeArguments(num_hidden_layers=2, num_attention_heads=2, hidden_size=32)
    args.model_config = {"resid_pdrop": 0.25}
    args.intermediate_size = 96
    shape = find_shape(None, shape_of(args), "train:300", None)
    config = new_config(**shape_of(args), vocab_size=300)
    assert shape.resid_pdrop == 0.25 and shape.inner == 96 and shape.n_positions == 1024
    assert {name: getattr(config, name) for name in shape._fields} == shape._asdict()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', which is not counted"),
        ({"model_type": None}, "model_type is None"),
        ([1], "model_type is None"),
        ({"num_key_value_heads": 2}, "unknown field num_key_value_heads"),
        ({"n_iner": 100}, "unknown field n_iner"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config is {"),
        ({"auto_map": {"AutoModel": "mine.Model"}}, "auto_map is {"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is true"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is {"),
        (
            {"activation_function": "quick_gelu"},
            "activation_function: got 'quick_gelu'; plan knows",
        ),
        ({"n_layer": "12"}, "n_layer: got '12', expected a whole number, at least 1"),
        ({"n_layer": 12.0}, "n_layer: got 12.0, expected a whole number"),
        ({"n_layer": 10**7}, "n_layer: got 10000000, expected at most 1,000"),
        ({"n_inner": 0}, "n_inner: got 0"),
        ({"vocab_size": None}, "vocab_size: got None"),
        ({"n_head": 5}, "n_embd 64 is not a multiple of n_head 5"),
        ({"resid_pdrop": 1}, "resid_pdrop: got 1, expected a number from 0 to below 1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: got 'no', expected true or false"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(config, says):
    whole = {"model_type": "gpt2"} | TINY | config if isinstance(config, dict) else config
    with pytest.raises(InputError) as error:
        shape_of_config(whole, "folder/config.json")
    assert str(error.value).startswith("folder/config.json: ") and says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter; make a plain model of it first"):
        find_shape(str(tmp_path), {}, "", None)
