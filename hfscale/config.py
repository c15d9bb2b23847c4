"""YAML files and flags -> one argument object, strictly, before anything heavy is imported."""

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import typing
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from hfscale.options import (
    construct_value,
    convert,
    convert_text,
    describe,
    did_you_mean,
    training_types,
)

# Of arguments that have one meaning in every recipe; others have theirs beside `help`, in their
# metadata.
LIMITS = {
    name: {"min": 0, "max": 2**32 - 1} for name in ("seed", "data_seed")
}  # what NumPy's generators take

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
}


# The recipes that one task file serves, and what in it says how a run trains, not what is scored.
TASK_RECIPES = ("finetune_task", "score")
OF_TRAINING = ("model", "tokenizer", "output_dir", "resume", "overwrite")


class InputError(ValueError):
    """The user's input is wrong: one line with place, value, what is allowed and the next step
    (exit status 2).
    """


class UnknownNameError(InputError):
    """A name that the recipe does not have."""


@dataclass
class RemoteCodeArguments:
    """Whether Python files that lie beside a model or tokenizer may run."""

    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "run the Python code that a model's or tokenizer's folder or Hub id brings "
            "along"
        },
    )


@dataclass
class SourceArguments:
    """Where text comes from."""

    source: list[str] = field(
        default_factory=lambda: ["embedded:python-docs"],
        metadata={
            "help": "embedded:python-docs, embedded:python-code, a file, folder, glob, saved data "
            "set or Hub id"
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "configuration of a Hub data set"}
    )
    text_column: str = field(default="text", metadata={"help": "column that holds the text"})
    sample_by: Literal["document", "paragraph", "line"] = field(
        default="document", metadata={"help": "what one document of a .txt or .md file is"}
    )
    on_error: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "a row of .jsonl, .json, .csv or .tsv, or a document of a text file, that "
            "cannot be read: stop, or leave it out and count"
        },
    )


@dataclass
class SplitArguments(SourceArguments):
    """Where text comes from and what of it is held out."""

    split_by: Literal["document", "position"] = field(
        default="document",
        metadata={
            "help": "validation part: documents drawn at random, or the last part of the text"
        },
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "share of documents, or of characters"}
    )
    validation_source: list[str] | None = field(
        default=None, metadata={"help": "validation text of its own"}
    )


@dataclass
class DataArguments(SplitArguments, RemoteCodeArguments):
    """Where text comes from and how it becomes rows."""

    tokenizer: str = field(
        default="train:8192",
        metadata={"help": "train:<vocab size>, unigram:<vocab size>, char, a folder or a Hub id"},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "tokens per row; default: the model's context"}
    )
    cross_document_attention: bool = field(
        default=False,
        metadata={"help": "plain concatenation: let packed documents attend to each other"},
    )
    packing: Literal["stream", "best_fit", "none"] | None = field(
        default=None,
        metadata={
            "help": "stream: cut one stream into rows; best_fit: keep documents whole where they "
            "fit and leave some space unused; none: each document a row of its own, padded; "
            "default: stream, or none for a model that lets packed documents see each other"
        },
    )


@dataclass
class StreamArguments(DataArguments):
    """How training rows are drawn: from a stream, or from several sources in given shares."""

    streaming: bool = field(
        default=False,
        metadata={
            "help": "read, tokenize and pack while training (needs max_steps); validation text is "
            "drawn by a hash of each document, and its first 2 million characters are scored"
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "of a stream: rows in memory from which the next is drawn (0: rows come in "
            "order)"
        },
    )
    source_weights: list[float] | None = field(
        default=None,
        metadata={"help": "share of training rows from each source, in the order of --source"},
    )
    source_temperature: float | None = field(
        default=None,
        metadata={
            "help": "shares proportional to size^(1/temperature): 1 as the sizes are, larger "
            "nearer to equal"
        },
    )


