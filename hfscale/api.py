"""What `import hfscale` offers: every recipe as a function, and the building blocks of the library.

    run = hfscale.pretrain(config="tiny_cpu", output_dir="runs/books", max_steps=300)
    hfscale.score(model=[run], source=["embedded:python-prose"], output_dir="runs/score")

A call goes the way of a command: its options are written as words, and the recipe's own parser
reads them. So what is refused, and in which line, is the same.
"""

import contextlib
import importlib
import json
import logging
import numbers
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hfscale.config import arguments_of, names_of, shipped
from hfscale.launch import FLAGS
from hfscale.process import QUIET_LOGGERS, InputError, line_of, quiet_libraries
from hfscale.signatures import docstring_of, signature_of
from hfscale.stopping import ENDING, SAVING, Stopped

# Functions and classes of the library that stand at the top, and where they are written.
BUILDING_BLOCKS = {
    "InputError": "hfscale.process",
    "load_run": "hfscale.finished_run",
    "Run": "hfscale.finished_run",
    "Page": "hfscale.finished_run",
    # text
    "load_documents": "hfscale.data.sources",
    "split_documents": "hfscale.data.splits",
    "clean_documents": "hfscale.cleaning.steps",
    # tokens
    "train_bpe": "hfscale.data.tokenizer",
    "load_tokenizer": "hfscale.data.tokenizer",
    "pack_documents": "hfscale.data.packing",
    "collate_rows": "hfscale.data.packing",
    # model and training
    "new_model": "hfscale.new_models",
    "load_model": "hfscale.models",
    "training_arguments": "hfscale.training.training_args",
    "LMTrainer": "hfscale.training.trainer",
    # what it is worth
    "score_documents": "hfscale.metrics.perplexity",
    "perplexity_metrics": "hfscale.metrics.perplexity",
    "compare_paired": "hfscale.metrics.intervals",
    "generate_texts": "hfscale.generation.texts",
    "attention_weights": "hfscale.probes.attention",
}
# Packages of the library that have a recipe's name: called, they are the recipe (`RecipeRoom`).
ROOMS = ("export", "report")
# Loggers that recipes turn down.
TURNED_DOWN = (*QUIET_LOGGERS, "datasets.packaged_modules", "lm_eval")


def recipe_names() -> list[str]:
    """Every recipe, which is a function of the same name."""
    return list(shipped("recipes", "[!_]*.py"))


def recipe_module(name: str) -> ModuleType:
    """The recipe's script as a module."""
    return importlib.import_module(f"hfscale.recipes.{name}")


def public_names() -> list[str]:
    """What `hfscale` has at its top."""
    return sorted([*BUILDING_BLOCKS, *recipe_names()])


def find_public(name: str) -> Any:
    """What `hfscale.<name>` is; raises AttributeError: there is no such name."""
    if name in ROOMS:
        return importlib.import_module(f"hfscale.{name}")
    if name in BUILDING_BLOCKS:
        return getattr(importlib.import_module(BUILDING_BLOCKS[name]), name)
    if name in recipe_names():
        return recipe_function(name)
    raise AttributeError(f"module 'hfscale' has no attribute '{name}'")


def recipe_function(name: str) -> Callable[..., Any]:
    """The recipe as a function; its signature names the recipe's own options and those of
    `TrainingArguments` that most runs set, and it takes all others.
    """
    recipe = recipe_module(name)

    def call(*first: Any, **options: Any) -> Any:
        return call_recipe(name, *first, **options)

    call.__name__ = call.__qualname__ = name
    call.__module__ = "hfscale"
    call.__doc__ = docstring_of(recipe)
    call.__signature__ = signature_of(recipe)  # type: ignore[attr-defined]
    return call


def call_recipe(name: str, *first: Any, **options: Any) -> Any:
    """Run a recipe in this process, as the command with these options, and give what its `main`
    returns.

    Args:
        first: what may stand first on the command line without a name, such as a folder.
        options: by the names of the command line, without the dashes. A list may be given as one
            value, paths and runs (`Run`) wherever a folder is meant; None is the command line's
            null.

    Raises:
        InputError: what the command prints as its error, before anything is written.
        KeyboardInterrupt: Ctrl-C. A training has saved a checkpoint by then, and said so.
        RuntimeError: the recipe failed, and has said why on stderr.
    """
    recipe = recipe_module(name)
    _check_one_process(recipe, options)
    words = command_words(first, options)
    with leaving_nothing_behind():
        try:
            return recipe.main(words)
        except InputError as error:
            raise InputError(line_of(error)) from None
        except SystemExit as end:
            _raise_for_status(name, end.code)
    return None


def _raise_for_status(name: str, status: Any) -> None:
    """What a command says by its exit status, as an exception; nothing for 0, as --help ends."""
    signal_number = status - 128 if isinstance(status, int) else 0
    if signal_number in ENDING:
        raise Stopped(signal_number) from None
    if status:
        raise RuntimeError(f"{name} ended with status {status}; it said why on stderr") from None


