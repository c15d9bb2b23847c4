"""The settings of a run that say how it was trained: those that everybody asks for, and those that
are not the defaults.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

from hfscale.config import arguments_class, shipped
from hfscale.options import training_defaults, training_types
from hfscale.report.comparison import OF_NO_RESULT

# Asked for first of any run. Where no steps are set, the epochs are.
ASKED = ("learning_rate", "max_steps", "per_device_train_batch_size", "max_length", "seed")
# Of how a run is watched, kept and sent on, which changes none of its numbers; and what upstream
# derives from others, or from the machine.
WATCHING = (
    "logging_",
    "log_",
    "save_",
    "eval_",
    "hub_",
    "push_to_hub",
    "report_to",
    "include_",
    "disable_tqdm",
    "use_cpu",
    "dataloader_",
    "ddp_",
    "accelerator_config",
    "gradient_checkpointing",
    "greater_is_better",
    "debug",
    "per_device_eval_batch_size",
    "remove_unused_columns",
    "num_proc",
    *OF_NO_RESULT,
)
# What transformers' source only computes.
COMPUTED = {"optim": "adamw_torch_fused"}
# A switch that is off is off by whatever value.
NOTHING: tuple[Any, ...] = (None, False, "", [], {})


class Setting(NamedTuple):
    """A setting, and what it is where nobody sets it; MISSING: not known, or always given."""

    name: str
    value: Any
    default: Any

    @property
    def is_known(self) -> bool:
        """Whether it has a default that is known."""
        return self.default is not MISSING

    @property
    def is_default(self) -> bool:
        """Whether it is what it would be without being set."""
        return _same(self.value, self.default)


def settings_that_matter(record: Mapping[str, Any]) -> list[Setting]:
    """Of a run's record: the five that everybody asks for, then those that differ from the defaults
    of recipe and Trainer. What a shipped recipe leaves to a configuration of TRL's is not among
    them.
    """
    own = _recipe_names(record["recipe"])
    known = {*own, *training_types(), *ASKED}
    config = {name: value for name, value in record["config"].items() if not own or name in known}
    upstream = training_defaults() | COMPUTED | {"max_steps": None}  # its -1 stands for none
    defaults = upstream | _recipe_defaults(record["recipe"])
    asked = [name for name in ASKED if name in config]
    if "max_steps" in asked and not _is_set(config["max_steps"]):
        asked[asked.index("max_steps")] = "num_train_epochs"
    settings = [
        Setting(name, value, defaults.get(name, MISSING))
        for name, value in config.items()
        if name not in (*ASKED, *asked) and not name.startswith(WATCHING)
    ]
    first = [Setting(name, config.get(name), defaults.get(name, MISSING)) for name in asked]
    return first + [each for each in settings if not each.is_default]


def _is_set(steps: Any) -> bool:
    return isinstance(steps, int) and steps > 0


def _recipe_names(recipe: str) -> list[str]:
    """Arguments of a shipped recipe; none of a script that somebody else wrote."""
    return [item.name for item in _recipe_fields(recipe)]


def _recipe_fields(recipe: str) -> tuple[Field, ...]:
    script = shipped("recipes", "*.py").get(recipe)
    return fields(arguments_class(script)) if script else ()


def _recipe_defaults(recipe: str) -> dict[str, Any]:
    """Defaults of a shipped recipe's arguments."""
    defaults = {}
    for item in _recipe_fields(recipe):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if default is not MISSING:
            defaults[item.name] = default
    return defaults


def _same(value: Any, default: Any) -> bool:
    if value in NOTHING and default in NOTHING:
        return True
    return value == default or str(value) == str(default)