@dataclass
class TaskArguments:
    """A task is data: its examples, how one is asked and answered, and how answers are judged."""

    task_source: list[str] | None = field(
        default=None,
        metadata={
            "help": "examples: embedded:<task>, files (.jsonl, .json, .csv, .tsv, .parquet, .txt, "
            "also .gz), or a Hub id"
        },
    )
    task_validation_source: list[str] | None = field(
        default=None, metadata={"help": "held-out examples of its own"}
    )
    task_format: Literal["columns", "parallel", "squad", "instructions", "chat"] = field(
        default="columns",
        metadata={
            "help": "rows with named columns, two text files line by line (columns source, "
            "target), SQuAD (context, question, answers), instructions (prompt, response), "
            "conversations (messages)"
        },
    )
    train_examples: int | None = field(
        default=None,
        metadata={
            "help": "at most this many examples to train on; of a generated set this many are made "
            "(default 20,000)"
        },
    )
    validation_examples: int = field(
        default=500,
        metadata={
            "help": "held-out examples: at most this many, and of a source without some of its own "
            "at most a tenth"
        },
    )
    drop_empty: bool = field(
        default=False,
        metadata={
            "help": "leave out (and count) examples with an empty prompt or target, which else are "
            "an error"
        },
    )
    prompt: str | None = field(
        default=None, metadata={"help": "template of the question; {name} is a column"}
    )
    target: str | None = field(
        default=None,
        metadata={
            "help": "template of the answer; {name} is a column, which may list several right "
            "answers"
        },
    )
    copied: str | None = field(
        default=None, metadata={"help": "template of what a baseline copies; default: prompt"}
    )
    choices: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "column that lists the answers to choose from, or several columns that hold "
            "one each"
        },
    )
    answer: str | None = field(
        default=None,
        metadata={
            "help": "column with the index of the right choice, from 0; of several columns of "
            "choices also the name of the right one (default: the first)"
        },
    )
    test: str | None = field(
        default=None, metadata={"help": "template of code that checks the program"}
    )
    program: str = field(
        default="{prompt}{prediction}\n{test}",
        metadata={
            "help": "what pass_at_k runs: {prediction} is the answer, other names are columns, "
            "else the filled templates"
        },
    )
    tests_apart: bool = field(
        default=True,
        metadata={
            "help": "what follows {prediction} runs in a process of its own, so that no program "
            "can fake that it passed; false: for tests that need more of a program than calls, in "
            "one process with it"
        },
    )
    user_role: str = field(
        default="user", metadata={"help": "role that asks, as the conversations name it"}
    )
    assistant_role: str = field(
        default="assistant", metadata={"help": "role that answers, as the conversations name it"}
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "of conversations, and to make conversations of prompts and targets: chatml, "
            "or a Jinja file with {% generation %}; default: conversations are written in the "
            "tokenizer's own"
        },
    )
    long_targets: Literal["stop", "drop", "truncate"] = field(
        default="stop",
        metadata={
            "help": "targets that do not fit into max_length beside a prompt: stop and count them, "
            "leave such examples out, or learn only their beginning, without EOS"
        },
    )
    shorten: Literal["start", "end"] = field(
        default="end",
        metadata={
            "help": "side from which a prompt that is too long loses tokens; what the template has "
            "after its last column stays; a conversation loses its oldest turns"
        },
    )
    baseline: Literal["copy_source", "lead_sentence", "most_frequent"] = field(
        default="most_frequent",
        metadata={"help": "what a simple program would answer, shown beside the model"},
    )
    stop_strings: list[str] | None = field(
        default=None, metadata={"help": "an answer ends before any of these"}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "longest answer in tokens"})
    metrics: list[
        Literal["bleu", "chrf", "rouge", "exact_match", "f1", "accuracy", "pass_at_k"]
    ] = field(default_factory=list, metadata={"help": "how answers are judged"})
    metric_options: dict = field(
        default_factory=dict,
        metadata={
            "help": "metric: its options, such as {rouge: {tokenizer: character}} or {bleu: "
            "{tokenize: zh}}"
        },
    )


