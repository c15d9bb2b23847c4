"""What a recipe accepts: names, types and defaults, known before anything heavy is imported."""

import ast
import dataclasses
import functools
import importlib.util
import json
import math
import operator
import types
import typing
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin


class Option(NamedTuple):
    """One accepted name's type annotation, default value and help text."""

    type: Any
    default: Any
    help: str


def dataclass_options(cls: type) -> dict[str, Option]:
    """Options of an argument dataclass, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    defaults = {f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory()
                for f in dataclasses.fields(cls)}
    return {f.name: Option(hints[f.name], defaults[f.name], f.metadata.get("help", ""))
            for f in dataclasses.fields(cls)}


def training_options() -> dict[str, Option]:
    """Options of `transformers.TrainingArguments`, read from its source: importing the class costs seconds.

    A test holds the result against the imported class.
    """
    root = Path(importlib.util.find_spec("transformers").submodule_search_locations[0])
    files = [root / f"{name}.py" for name in ("training_args", "trainer_utils", "debug_utils")]
    classes = {node.name: node for path in files for node in ast.parse(path.read_text("utf-8")).body
               if isinstance(node, ast.ClassDef)}
    names = {"Any": Any, "Literal": Literal, "ParallelismConfig": dict}
    names |= {name: choices for name, node in classes.items() if (choices := _enum_choices(node))}
    options = {}
    for node in classes["TrainingArguments"].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            given = {k.arg: _literal(k.value) for k in node.value.keywords}
            annotation = eval(ast.unparse(node.annotation), {}, names)  # the installed library's own source
            options[node.target.id] = Option(_drop_free_text(annotation), given.get("default"),
                                             (given.get("metadata") or {}).get("help", ""))
    return options


def _enum_choices(node: ast.ClassDef) -> Any:
    values = [s.value.value for s in node.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)]
    is_enum = any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in node.bases)
    return Literal[tuple(values)] if is_enum and values else None


def _drop_free_text(annotation: Any) -> Any:
    """`SomeEnum | str` means one of the enum's values: leave only these."""
    members = _members(annotation)
    if str in members and any(get_origin(m) is Literal and isinstance(get_args(m)[0], str) for m in members):
        return functools.reduce(operator.or_, (m for m in members if m is not str))
    return annotation


def _literal(node: ast.AST) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # computed upstream (an f-string, an enum member): only help texts need it
        return None


def _members(annotation: Any) -> tuple:
    is_union = get_origin(annotation) in (typing.Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def describe(annotation: Any) -> str:
    """The type as a person reads it in help and errors: `int or null`, `one of a, b`."""
    words = []
    for member in _members(annotation):
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(member))))
        elif get_origin(member) is list:
            words.append("list of " + describe(get_args(member)[0]))
        else:
            words.append("null" if member is type(None) else (get_origin(member) or member).__name__)
    return " or ".join(words)


def choices(annotation: Any) -> list[str]:
    """The values of its `Literal`."""
    return [str(v) for m in _members(annotation) if get_origin(m) is Literal for v in get_args(m)]


def _accepts(annotation: Any, kind: type) -> bool:
    return any(member is kind or get_origin(member) is kind for member in _members(annotation))


def convert(value: Any, annotation: Any) -> Any:
    """`value` as YAML or JSON gave it, checked against the annotation without silent casts.

    Raises:
        ValueError: the value is of another type or not one of the choices.
    """
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin is Literal and any(value == v and type(value) is type(v) for v in arguments):
            return value
        if origin is list and isinstance(value, list):
            return [convert(item, arguments[0]) for item in value]
        if member is float and (number := _number(value)) is not None:
            return number
        if member is Any or type(value) is (origin or member) and member is not float:
            return value
    raise ValueError(f"expected {describe(annotation)}")


def _number(value: Any) -> float | None:
    try:  # text too: YAML reads 1e-3 as text
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return None if math.isnan(number) else number


def convert_text(words: list[str], annotation: Any) -> Any:
    """The words that follow a flag on the command line, as the annotation's type; no words means true.

    Raises:
        ValueError: as `convert`.
    """
    if not words and _accepts(annotation, bool):
        return True
    if _accepts(annotation, list) and (len(words) > 1 or not _accepts(annotation, str)):
        item = next(get_args(m)[0] for m in _members(annotation) if get_origin(m) is list)
        return [convert_text([word], item) for word in words]
    for reading in _readings(words[0]) if len(words) == 1 else ():
        try:
            return convert(reading, annotation)
        except ValueError:
            continue
    raise ValueError(f"expected {describe(annotation)}")


def _readings(word: str) -> list:
    """What a word may stand for: JSON (null, true, 3, 1e-3, {...}) first, then the text itself."""
    try:
        value = json.loads(word.lower() if word.lower() in ("true", "false", "null") else word)
    except ValueError:
        return [word]
    return [word] if isinstance(value, str) else [value, word]
