"""YAML files and flags -> one argument object, strictly, before anything heavy is imported."""

import importlib.util
import os
import sys
import typing
from collections.abc import Callable, Container
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from hfscale.arguments import TaskArguments
from hfscale.help import recipe_help
from hfscale.options import (
    construct_value,
    convert,
    convert_text,
    did_you_mean,
    split_annotated,
    training_types,
)
from hfscale.process import InputError, go_offline_if_unreachable, hide_bitsandbytes
from hfscale.strict_yaml import naming, parse_yaml, read_limited

SEEDS: dict[str, float] = {"min": 0, "max": 2**32 - 1}  # what NumPy's generators take
# Of arguments that have one meaning in every recipe; others have theirs beside `help`, in their
# metadata.
LIMITS: dict[str, dict[str, float]] = {
    "seed": SEEDS,
    "data_seed": SEEDS,
    # Of TrainingArguments, which takes any number; the largest are far beyond what trains.
    "learning_rate": {"min": 0, "max": 1000},
    "weight_decay": {"min": 0, "max": 1000},
    "adam_beta1": {"min": 0, "max": 0.999_999},
    "adam_beta2": {"min": 0, "max": 0.999_999_999},
    "adam_epsilon": {"min": 1e-30, "max": 1},  # 0 divides by a gradient that is 0
    "eval_delay": {"min": 0},
    "num_gpus": {"max": 10_000_000},
    "num_proc": {"max": 1000},
    "ddp_bucket_cap_mb": {"min": 1, "max": 1_000_000},
    "ddp_timeout": {"min": 1, "max": 1e9},
    "neftune_noise_alpha": {"min": 0, "max": 1e6},
    "max_grad_norm": {"min": 0, "max": 1e9},
    "save_total_limit": {"min": 1},
    "dataloader_num_workers": {"min": 0, "max": 1000},
    "dataloader_prefetch_factor": {"min": 1, "max": 1_000_000},
}
SHOWN_CHARACTERS = 200  # of a wrong value, in the error
# Names that older releases and other tools use, and what they are called here.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": "overwrite",
    "warmup_ratio": "warmup_steps (a value below 1 is a ratio)",
    "block_size": "max_length",
    "group_by_length": "train_sampling_strategy",
    "dataset_name": "source",
    "train_file": "source",
    "validation_file": "validation_source",
    "model_name_or_path": "model",
    "torch_dtype": "dtype",
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
    "shorten": "truncation_side",
    "copied": "baseline_input",
    "answer": "label",
    "test": "test_code",
    "program": "test_program",
    "context": "max_length",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "resid_pdrop": "model_config (as resid_pdrop=0.1)",
    "embd_pdrop": "model_config (as embd_pdrop=0.1)",
    "attn_pdrop": "model_config (as attn_pdrop=0.1)",
}
# Accepted upstream, but without effect in a script of ours, or unsafe in a file.
REFUSED = {
    "hub_token": "set HF_TOKEN in the environment, so that no file holds it",
    "resume_from_checkpoint": "use --resume auto",
    "do_train": "a recipe always trains",
    "auto_find_batch_size": "it changes the global batch; use --auto_batch",
    "do_eval": "set eval_strategy",
    "do_predict": "use the score recipe",
    "use_liger_kernel": "Liger has no GPT-2 kernels and transformers ignores it silently",
    "deepspeed": "use an accelerate config such as zero2",
    "fsdp": "use an accelerate config such as fsdp2",
    "parallelism_config": "the models here are not split that way; use an accelerate config",
}
# Arguments that are places on the disk, or can be: a leading ~ is the home folder there.
PATHS = {
    "accelerators",
    "also",
    "architecture",
    "calibrate",
    "chat_template",
    "compare",
    "evaluation_source",
    "fit_csv",
    "folder",
    "folders",
    "forget_source",
    "lm_eval_data",
    "lm_eval_include",
    "metrics",
    "minimal_pairs",
    "model",
    "output_dir",
    "output_file",
    "pairs",
    "picture",
    "predictions",
    "prompt_file",
    "record",
    "run",
    "runs",
    "source",
    "task_source",
    "task_validation_source",
    "tokenizer",
    "toxicity_classifier",
    "validation_source",
    "work_dir",
}
# The recipes that one task file serves, and what in it says how a run trains, not what is scored.
TASK_RECIPES = ("finetune_task", "score")
OF_TRAINING = ("model", "tokenizer", "max_length", "output_dir", "resume", "overwrite")