def _check_one_process(recipe: ModuleType, options: Mapping[str, Any]) -> None:
    """Raise InputError for the flags by which the command starts several processes."""
    known = names_of(arguments_of(recipe))
    asked = [name for name in options if name in FLAGS and name not in known]
    if asked:
        name = Path(str(recipe.__file__)).stem
        typed = shlex.join(["hfscale", name, *command_words((), options)])
        raise InputError(f"{asked[0]}: a call runs in this process; to start others, type: {typed}")


# ---- options as the command line has them


def command_words(first: tuple[Any, ...], options: Mapping[str, Any]) -> list[str]:
    """The options as the words of a command, which the recipe's parser reads back as they are."""
    words = [word for value in first for word in _words_of_list("", _plain(value, "command line"))]
    for name, value in options.items():
        words += _words_of(name, _plain(value, f"command line: --{name}"))
    return words


def _words_of(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *_words_of_list(name, value)]
    word = _word(value)
    if word.startswith("--"):  # or it would be the next flag
        return [f"--{name}={word}"]
    return [f"--{name}", word]


def _words_of_list(name: str, value: Any) -> list[str]:
    """Items side by side, as people type them; in JSON where these would be read as something
    else.
    """
    items = value if isinstance(value, list) else [value]
    words = [_word(item) for item in items]
    is_plain = all(isinstance(item, str | int | float) for item in items)
    if not name or (words and is_plain and not any(word.startswith(("--", "[")) for word in words)):
        return words
    return [json.dumps(items, ensure_ascii=False)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(value: Any, place: str) -> Any:
    """The value as JSON can hold it: paths and runs are text, tuples lists, NumPy's numbers
    Python's. Raises InputError: it is none of these.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, place) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, place) for key, item in value.items()}
    raise InputError(
        f"{place}: got a {type(value).__name__}, expected text, a path, a run, a number, or a list "
        "or mapping of these"
    )


# ---- a guest in someone's process


@contextlib.contextmanager
def leaving_nothing_behind() -> Iterator[None]:
    """Put back what a recipe, which is else a process of its own, changes for all of the process:
    the environment, handlers of signals, loggers, warnings, streams, and which modules are hidden.

    Random numbers are no part of it: a training seeds the generators of Python, NumPy and torch, as
    upstream's Trainer does.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_put_environment_back, os.environ, dict(os.environ))
        stack.callback(_put_streams_back, sys.stdout, sys.stderr)
        stack.callback(_put_loggers_back, _looks_of_loggers())
        stack.callback(_put_bars_back, _draws_bars())
        stack.callback(
            _put_signals_back, {number: signal.getsignal(number) for number in _signals()}
        )
        stack.callback(_show_hidden, "bitsandbytes" in sys.modules)
        stack.enter_context(warnings.catch_warnings())
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        quiet_libraries()
        yield


def _put_environment_back(environment: Any, values: dict[str, str]) -> None:
    # `datasets` puts a copy in the place of `os.environ` when it maps with several processes.
    os.environ = environment  # noqa: B003 - the object itself is put back
    for name in environment.keys() - values.keys():
        del environment[name]
    environment.update(values)


def _put_streams_back(stdout: Any, stderr: Any) -> None:
    for name, stream in (("stdout", stdout), ("stderr", stderr)):
        current = getattr(sys, name)
        if current is not stream:
            current.flush()
            setattr(sys, name, stream)


def _looks_of_loggers() -> dict[str, tuple[int, list[Any]]]:
    loggers = {name: logging.getLogger(name) for name in TURNED_DOWN}
    return {name: (logger.level, list(logger.filters)) for name, logger in loggers.items()}


def _put_loggers_back(looks: dict[str, tuple[int, list[Any]]]) -> None:
    for name, (level, filters) in looks.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.filters[:] = filters


def _draws_bars() -> bool:
    """Whether transformers draws bars while it loads and saves; it does at first."""
    upstream: Any = sys.modules.get("transformers.utils.logging")
    return upstream is None or upstream.is_progress_bar_enabled()


def _put_bars_back(were_drawn: bool) -> None:
    upstream: Any = sys.modules.get("transformers.utils.logging")
    if upstream and were_drawn and not upstream.is_progress_bar_enabled():
        with warnings.catch_warnings(action="ignore"):  # the Hub's, where the environment forbids
            upstream.enable_progress_bar()


def _signals() -> tuple[int, ...]:
    return ENDING if SAVING is None else (*ENDING, SAVING)


def _put_signals_back(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets no other thread do it, and so none has changed them
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _show_hidden(was_known: bool) -> None:
    """Let the process import bitsandbytes again, which recipes hide from peft."""
    modules: dict[str, Any] = sys.modules
    if not was_known and modules.get("bitsandbytes", True) is None:
        del modules["bitsandbytes"]
