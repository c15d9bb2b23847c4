"""What notebooks and editors show of a recipe's function: its signature and its docstring."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from hfscale.config import PATHS, arguments_of, kinds_of, planned_recipes
from hfscale.help import MOST_SET, nearest_first
from hfscale.options import members_of

KEYWORD = inspect.Parameter.KEYWORD_ONLY
PATH = "str | PathLike[str]"


class Written(str):
    """What a signature shows as it is written here, without quotes."""

    def __repr__(self) -> str:
        return str(self)


UNTOLD = Written("...")  # a default that follows from other options


def signature_of(recipe: ModuleType) -> inspect.Signature:
    """Of a recipe's function: what may stand first, `config`, of `TrainingArguments` what most runs
    set, then the recipe's own options with their defaults; all others are in `training`.
    """
    cls = arguments_of(recipe)
    kinds = kinds_of(cls)
    own = {item.name: item for item in fields(cls) if item.name in kinds}
    upstream = [name for name in MOST_SET if name in kinds and name not in own]
    options = [
        _option("config", UNTOLD, Written(f"{PATH} | Sequence[{PATH}]")),
        *(_option(name, UNTOLD, type_text(name, kinds[name])) for name in upstream),
        *(
            _option(item.name, _default(item), type_text(item.name, kinds[item.name]))
            for item in nearest_first(cls, own.values())
        ),
    ]
    return inspect.Signature(
        [*_first(own), *options, *_others(cls, kinds)],
        return_annotation=Written(_returns(Path(str(recipe.__file__)))),
    )


def _option(name: str, default: Any, kind: Written) -> inspect.Parameter:
    return inspect.Parameter(name, KEYWORD, default=default, annotation=kind)


def _default(item: Field) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _first(own: dict[str, Field]) -> Iterator[inspect.Parameter]:
    """What takes the values that come without a name, where the recipe has such an argument."""
    if any(item.metadata.get("comes_first") for item in own.values()):
        yield inspect.Parameter("first", inspect.Parameter.VAR_POSITIONAL, annotation=Written(PATH))


def _others(cls: type, kinds: dict[str, Any]) -> Iterator[inspect.Parameter]:
    """What takes the options that a recipe has by others' names."""
    names = {item.name for item in fields(cls)}
    if names - kinds.keys() or planned_recipes(cls):  # a field that holds them
        yield inspect.Parameter(
            "training", inspect.Parameter.VAR_KEYWORD, annotation=Written("Any")
        )


def _returns(script: Path) -> str:
    """What `main` of a recipe is said to return, but for None, which a dry run and the other ranks
    of a launch return: with it every use of a result would have to ask first.
    """
    tree = ast.parse(script.read_text("utf-8"))
    [main] = (node for node in tree.body if getattr(node, "name", "") == "main")
    assert isinstance(main, ast.FunctionDef) and main.returns
    return ast.unparse(main.returns).removesuffix(" | None")


def type_text(name: str, kind: Any) -> Written:
    """The type of an option as Python writes it: a list may be any sequence or a single value, and
    a place on the disk any path.
    """
    parts: list[str] = []
    for member in members_of(kind):
        origin = get_origin(member)
        if origin is Literal:
            parts.append(f"Literal[{', '.join(map(repr, get_args(member)))}]")
        elif (origin or member) is list:
            item = type_text(name, (get_args(member) or (Any,))[0])
            parts += [item, f"Sequence[{item}]"]
        elif (origin or member) is dict:
            parts.append("Mapping[str, Any]")
        elif member is str and name in PATHS:
            parts.append(PATH)
        else:
            parts.append("None" if member is type(None) else getattr(member, "__name__", "Any"))
    return Written(" | ".join(dict.fromkeys(" | ".join(parts).split(" | "))))


def docstring_of(recipe: ModuleType) -> str:
    """A recipe's own docstring, and what its own options mean."""
    cls = arguments_of(recipe)
    lines = [inspect.getdoc(recipe) or "", "", "Options:"]
    for item in nearest_first(cls, fields(cls)):
        if text := item.metadata.get("help"):
            lines += textwrap.wrap(
                f"{item.name}: {text}", 96, initial_indent="    ", subsequent_indent="        "
            )
    return "\n".join([*lines, "", "What it returns: docs/python.md. Raises InputError."])