class UnknownNameError(InputError):
    """A name that the recipe does not have."""


def parse_args(cls: type, argv: list[str] | None = None, *, recipe: str) -> Any:
    """An instance of the argument dataclass `cls` from `--config FILE.yaml` (repeatable) and flags;
    later wins.

    A dataclass with a field `training` (see `RunArguments`) also takes every name of
    `transformers.TrainingArguments`; the given ones arrive there as a dictionary. `recipe` is the
    script's `__file__`: its shipped configs can be named without a path.

    Raises:
        InputError: an unknown name, a value of the wrong type, a missing or broken file.
        SystemExit: status 0 after `--help`.
    """
    values = _checked_values(cls, sys.argv[1:] if argv is None else argv, Path(recipe))
    go_offline_if_unreachable()
    if not values.get("load_in_4bit"):
        hide_bitsandbytes()
    own_names = names_of(cls)
    if "training" in own_names:
        upstream = {name: value for name, value in values.items() if name not in own_names}
        values = {name: value for name, value in values.items() if name in own_names}
        values["training"] = upstream
    return cls(**values)


def names_of(cls: type) -> set[str]:
    """Names of a recipe's own arguments; with `training` among them it trains, and takes upstream's
    beside them.
    """
    return {item.name for item in fields(cls)}


def arguments_class(recipe: Path) -> type:
    """The argument dataclass of a script; its `main` is not run."""
    spec = importlib.util.spec_from_file_location(f"_checked_{recipe.stem}", recipe)
    assert spec is not None and spec.loader is not None, "a recipe is a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return arguments_of(module)


def arguments_of(recipe: ModuleType) -> type:
    """The argument dataclass of a recipe that is imported: the last one of its own."""
    classes = [
        value
        for name, value in vars(recipe).items()
        if name.endswith("Arguments") and value.__module__ == recipe.__name__
    ]
    return classes[-1]


def check_recipe_args(recipe: Path, argv: list[str]) -> dict[str, Any]:
    """Parse `argv` for a script without running it; returns the given values. Raises as
    `parse_args`.
    """
    return _checked_values(arguments_class(recipe), argv, recipe)


def _checked_values(cls: type, argv: list[str], recipe: Path) -> dict[str, Any]:
    kinds = kinds_of(cls)
    if {"-h", "--help"} & {*argv}:
        taken = {name: kind for name, kind in kinds.items() if name not in REFUSED}
        print(recipe_help(cls, recipe, taken, planned_recipes(cls)))
        raise SystemExit(0)
    if planned := planned_recipes(cls):
        script = _planned_script(planned, argv, recipe)
        planned_class = arguments_class(script)
        of_script = kinds_of(planned_class)
        # A config holds what the training recipe takes, so that it can be trained as it is.
        values = _read_values(planned_class, argv, script, of_script, kinds | of_script)
        return {"recipe": script.stem} | values
    return _read_values(cls, argv, recipe, kinds, kinds)


def planned_recipes(cls: type) -> tuple[str, ...]:
    """The recipes one of which is planned with its own arguments; none but for a recipe whose
    argument `recipe` says so in its metadata: its choices.
    """
    by_name = {item.name: item for item in fields(cls)}
    if "recipe" not in by_name or not by_name["recipe"].metadata.get("takes_its_arguments"):
        return ()
    literal, _ = typing.get_args(typing.get_type_hints(cls)["recipe"])
    return typing.get_args(literal)


