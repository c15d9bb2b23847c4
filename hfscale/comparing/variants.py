"""The variants of a training that are compared, and what of them is refused before one is trained.

Nothing heavy is imported.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.api import command_words
from hfscale.config import arguments_class, check_recipe_args, kinds_of, pick_flags, shipped
from hfscale.launch import split_flags
from hfscale.many_runs import shared_flags
from hfscale.options import training_defaults
from hfscale.process import InputError
from hfscale.report.comparison import is_per_token

# A run keeps nothing of the way to its end but its log; what is given goes before.
QUIET = {"eval_on_start": "false", "save_strategy": "no", "report_to": "none"}
# Each run has its own, which nothing else may set.
OF_EACH_RUN = ("seed", "data_seed", "output_dir", "overwrite", "resume", "dry_run")
# Which text is held out follows from these, unless it is given.
OF_HELD_OUT_TEXT = (
    "source",
    "dataset_config_name",
    "text_column",
    "sample_by",
    "on_error",
    "split_by",
    "validation_fraction",
    "streaming",
)
# And how many tokens a run trains from these.
OF_LENGTH = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "max_position_embeddings",
    "num_processes",
)
# What the loss itself counts, of preferences: variants that differ in it need another metric.
OF_LOSS = (
    "beta",
    "loss_type",
    "label_smoothing",
    "desirable_weight",
    "undesirable_weight",
    "simpo_gamma",
)
LONGEST_NAME = 60  # of a folder, without its seed
ALL_SOURCES = "all sources"


class Variant(NamedTuple):
    """One of the ways to train that are compared."""

    name: str  # as people read it, such as optimizer=muon
    flags: list[str]  # of the recipe, beside what all share


class Plan(NamedTuple):
    """What is trained: the first variant is the baseline."""

    recipe: str
    shared: list[str]  # flags
    variants: list[Variant]
    named: list[str]  # the arguments that are varied on purpose

    def named_length(self) -> list[str]:
        """What is varied on purpose and decides how many tokens are trained."""
        return [name for name in self.named if name in OF_LENGTH]

    def command(self, variant: Variant, seed: int, folder: Path) -> list[str]:
        """Words of `hfscale` that train a variant into a folder."""
        shared = _words_of_all(self.shared, variant)
        quiet = [f"--{name}={word}" for name, word in QUIET.items()]
        given = _names_in([*shared, *variant.flags])
        own = {"seed": seed, "data_seed": seed, "output_dir": folder}
        return [
            self.recipe,
            *pick_flags(quiet, given)[1],
            *shared,
            *variant.flags,
            *command_words((), own),
        ]


def plan_variants(
    recipe: str,
    recipe_args: Sequence[str],
    vary: Sequence[str],
    leave_one_out: str | None,
    *,
    metric: str | None,
    alone: bool,
) -> Plan:
    """The variants that are asked for.

    Args:
        recipe: the name of a recipe that trains.
        recipe_args: what all variants share, as name=value.
        vary: name=value,value words, whose product the variants are.
        leave_one_out: "source": all sources, and all but each of them, in their shares.
        metric: that they are to be judged by; None: not said.
        alone: whether one variant is enough.

    Raises InputError: nothing to compare, a name or value that the recipe does not take, two
        variants that are the same, or variants that no metric can compare (see `_check_alike`).
    """
    shared = shared_flags(recipe_args, "recipe_args")
    _check_names(_names_in(shared), "recipe_args")
    common = resolve(recipe, shared, "recipe_args")
    if leave_one_out and vary:
        raise InputError("leave_one_out: not together with vary; compare them one after the other")
    named: list[str] = []
    if leave_one_out:
        variants = _without_each_source(recipe, common)
    else:
        choices = [_read_choices(word) for word in vary]
        named = [name for name, _ in choices]
        _check_names(named, "vary")
        variants = _product(choices)
    if len(variants) < 2 and not alone:
        raise InputError(
            "vary: names one variant; give a baseline and another, as in "
            "learning_rate=1e-3,2e-3, or --detect for what the baseline alone can tell"
        )
    plan = Plan(recipe, shared, variants, named)
    _check_alike(plan, metric)
    return plan


def run_name(variant: Variant, seed: int) -> str:
    """Of the folder of a run, such as optimizer=muon-seed3; another for each variant."""
    name = re.sub(r"[^\w.=,+-]+", "-", variant.name)
    if name != variant.name or len(name) > LONGEST_NAME:
        digest = hashlib.sha256(variant.name.encode()).hexdigest()[:6]
        name = f"{name[:LONGEST_NAME]}-{digest}"
    return f"{name}-seed{seed}"


def resolve(recipe: str, flags: Sequence[str], place: str) -> dict[str, Any]:
    """Every argument of a recipe that has a value by these flags, its defaults and upstream's for
    the others. Raises InputError, beginning with `place`: one that the recipe does not take.
    """
    script = shipped("recipes", f"{recipe}.py")[recipe]
    try:
        launcher_flags, of_recipe = split_flags(list(flags))
        given = check_recipe_args(script, of_recipe)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    defaults: dict[str, Any] = dict(training_defaults())
    for item in fields(arguments_class(script)):
        if item.default is not MISSING:
            defaults[item.name] = item.default
        elif item.default_factory is not MISSING:
            defaults[item.name] = item.default_factory()
    return defaults | launcher_flags | given


def _words_of_all(shared: Sequence[str], variant: Variant) -> list[str]:
    """The shared flags but for those that the variant has itself: two lists would be one. Configs
    are read one after the other.
    """
    replaced = _names_in(variant.flags) - {"config"}
    return pick_flags(list(shared), replaced)[1]


def _names_in(flags: Sequence[str]) -> set[str]:
    return {word[2:].partition("=")[0] for word in flags if word.startswith("--")}


def _check_names(names: Sequence[str] | set[str], place: str) -> None:
    """Raise InputError for a name that is set for each run, or that is there twice."""
    for name in names:
        if name in OF_EACH_RUN:
            raise InputError(f"{place}: {name} is set for each run; leave it out")
        if list(names).count(name) > 1:
            raise InputError(f"{place}: {name} is named twice; give its values after one name")


# ---- what is varied


def _read_choices(word: str) -> tuple[str, list[Any]]:
    """A name and its values, from name=value,value or, where values hold commas or are lists,
    name=[value, value] in JSON.
    """
    name, equals, text = word.partition("=")
    values: Any = text.split(",")
    if text.startswith("["):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError(f"vary: {name}: not a JSON list ({error}); mend it") from None
    if not name or not equals or name.startswith("-") or not values or "" in values:
        raise InputError(
            f"vary: got '{word}', expected name=value,value, as in learning_rate=1e-3,2e-3"
        )
    return name, values


def _product(choices: Sequence[tuple[str, list[Any]]]) -> list[Variant]:
    """Each combination of the values; the first of all first."""
    if not choices:
        return [Variant("baseline", [])]
    names = [name for name, _ in choices]
    variants = []
    for values in itertools.product(*(values for _, values in choices)):
        shown = [f"{name}={_shown(value)}" for name, value in zip(names, values, strict=True)]
        flags = command_words((), dict(zip(names, values, strict=True)))
        variants.append(Variant(",".join(shown), flags))
    return variants


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _without_each_source(recipe: str, common: Mapping[str, Any]) -> list[Variant]:
    """All sources in their shares, and all but each: its share is 0, and the others' grow. So the
    held-out text and the tokenizer, which are drawn from all sources, stay the same.
    """
    script = shipped("recipes", f"{recipe}.py")[recipe]
    if "source_weights" not in kinds_of(arguments_class(script)):
        raise InputError(f"leave_one_out: {recipe} mixes no sources; expected recipe pretrain")
    sources = common["source"]
    if len(sources) < 2 or len(set(sources)) < len(sources):
        raise InputError(
            f"leave_one_out: got the sources {', '.join(sources)}; expected two or more, all "
            "different, as in --recipe_args source=a.txt source=b.txt"
        )
    if common.get("source_temperature") is not None:
        raise InputError(
            "leave_one_out: the shares by source_temperature are not known before the text is "
            "read; give source_weights, or neither for equal shares"
        )
    weights = common.get("source_weights") or [1.0] * len(sources)
    if len(weights) != len(sources):
        raise InputError(f"recipe_args: source_weights: {len(weights)} for {len(sources)} sources")
    variants = [_weighted(ALL_SOURCES, weights)]
    for i, source in enumerate(sources):
        left = [0.0 if j == i else weight for j, weight in enumerate(weights)]
        variants.append(_weighted(f"leaving out {source}", left))
    return variants


def _weighted(name: str, weights: Sequence[float]) -> Variant:
    return Variant(name, command_words((), {"source_weights": list(weights)}))


# ---- what no metric could compare


def _check_alike(plan: Plan, metric: str | None) -> None:
    """Raise InputError for two variants that are the same, of different lengths where nobody asked
    for it, with other held-out texts, or with another loss, or other tokens, by a metric that
    counts them.
    """
    settings = [
        resolve(
            plan.recipe,
            [*_words_of_all(plan.shared, variant), *variant.flags],
            f"vary: {variant.name}" if variant.flags else "recipe_args",
        )
        for variant in plan.variants
    ]
    for (i, first), (j, second) in itertools.combinations(enumerate(settings), 2):
        if first == second:
            names = f"{plan.variants[i].name} and {plan.variants[j].name}"
            raise InputError(f"vary: {names} are the same training; keep one")
    baseline, *others = settings
    for variant, values in zip(plan.variants[1:], others, strict=True):
        _check_length(plan, variant, baseline, values)
        _check_held_out(plan, variant, baseline, values)
        other_loss = _differ(baseline, values, OF_LOSS)
        if other_loss and metric in (None, "eval_loss"):
            raise InputError(
                f"metric: {other_loss[0]} changes what eval_loss counts; name another, as --metric "
                "eval_pair_accuracy"
            )
        if metric and is_per_token(metric) and _differ(baseline, values, ("tokenizer",)):
            raise other_tokens(metric, variant.name, plan.variants[0].name)


def _differ(first: Mapping[str, Any], second: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if first.get(name) != second.get(name)]


def _check_length(
    plan: Plan, variant: Variant, baseline: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    names = [name for name in _differ(baseline, values, OF_LENGTH) if name not in plan.named]
    if names:
        said = ", ".join(f"{name} {baseline.get(name)} and {values.get(name)}" for name in names)
        raise InputError(
            f"vary: {variant.name} and {plan.variants[0].name} train different lengths ({said}); "
            f"give both the same, or name it: --vary {names[0]}=..."
        )


def _check_held_out(
    plan: Plan, variant: Variant, baseline: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    names = _differ(baseline, values, OF_HELD_OUT_TEXT)
    given = values.get("validation_source")
    if names and "validation_source" in values and not given:
        raise InputError(
            f"vary: {variant.name} and {plan.variants[0].name} would hold out other text "
            f"({', '.join(names)} differ); give both the same: --recipe_args validation_source=..."
        )


def other_tokens(metric: str, name: str, baseline: str) -> InputError:
    """That a metric per token cannot compare variants with other tokens."""
    return InputError(
        f"metric: {metric} counts tokens, and {name} cuts the text into others than {baseline}; "
        "take eval_bits_per_byte, or leave it out"
    )
