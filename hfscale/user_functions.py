"""Functions of the user's own, named as `my_file.py:function`."""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfscale.options import did_you_mean
from hfscale.process import InputError


def names_function(word: str) -> bool:
    """Whether a word has the form `my_file.py:function`."""
    file, colon, function = word.rpartition(":")
    return bool(colon) and file.endswith(".py") and function.isidentifier()


def load_function(place: str, word: str) -> Callable[..., Any]:
    """The function that `my_file.py:function` names. The file is run, as an import would run it.

    Args:
        place: what errors begin with, such as `metrics`.

    Raises:
        InputError: no such file, one that cannot be run, or one without this function.
    """
    file, _, name = word.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"{place}: {word}: there is no file {file}; name one as FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    # Its imports may be of files that lie beside it.
    sys.path.insert(0, str(Path(file).absolute().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        said = describe_error(error, file)
        raise InputError(f"{place}: {word}: running the file raised {said}") from None
    finally:
        del sys.path[0]
    function = getattr(module, name, None)
    if callable(function):
        return function
    functions = [key for key, value in vars(module).items() if callable(value)]
    hint = did_you_mean(name, functions) or f"; it has {', '.join(functions) or 'none'}"
    raise InputError(f"{place}: {word}: {file} has no function {name}{hint}")


def describe_error(error: BaseException, file: str | None = None) -> str:
    """An error of the user's own code in one line: its type, its text, and where it was raised: the
    last line of `file` on the way to it, or the last line of all."""
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    frames = list(traceback.extract_tb(error.__traceback__))
    if file is not None:
        frames = [frame for frame in frames if Path(frame.filename) == Path(file).absolute()]
    if isinstance(error, SyntaxError) or not frames:
        return text  # a syntax error names its line itself
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