def planned_kinds(cls: type, recipe: Path) -> dict[str, Any]:
    """The types of all names of the recipes that this one plans, where it plans any."""
    kinds: dict[str, Any] = {}
    for name in planned_recipes(cls):
        kinds |= kinds_of(arguments_class(_beside_or_shipped(recipe, name)))
    return kinds


def _planned_script(planned: tuple[str, ...], argv: list[str], recipe: Path) -> Path:
    """The training recipe that `argv` speaks of: the one that is named, by --recipe or as the
    folder of a config; else the first that ships the config; else the one that knows most of the
    names, the first of several.

    Raises InputError: a config lies in the folder of a recipe that is not planned.
    """
    scripts = {name: _beside_or_shipped(recipe, name) for name in planned}
    words, _ = pick_flags(argv, ("recipe", "config"))
    flags = read_flags(words, {"recipe": str, "config": list[str]})
    configs = flags.get("config", [])
    for name in (flags.get("recipe"), *(Path(config).parent.name for config in configs)):
        if name in scripts:
            return scripts[name]
    for config in configs:
        name = Path(config).parent.name
        if name in shipped("recipes", "*.py"):
            raise InputError(
                f"--config {config}: a config of {name}; {recipe.stem} takes those of "
                f"{', '.join(planned)}"
            )
    for script in scripts.values():
        if any(_ships(script, config) for config in configs):
            return script
    names = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    for config in configs:
        names |= _names_in(Path(config)) if Path(config).is_file() else set()
    return min(scripts.values(), key=lambda script: _count_unknown(script, names))


def _ships(recipe: Path, config: str) -> bool:
    """Whether a config is named that comes with the recipe, not a file of the user's."""
    folder = recipe.parent / "configs" / recipe.stem
    names = {name for path in folder.glob("*.yaml") for name in (path.stem, path.name)}
    return config in names and not Path(config).is_file()


def _count_unknown(recipe: Path, names: set[str]) -> int:
    """How many of the names the recipe does not have."""
    return len(names - kinds_of(arguments_class(recipe)).keys())


def _names_in(path: Path, extended_by: tuple[Path, ...] = ()) -> set[str]:
    """The names that a config sets, those of the files that it extends among them."""
    names = set()
    for _, name, value in _yaml_lines(path):
        if name != "extends":
            names.add(name)
            continue
        for base in (path.parent / base for base in _extended_names(value)):
            if base.is_file() and base not in extended_by:
                names |= _names_in(base, (*extended_by, base))
    return names


def _read_values(
    cls: type,
    argv: list[str],
    recipe: Path,
    config_kinds: dict[str, Any],
    flag_kinds: dict[str, Any],
) -> dict[str, Any]:
    """Checked values of the config files and flags in `argv`; flags go before files."""
    given = read_flags(argv, {**flag_kinds, "config": list[str]})
    values: dict[str, Any] = {}
    if "config" in given:
        for word in given.pop("config"):
            values |= _read_config(cls, _find_config(word, recipe), recipe, config_kinds)
    return values | given