@dataclass
class SamplingArguments:
    """How a text is drawn from a model, in the names of transformers.GenerationConfig."""

    max_new_tokens: int = field(
        default=128,
        metadata={"help": "most tokens per completion; the context may end it", "min": 1},
    )
    do_sample: bool = field(
        default=True, metadata={"help": "draw tokens; false: the likeliest each time"}
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "below 1: likelier tokens more often", "min": 1e-6, "max": 1e6},
    )
    top_k: int = field(
        default=50, metadata={"help": "draw among this many likeliest tokens; 0: all", "min": 0}
    )
    top_p: float = field(
        default=1.0,
        metadata={
            "help": "draw among the likeliest tokens up to this probability",
            "min": 1e-6,
            "max": 1,
        },
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "above 1: repeat less", "min": 1e-3, "max": 1e3}
    )
    stop_strings: list[str] | None = field(
        default=None, metadata={"help": "each ends a completion and is cut off; EOS always does"}
    )
    seed: int = field(default=0, metadata={"help": "of the draws"})


@dataclass
class DecodingArguments(SamplingArguments):
    """How many texts are made, and which: drawn, the likeliest, or found by a search."""

    num_beams: int = field(
        default=1,
        metadata={"help": "beam search with this many beams; 1: none", "min": 1, "max": 1000},
    )
    num_return_sequences: int = field(
        default=1, metadata={"help": "completions per prompt", "min": 1, "max": 100_000}
    )
    batch_size: int = field(default=8, metadata={"help": "prompts that go on at a time", "min": 1})


@dataclass
class AdapterArguments(RemoteCodeArguments):
    """A checkpoint to start from, and which weights are trained: all, the upper layers, or a small
    adapter's.
    """

    model: str = field(
        default="runs/quickstart", metadata={"help": "folder of a saved model, or a Hub id"}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "rank of LoRA adapters, such as 16; default: none, all weights are trained",
            "min": 1,
        },
    )
    lora_alpha: float = field(
        default=32,
        metadata={
            "help": "adapters count alpha / rank (rsLoRA: / sqrt(rank))",
            "min": 1e-6,
            "max": 1e6,
        },
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "dropout before the adapters", "min": 0, "max": 0.99}
    )
    use_dora: bool = field(
        default=False, metadata={"help": "DoRA: the size of each output is trained on its own"}
    )
    use_rslora: bool = field(default=False, metadata={"help": "rsLoRA: rank-stabilised scale"})
    target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "layers with adapters, by the end of their names, such as attn.c_attn; "
            "default: all linear ones"
        },
    )
    peft_type: (
        Literal["GRALORA", "HIRA", "RANDLORA", "VERA", "FOURIERFT", "IA3", "LN_TUNING"] | None
    ) = field(default=None, metadata={"help": "another adapter method of peft, in place of LoRA"})
    peft_kwargs: dict | None = field(
        default=None, metadata={"help": "more arguments of its peft configuration"}
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "QLoRA: 4-bit weights below the adapters (tried on CPUs, not on GPUs)"},
    )
    freeze_layers: int = field(
        default=0,
        metadata={
            "help": "neither the embeddings nor this many first blocks are trained; with adapters: "
            "they get none"
        },
    )
    add_tokens: list[str] = field(
        default_factory=list,
        metadata={
            "help": "new tokens; those written <|like this|> are special: never split, left out of "
            "shown text"
        },
    )
    merge: bool = field(
        default=False, metadata={"help": "write a plain model: the adapter added to the weights"}
    )


@dataclass
class ShapeArguments:
    """The model, in the names of GPT2Config."""

    # Far beyond what the largest models in use have; deeper ones take minutes to be made at all.
    n_layer: int = field(default=12, metadata={"help": "transformer blocks", "min": 1, "max": 1000})
    n_head: int = field(
        default=12, metadata={"help": "attention heads per block", "min": 1, "max": 10_000}
    )
    n_embd: int = field(default=768, metadata={"help": "width", "min": 1, "max": 1_000_000})
    n_positions: int = field(
        default=1024, metadata={"help": "context in tokens", "min": 1, "max": 1_000_000_000}
    )
    resid_pdrop: float = field(
        default=0.0, metadata={"help": "dropout of the residual branches", "min": 0, "max": 0.99}
    )
    embd_pdrop: float = field(
        default=0.0, metadata={"help": "dropout of the embeddings", "min": 0, "max": 0.99}
    )
    attn_pdrop: float = field(
        default=0.0, metadata={"help": "dropout of the attention weights", "min": 0, "max": 0.99}
    )


