"""Functions in a Python file of the user's own, which arguments name as `my_file.py:function`."""

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfscale.options import did_you_mean
from hfscale.process import InputError

# Takes "my_file.py:documents" and "../code/x.py:f"; not "my_file.py", "embedded:python-docs".
FUNCTION_NAME = re.compile(r".+\.py:\w*")
SHOWN_CHARACTERS = 200  # of what an exception says


def names_function(name: str) -> bool:
    """Whether an argument's value means a function in a file, as `my_file.py:function` does."""
    return FUNCTION_NAME.fullmatch(name) is not None


def file_of(name: str) -> Path:
    """The file in `my_file.py:function`."""
    return Path(name.rpartition(":")[0])


def load_function(place: str, name: str) -> Callable[..., Any]:
    """The function that `my_file.py:function` names. The file is run, as an import runs it.

    Raises InputError, beginning with `place`: no such file or function, or the file itself raises.
    """
    path = file_of(name)
    if not path.is_file():
        raise InputError(f"{place}: no such file {path}")
    function_name = name.rpartition(":")[2]
    contents = _run_file(place, path)
    function = contents.get(function_name)
    if callable(function):
        return function
    functions = [
        known for known, value in contents.items() if callable(value) and not known.startswith("_")
    ]
    hint = did_you_mean(function_name, functions)
    raise InputError(f"{place}: no function '{function_name}' in {path}{hint}")


def _run_file(place: str, path: Path) -> dict[str, Any]:
    """What the names at the file's top level stand for after it ran."""
    module_name = f"_user_code_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{place}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up by its name
    sys.path.insert(0, str(path.absolute().parent))  # it may import files that lie beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"{place}: {describe_exception(error, path)}") from None
    finally:
        del sys.path[0]
    return vars(module)


def describe_exception(error: BaseException, path: Path | None = None) -> str:
    """What the user's code raised, in one line, and in which line of its file if that is known."""
    if isinstance(error, SyntaxError):
        return f"{path or error.filename}:{error.lineno}: not Python ({error.msg})"
    said = " ".join(str(error).split())[:SHOWN_CHARACTERS]
    frames = traceback.extract_tb(error.__traceback__)
    if path is None:
        path = Path(frames[-1].filename) if frames else Path()
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == path.absolute()]
    where = f" in {path}:{lines[-1]}" if lines else ""
    return f"raised {type(error).__name__}{where}: {said or 'without a word'}"
