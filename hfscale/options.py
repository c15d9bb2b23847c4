"""What types a recipe's arguments have, known before anything heavy is imported, and values checked against them."""

import ast
import contextlib
import difflib
import importlib.util
import json
import math
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin


def training_types() -> dict[str, Any]:
    """Types of the arguments of `transformers.TrainingArguments` by name, read from its source: importing the class
    costs seconds. An enum becomes the `Literal` of its values.

    A test holds the result against the imported class.
    """
    root = Path(importlib.util.find_spec("transformers").submodule_search_locations[0])
    files = [root / f"{name}.py" for name in ("training_args", "trainer_utils", "debug_utils")]
    classes = {node.name: node for path in files for node in ast.parse(path.read_text("utf-8")).body
               if isinstance(node, ast.ClassDef)}
    enums = {name: choices for name, node in classes.items() if (choices := _enum_choices(node))}
    names = {"Any": Any, "Literal": Literal, "ParallelismConfig": dict, **enums}
    found = {}
    for node in classes["TrainingArguments"].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            text = ast.unparse(node.annotation)
            # `SomeEnum | str` means one of the enum's values. The rest is the installed library's own source.
            found[node.target.id] = enums.get(text.removesuffix(" | str")) or eval(text, {}, names)
    return found


def _enum_choices(node: ast.ClassDef) -> Any:
    values = [s.value.value for s in node.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)]
    is_enum = any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in node.bases)
    return Literal[tuple(values)] if is_enum and values else None


def _members(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def describe(kind: Any) -> str:
    """The type as a person reads it in help and errors: `int or null`, `one of a, b`."""
    words = []
    for member in _members(kind):
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(member))))
        elif get_origin(member) is list:
            words.append("list of " + describe(get_args(member)[0]))
        else:
            words.append("null" if member is type(None) else (get_origin(member) or member).__name__)
    return " or ".join(words)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message that names what is known and nearest to `word`, or nothing if that is far off."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def convert(value: Any, kind: Any) -> Any:
    """`value` as YAML or JSON gave it, checked against the type without silent casts.

    Raises:
        ValueError: the value is of another type or not one of the choices.
    """
    choices = []
    for member in _members(kind):
        origin, arguments = get_origin(member), get_args(member)
        if origin is Literal:
            choices += map(str, arguments)
            if any(value == choice and type(value) is type(choice) for choice in arguments):
                return value
        elif origin is list and isinstance(value, list):
            return [convert(item, arguments[0]) for item in value]
        elif member is float and type(value) in (int, float, str):
            with contextlib.suppress(ValueError):  # text that is no number; YAML reads 1e-3 as text
                if not math.isnan(number := float(value)):
                    return number
        elif member is Any or type(value) is (origin or member):
            return value
    raise ValueError(f"expected {describe(kind)}{did_you_mean(str(value), choices)}")


def convert_text(words: list[str], kind: Any) -> Any:
    """The words that follow a flag on the command line, as a value of the type; no words means true.

    Raises:
        ValueError: as `convert`.
    """
    members = {get_origin(member) or member: member for member in _members(kind)}
    if not words and bool in members:
        return True
    if list in members and (len(words) > 1 or str not in members):
        item = get_args(members[list])[0]
        return [convert_text([word], item) for word in words]
    if len(words) != 1:
        raise ValueError(f"expected {describe(kind)}")
    word = words[0]
    with contextlib.suppress(ValueError):  # JSON (null, true, 3, 1e-3, {...}) goes before text
        value = json.loads(word.lower() if word.lower() in ("true", "false", "null") else word)
        if not isinstance(value, str):
            return convert(value, kind)
    return convert(word, kind)