def _read_config(cls: type, path: Path, recipe: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """The recipe's values of a file. A task's file may also hold what training, or what scoring,
    has for itself.
    """
    try:
        values = _read_yaml(path, kinds)
    except UnknownNameError:
        if not issubclass(cls, TaskArguments):
            raise
        values = _read_yaml(path, task_recipes_kinds(recipe) | kinds)
    foreign = values.keys() - kinds.keys()
    values = {name: value for name, value in values.items() if name in kinds}
    scores = issubclass(cls, TaskArguments) and "training" not in names_of(cls)
    if scores and (foreign or values.get("model") == ["new"]):
        lines = {name: value for _, name, value in _yaml_lines(path)}
        return _of_training_file(values, lines)
    return values


def _of_training_file(values: dict[str, Any], lines: dict[str, Any]) -> dict[str, Any]:
    """What score takes from a file that trains: the task, and as its model what the run left. Where
    the file's own lines list models, as only score reads them, they say what is scored, and extend
    a file that trains.
    """
    task = {name: value for name, value in values.items() if name not in OF_TRAINING}
    if isinstance(lines.get("model"), list):
        return task | {name: values[name] for name in OF_TRAINING if name in lines}
    return task | ({"model": [values["output_dir"]]} if "output_dir" in values else {})


def task_recipes_kinds(recipe: Path) -> dict[str, Any]:
    """The types of all names in the recipes that share task files: those beside this script, else
    the shipped ones.
    """
    kinds: dict[str, Any] = {}
    for name in TASK_RECIPES:
        kinds |= kinds_of(arguments_class(_beside_or_shipped(recipe, name)))
    return kinds


def _beside_or_shipped(recipe: Path, name: str) -> Path:
    """The script of another recipe: beside this one, as copies lie, else the shipped one."""
    beside = recipe.with_name(f"{name}.py")
    return beside if beside.is_file() else shipped("recipes", "*.py")[name]


def kinds_of(cls: type) -> dict[str, Any]:
    """The types of a recipe's arguments by name; its own go before TrainingArguments'."""
    kinds = typing.get_type_hints(cls)
    if "training" in kinds:
        del kinds["training"]
        kinds = training_types() | kinds
    limits: dict[str, Any] = dict(LIMITS)
    for item in fields(cls):
        limits[item.name] = {**LIMITS.get(item.name, {}), **item.metadata}
    return {name: Annotated[kind, limits.get(name, {})] for name, kind in kinds.items()}


def shipped(folder: str, pattern: str) -> dict[str, Path]:
    """Files that come with hfscale, by name: the folder is inside the package in a wheel, beside it
    in a checkout.
    """
    package = Path(__file__).parent
    place = package if (package / folder).is_dir() else package.parent
    return {path.stem: path for path in sorted((place / folder).glob(pattern))}


def read_flags(argv: list[str], kinds: dict[str, Any]) -> dict[str, Any]:
    """Checked values of --name, --name word word and --name=word; a list given several times is one
    list, names with values are one mapping. Words before the first flag belong to the argument
    whose metadata says `comes_first`. Raises as `parse_args`.
    """
    first = [name for name, kind in kinds.items() if split_annotated(kind)[1].get("comes_first")]
    flags: list[tuple[str, list[str]]] = [(name, []) for name in first]
    for token in argv:
        if token.startswith("--") and token != "--":
            name, equals, word = token[2:].partition("=")
            flags.append((name, [word] if equals else []))
        elif not flags:
            raise InputError(
                f"command line: '{token}' stands alone; arguments are given as --name value (see "
                "--help)"
            )
        else:
            flags[-1][1].append(token)
    values: dict[str, Any] = {}
    for name, words in flags:
        if name in first and not words:
            continue
        if name == "config" and not words:
            words = [""]  # the error names the shipped ones
        value = _check("command line", f"--{name}", name, words, kinds, convert_text)
        if isinstance(value, list) and values.get(name):  # null is none of it
            value = values[name] + value
        if isinstance(value, dict) and values.get(name):
            value = values[name] | value
        values[name] = value
    return values


def pick_flags(argv: list[str], names: Container[str]) -> tuple[list[str], list[str]]:
    """The words that are flags of these names with what follows them, and all others."""
    picked: list[str] = []
    left: list[str] = []
    is_picked = False
    for word in argv:
        if word.startswith("--"):
            name = word.removeprefix("--").partition("=")[0]
            is_picked = name in names
        (picked if is_picked else left).append(word)
    return picked, left


def _check(
    place: str, shown: str, name: str, value: Any, kinds: dict[str, Any], converter: Callable
) -> Any:
    if name in REFUSED and name in kinds:
        raise InputError(f"{place}: {shown} is not taken: {REFUSED[name]}")
    if name not in kinds:
        raise UnknownNameError(f"{place}: unknown name {shown}{_hint_at_name(name, kinds)}")
    try:
        converted = converter(value, kinds[name])
        return _at_home(converted) if name in PATHS else converted
    except ValueError as error:
        got = " ".join(value) if converter is convert_text else value
        _, limits = split_annotated(kinds[name])
        new_value = limits.get("renamed", {}).get(str(got))
        hint = f"; did you mean {new_value}?" if new_value else ""
        value_shown = repr(got)
        if len(value_shown) > SHOWN_CHARACTERS:
            value_shown = f"{value_shown[:SHOWN_CHARACTERS]}..."
        raise InputError(f"{place}: {shown}: got {value_shown}, {error}{hint}") from None


def _at_home(value: Any) -> Any:
    """The value, or each of a list, with the home folder in the place of a leading ~."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _hint_at_name(name: str, kinds: dict[str, Any]) -> str:
    """The end of a message about a name that the recipe does not have."""
    renamed = RENAMED.get(name, "")
    new_name = renamed.partition(" ")[0]  # an explanation may follow
    if new_name in kinds:
        return f"; did you mean {renamed}?"
    return did_you_mean(name, kinds) or "; --help lists the names"


def _find_config(word: str, recipe: Path) -> Path:
    """The file itself, or a shipped config: the recipe's by name, with or without .yaml; another's
    as recipe/name.
    """
    folder = recipe.parent / "configs" / recipe.stem
    word = os.path.expanduser(word)
    for path in (
        Path(word),
        folder / word,
        folder / f"{word}.yaml",
        folder.parent / f"{word}.yaml",
    ):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
    raise InputError(
        f"--config {word}: no such file; shipped with {recipe.stem}: {known or 'none'}"
    )


def _read_yaml(
    path: Path, kinds: dict[str, Any], extended_by: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Checked values of one file; the files that it extends are read first, so variants hold what
    differs.
    """
    values: dict[str, Any] = {}
    inherited: dict[str, Any] = {}
    for place, name, value in _yaml_lines(path):
        if name == "extends":
            inherited = _read_extended(place, path, value, kinds, extended_by)
        else:
            values[name] = _check(place, name, name, value, kinds, convert)
    return inherited | values


def _read_extended(
    place: str, path: Path, value: Any, kinds: dict[str, Any], extended_by: tuple[Path, ...]
) -> dict[str, Any]:
    """Checked values of the files that `extends` names, one or a list; a later one wins."""
    values: dict[str, Any] = {}
    readers = (*extended_by, path)
    for name in _extended_names(value):
        base = path.parent / name
        if not base.is_file() or any(base.samefile(reader) for reader in readers):
            raise InputError(f"{place}: extends: {name!r} is not another file in {path.parent}")
        values |= _read_yaml(base, kinds, readers)
    return values


def extended_files(path: Path) -> list[Path]:
    """The files that a config names with `extends`, in the order in which they are read."""
    return [
        path.parent / base
        for _, name, value in _yaml_lines(path)
        if name == "extends"
        for base in _extended_names(value)
    ]


def _extended_names(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return [os.path.expanduser(str(name)) for name in names]


def _yaml_lines(path: Path) -> list[tuple[str, str, Any]]:
    """[("file:line", name, value), ...]"""
    import yaml

    with naming(path):
        loader, node = parse_yaml(read_limited(path))
        if isinstance(node, yaml.MappingNode):
            return [
                (
                    f"{path}:{key.start_mark.line + 1}",
                    str(loader.construct_object(key, deep=True)),
                    construct_value(loader, value),
                )
                for key, value in node.value
            ]
    raise InputError(f"{path}: holds no 'name: value' lines")
