"""The settings that a page shows: five always, then what is not a default."""

import pytest

from hfscale.report.settings import ASKED, settings_that_matter

CONFIG = {
    "hidden_size": 64,  # of the recipe
    "num_hidden_layers": 4,
    "source": ["a.txt"],
    "weight_decay": 0.0,  # of TrainingArguments
    "adam_beta2": 0.95,
    "logging_steps": 7,  # changes no number
    "output_dir": "runs/a",
    "max_steps": 60,
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 8,
    "max_length": 256,
    "seed": 42,
}


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("quickstart", ["hidden_size", "source", "adam_beta2"]),
        ("somebody_elses", ["hidden_size", "num_hidden_layers", "source", "adam_beta2"]),
    ],
)
def test_five_are_always_shown_and_others_where_they_are_no_defaults(recipe, more):
    settings = settings_that_matter({"recipe": recipe, "config": CONFIG})
    assert [setting.name for setting in settings] == [*ASKED, *more]
    assert all(setting.value == CONFIG[setting.name] for setting in settings)
    by_name = {setting.name: setting for setting in settings}
    assert by_name["seed"].is_default and not by_name["max_steps"].is_default
    assert by_name["hidden_size"].is_known == (recipe == "quickstart")


def test_epochs_stand_for_steps_that_are_not_set():
    settings = settings_that_matter({"recipe": "pretrain", "config": CONFIG | {"max_steps": -1}})
    names = [setting.name for setting in settings]
    assert "max_steps" not in names and names[1] == "num_train_epochs"


def test_what_a_recipe_leaves_to_a_library_is_not_shown():
    config = CONFIG | {"vllm_mode": "colocate", "num_generations": 4}
    for recipe, is_shown in (("finetune_reward", False), ("somebody_elses", True)):
        settings = settings_that_matter({"recipe": recipe, "config": config})
        names = [setting.name for setting in settings]
        assert "num_generations" in names and ("vllm_mode" in names) == is_shown