def shape_of(args: ShapeArguments) -> dict[str, Any]:
    """The model's sizes among a recipe's arguments, by their names in GPT2Config."""
    return {item.name: getattr(args, item.name) for item in fields(ShapeArguments)}


@dataclass
class RunArguments:
    """What every training recipe also offers; `training` holds the checked values for
    TrainingArguments.
    """

    resume: Literal["auto"] | None = field(
        default=None,
        metadata={
            "help": "auto: go on from the newest whole checkpoint, or start anew if there is none"
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "delete an earlier run in output_dir first"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "show one row, the counts and the memory, then stop"}
    )
    auto_batch: bool = field(
        default=False,
        metadata={
            "help": "find the largest micro-batch that memory holds; per_device_train_batch_size x "
            "gradient_accumulation_steps stays what a process reads per step"
        },
    )
    training: dict = field(default_factory=dict)


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
    own = cls.__dataclass_fields__
    if "training" in own:
        values["training"] = {name: values.pop(name) for name in list(values) if name not in own}
    return cls(**values)


def arguments_class(recipe: Path) -> type:
    """The argument dataclass of a script: the last one whose name ends in `Arguments`. Nothing is
    run.
    """
    spec = importlib.util.spec_from_file_location(f"_checked_{recipe.stem}", recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return [
        v for k, v in vars(module).items() if k.endswith("Arguments") and v.__module__ == spec.name
    ][-1]


def check_recipe_args(recipe: Path, argv: list[str]) -> dict[str, Any]:
    """Parse `argv` for a script without running it; returns the given values. Raises as
    `parse_args`.
    """
    return _checked_values(arguments_class(recipe), argv, recipe)


def _checked_values(cls: type, argv: list[str], recipe: Path) -> dict[str, Any]:
    kinds = _kinds_of(cls)
    if {"-h", "--help"} & {*argv}:
        print(_help_text(cls, recipe, kinds))
        raise SystemExit(0)
    given, values = read_flags(argv, {**kinds, "config": list[str]}), {}
    if "config" in given:
        for word in given.pop("config"):
            values |= _read_config(cls, _find_config(word, recipe), recipe, kinds)
    return values | given


def _read_config(cls: type, path: Path, recipe: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """The recipe's values of a file. A task's file may also hold what training, or what scoring,
    has for itself.
    """
    try:
        values = _read_yaml(path, kinds)
        others = set()
    except UnknownNameError:
        if not issubclass(cls, TaskArguments):
            raise
        values = _read_yaml(path, _task_recipes_kinds(recipe) | kinds)
        others = values.keys() - kinds.keys()
    values = {name: value for name, value in values.items() if name not in others}
    scores = issubclass(cls, TaskArguments) and "training" not in cls.__dataclass_fields__
    if scores and (others or values.get("model") == ["new"]):
        return _of_training_file(values, {name: value for _, name, value in _yaml_lines(path)})
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


def _task_recipes_kinds(recipe: Path) -> dict[str, Any]:
    """The types of all names in the recipes that share task files: those beside this script, else
    the shipped ones.
    """
    kinds: dict[str, Any] = {}
    for name in TASK_RECIPES:
        beside = recipe.with_name(f"{name}.py")
        script = beside if beside.is_file() else shipped("recipes", "*.py")[name]
        kinds |= _kinds_of(arguments_class(script))
    return kinds


def _kinds_of(cls: type) -> dict[str, Any]:
    """The types of a recipe's arguments by name; its own go before TrainingArguments'."""
    upstream = training_types() if "training" in cls.__dataclass_fields__ else {}
    kinds = upstream | {
        name: kind for name, kind in typing.get_type_hints(cls).items() if name != "training"
    }
    limits = LIMITS | {
        item.name: {**LIMITS.get(item.name, {}), **item.metadata} for item in fields(cls)
    }
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
    list. Raises as `parse_args`.
    """
    flags: list[tuple[str, list[str]]] = []
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
    given: dict[str, Any] = {}
    for name, words in flags:
        words = words or [""] * (name == "config")  # the error names the shipped ones
        value = _check("command line", f"--{name}", name, words, kinds, convert_text)
        given[name] = given[name] + value if isinstance(value, list) and name in given else value
    return given


def pick_flags(argv: list[str], names: Container[str]) -> tuple[list[str], list[str]]:
    """The words that are flags of these names with what follows them, and all others."""
    picked, others = [], []
    words = others
    for word in argv:
        if word.startswith("--"):
            words = picked if word[2:].partition("=")[0] in names else others
        words.append(word)
    return picked, others


def _check(
    place: str, shown: str, name: str, value: Any, kinds: dict[str, Any], converter: Callable
) -> Any:
    if name in REFUSED and name in kinds:
        raise InputError(f"{place}: {shown} is not taken: {REFUSED[name]}")
    if name not in kinds:
        renamed = RENAMED.get(name, "")
        hint = (
            f"; did you mean {renamed}?"
            if renamed.split(" ")[0] in kinds
            else did_you_mean(name, kinds)
        )
        raise UnknownNameError(f"{place}: unknown name {shown}{hint or '; --help lists the names'}")
    try:
        return converter(value, kinds[name])
    except ValueError as error:
        got = " ".join(value) if converter is convert_text else value
        raise InputError(f"{place}: {shown}: got {got!r}, {error}") from None


def _find_config(word: str, recipe: Path) -> Path:
    """The file itself, or a shipped config: the recipe's by name, with or without .yaml; another's
    as recipe/name.
    """
    folder = recipe.parent / "configs" / recipe.stem
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
    """Checked values of one file; `extends: other.yaml` (beside it) is read first, so variants hold
    what differs.
    """
    values: dict[str, Any] = {}
    seen: set[str] = set()
    for place, name, value in _yaml_lines(path):
        if name in seen:
            raise InputError(f"{place}: {name} is set twice; keep one of the lines")
        seen.add(name)
        if name == "extends":
            base, above = path.parent / str(value), (*extended_by, path)
            if not base.is_file() or any(base.samefile(file) for file in above):
                raise InputError(
                    f"{place}: extends: {value!r} is not another file in {path.parent}"
                )
            values = _read_yaml(base, kinds, above) | values
        else:
            values[name] = _check(place, name, name, value, kinds, convert)
    return values


def _yaml_lines(path: Path) -> list[tuple[str, str, Any]]:
    """[("file:line", name, value), ...]"""
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text("utf-8"))
        if isinstance(node := loader.get_single_node(), yaml.MappingNode):
            return [
                (
                    f"{path}:{key.start_mark.line + 1}",
                    str(loader.construct_object(key, deep=True)),
                    construct_value(loader, value),
                )
                for key, value in node.value
            ]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    raise InputError(f"{path}: holds no 'name: value' lines")


def _help_text(cls: type, recipe: Path, kinds: dict[str, Any]) -> str:
    lines = [f"usage: {recipe.name} [--config FILE.yaml ...] [--name value ...]", ""]
    own = [item for item in fields(cls) if item.name in kinds]
    for item in own:
        default = item.default if item.default is not MISSING else item.default_factory()
        lines += [
            f"  --{item.name} <{describe(kinds[item.name])}>  default: {default}",
            f"      {item.metadata.get('help', '')}",
        ]
    shown = {item.name for item in own}
    upstream = [name for name in kinds if name not in shown and name not in REFUSED]
    if upstream:
        lines += [
            "",
            "and every argument of transformers.TrainingArguments (names and meaning as there):",
            textwrap.fill(" ".join(upstream), 110, initial_indent="  ", subsequent_indent="  "),
        ]
    return "\n".join(lines)


def hub_reachable(timeout_seconds: float = 1.0) -> bool:
    """Whether the Hub answers a TCP connection within the limit."""
    return host_answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout_seconds)


def host_answers(url: str, timeout_seconds: float = 1.0) -> bool:
    """Whether the host of a URL answers a TCP connection within the limit."""
    parts, answers = urlsplit(url), []

    def ask() -> None:
        with contextlib.suppress(OSError):
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname, port), timeout_seconds).close()
            answers.append(True)

    thread = threading.Thread(
        target=ask, daemon=True
    )  # the look-up of the name has no limit of its own
    thread.start()
    thread.join(timeout_seconds)
    return bool(answers)


def go_offline_if_unreachable() -> None:
    """Set the offline switches unless the Hub answers: its libraries read them once, at import, and
    else retry for most of a minute. What the user set stays.
    """
    if "HF_HUB_OFFLINE" not in os.environ and not hub_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")


def hide_bitsandbytes() -> None:
    """Keep peft from importing bitsandbytes wherever it lies, as peft does at each start: on CPUs
    with bf16 instructions that prints a warning, and it costs a second. `show_bitsandbytes` brings
    it back.
    """
    sys.modules.setdefault("bitsandbytes", None)  # to Python's import system: not there


def show_bitsandbytes() -> None:
    """Let peft and transformers, which asked once and remember the answer, find bitsandbytes
    again.
    """
    from peft import import_utils
    from transformers.utils import is_bitsandbytes_available

    if sys.modules.get("bitsandbytes", True) is None:
        del sys.modules["bitsandbytes"]
    for check in (
        is_bitsandbytes_available,
        import_utils.is_bnb_available,
        import_utils.is_bnb_4bit_available,
    ):
        check.cache_clear()


def is_main_rank() -> bool:
    """Whether this process is rank 0 of its launch (or was not launched by a launcher)."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[[], Any]) -> None:
    """Entry of every script: an `InputError` becomes one line on stderr and exit status 2."""
    with ending_quietly():
        try:
            main()
        except InputError as error:
            if is_main_rank():
                line = (
                    str(error).strip().splitlines()[-1]
                )  # a data loader's worker adds its traceback before it
                print(
                    f"error: {line.removeprefix(f'{InputError.__module__}.InputError: ')}",
                    file=sys.stderr,
                )
            raise SystemExit(2) from None
        finally:
            torch = sys.modules.get("torch")
            if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
                # Gloo's threads else now and then abort a good exit
                torch.distributed.destroy_process_group()
    raise SystemExit(0)


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """Ends the program without a traceback where nothing is wrong with it: nobody reads its output
    any more (`| head`), with the status that a shell gives SIGPIPE; or Ctrl-C, with that of SIGINT.
    """
    with contextlib.suppress(AttributeError):  # a test's own stream
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # for a terminal that has not all of Unicode
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _end_by(signal.SIGPIPE)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # as rich ends
            _end_by(signal.SIGPIPE)
        raise
    except KeyboardInterrupt:
        if is_main_rank():
            after_the_sign = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
            print(f"{after_the_sign}stopped by Ctrl-C", file=sys.stderr)
        _end_by(signal.SIGINT)


def _end_by(stopped_by: signal.Signals) -> None:
    """Exit with the status of a program that this signal ended; what is still unwritten goes
    nowhere.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a test's own stream has no number
            os.dup2(nowhere, stream.fileno())
    raise SystemExit(128 + stopped_by) from None


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_output_folder(
    output_dir: str, *, overwrite: bool, last_file: str, written: Sequence[str]
) -> None:
    """`written` are the patterns of what this recipe writes, see `check_replaceable`.

    Raises InputError: the path is taken (with `overwrite`: by something else than a folder with
    `last_file` and nothing foreign in it), or cannot be written to.
    """
    folder, place = Path(output_dir).absolute(), f"output_dir {output_dir}"
    if os.path.islink(folder):
        check_writable(place, folder)
    if os.path.lexists(folder) and not (overwrite and (folder / last_file).is_file()):
        raise InputError(f"{place}: exists; name another, or --overwrite one of this recipe")
    check_writable(place, folder.parent, folder.name)
    if overwrite:
        check_replaceable(place, folder, written)


def check_replaceable(place: str, folder: Path, written: Sequence[str]) -> None:
    """Refuse to delete a folder that holds anything but files of the patterns `written`, or that
    people stand in.

    The patterns are paths below the folder; each name in one is a pattern of `fnmatch`, a last `**`
    stands for all that lies there.

    Raises:
        InputError: a link, the current folder or one above it, or files of other names, which are
            listed.
    """
    if folder.is_symlink():
        raise InputError(
            f"{place}: is a link; --overwrite deletes no folder through a link, name the folder "
            "itself"
        )
    if not folder.is_dir():
        return
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(
            f"{place}: is the current folder or one above it, which --overwrite never deletes; "
            "name another folder"
        )
    foreign = [
        path for path in _leaves(folder) if not _is_written(path.relative_to(folder), written)
    ]
    if foreign:
        names = sorted(str(path.relative_to(folder)) for path in foreign)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(
            f"{place}: --overwrite deletes only what a run wrote, and no run wrote {shown}; move "
            "it away, or name another folder"
        )


def remove_written(place: str, folder: Path, written: Sequence[str]) -> None:
    """Delete a folder file by file, after `check_replaceable`, which see for what is raised."""
    check_replaceable(place, folder, written)
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            Path(parent, name).unlink()
        for name in folders:
            path = Path(parent, name)
            path.unlink() if path.is_symlink() else path.rmdir()
    if folder.is_dir():
        folder.rmdir()


def _leaves(folder: Path) -> Iterator[Path]:
    """Files, links and empty folders below a folder; no link is followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in (*files, *links))
        if not folders and not files and Path(parent) != folder:
            yield Path(parent)


def _is_written(path: Path, patterns: Sequence[str]) -> bool:
    return any(_matches(path.parts, tuple(pattern.split("/"))) for pattern in patterns)


def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        names = names[: len(pattern)]
    return len(names) == len(pattern) and all(map(fnmatchcase, names, pattern))


def check_writable(place: str, folder: Path, name: str = "") -> None:
    """Raise InputError unless a folder, and in it a file or folder `name`, can be made or written.

    This is tried out in the lowest folder that is there: permissions do not tell that nothing can
    be made below /proc, or that a name is too long. Nothing is left.
    """
    lowest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if lowest.is_symlink() and not lowest.exists():
        raise InputError(
            f"{place}: {lowest} is a link to {os.readlink(lowest)}, which is not there; name "
            "another place"
        )
    if not lowest.is_dir() or not os.access(lowest, os.W_OK):
        raise InputError(f"{place}: {lowest} is not a folder that can be written to")
    try:
        with tempfile.TemporaryDirectory(prefix=".hfscale-", dir=lowest) as trial:
            made = Path(trial, folder.absolute().relative_to(lowest.absolute()))
            made.mkdir(parents=True, exist_ok=True)
            (made / f".{name}.part").touch()  # the name that `write_text` gives first
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{place}: cannot be written ({reason}); name another place") from None


@contextlib.contextmanager
def whole_folder(
    output_dir: str, *, overwrite: bool, last_file: str, written: Sequence[str]
) -> Iterator[Path]:
    """An empty folder to write into, which becomes `output_dir` at the end, or is gone after any
    error.

    Raises InputError: as `check_output_folder`, or a disk is full.
    """
    check_output_folder(output_dir, overwrite=overwrite, last_file=last_file, written=written)
    folder = Path(output_dir).absolute()
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with clear_disk_errors(f"output_dir {output_dir}", "nothing of it is left"):
            part.mkdir(parents=True)
            yield part
            remove_written(f"output_dir {output_dir}", folder, written)
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def clear_disk_errors(place: str, what_is_left: str) -> Iterator[None]:
    """Raises InputError instead of an OSError that means a full disk (or a quota, or a limit on a
    file's size).
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"{place}: {os.strerror(error.errno)} (there, or in the cache of datasets, HF_HOME); "
            f"{what_is_left}; free some space or name another disk"
        ) from None
