"""A recipe's JSON Schema allows what the recipe takes, and nothing else."""

import functools
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from hfscale.config import shipped
from hfscale.options import EXPONENT
from hfscale.schema import recipe_schema

ROOT = Path(__file__).parents[1]
RECIPES = shipped("recipes", "[!_]*.py")
CONFIGS = sorted(ROOT.glob("recipes/configs/*/*.yaml"))
NOT_ARGUMENTS = ("templates",)  # what an argument of bias_probe reads


@functools.cache
def validator(name):
    schema = json.loads(json.dumps(recipe_schema(RECIPES[name])))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def read_as_an_editor(path):
    """By YAML 1.2, in which 6e-3 is a number."""
    values = yaml.safe_load(path.read_text("utf-8"))
    is_number = lambda value: isinstance(value, str) and EXPONENT.fullmatch(value)  # noqa: E731
    return {name: float(value) if is_number(value) else value for name, value in values.items()}


@pytest.mark.parametrize("name", sorted({path.parent.name for path in CONFIGS}))
def test_shipped_configs_are_valid_and_point_to_their_schema(name):
    check = validator(name)
    for path in CONFIGS:
        if path.parent.name == name and path.stem not in NOT_ARGUMENTS:
            assert path.read_text("utf-8").startswith("# yaml-language-server: $schema=schema.json")
            assert [error.message for error in check.iter_errors(read_as_an_editor(path))] == []


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rat": 1e-3},
        {"learning_rate": -1},
        {"learning_rate": "fast"},
        {"optimizer": "adam"},
        {"seed": -1},
        {"num_hidden_layers": 2.5},
        {"source": {"a": 1}},
        {"source": ["a", 1]},
        {"overwrite": "yes"},
        {"use_liger_kernel": True},  # which every recipe refuses
    ],
)
def test_what_a_recipe_refuses_is_not_valid(values):
    assert not validator("pretrain").is_valid(values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"learning_rate": 0.001, "optimizer": "muon", "source": "a.txt"},
        {"source": ["a.txt", "b.txt"], "model_config": {"initializer_range": 0.06}},
        {"num_key_value_heads": None, "extends": ["base.yaml"]},
    ],
)
def test_what_a_recipe_takes_is_valid(values):
    assert validator("pretrain").is_valid(values)


def test_it_says_what_an_argument_means_and_its_default():
    properties = recipe_schema(RECIPES["pretrain"])["properties"]
    assert properties["muon_momentum"]["default"] == 0.95
    assert "averaged gradient" in properties["muon_momentum"]["description"]


def test_plan_takes_what_the_training_recipes_take():
    properties = recipe_schema(RECIPES["plan"])["properties"]
    assert {"gpu", "lora_r", "hidden_size", "learning_rate"} <= properties.keys()
