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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

# Accepted upstream, but without effect in a script of ours or unsafe in a file: refused with the way that works.
REFUSED = {
    "hub_token": "set HF_TOKEN in the environment, so that no file holds it",
    "resume_from_checkpoint": "use --resume auto",
    "do_train": "it has no effect: a recipe always trains",
    "do_eval": "it has no effect: set eval_strategy",
    "do_predict": "it has no effect: use the score recipe",
    "use_liger_kernel": "Liger has no GPT-2 kernels and transformers ignores it silently",
    "deepspeed": "use an accelerate config (--accelerate zero2)",
    "fsdp": "use an accelerate config (--accelerate fsdp2)",
}


@dataclass(frozen=True)
class Option:
    """One accepted name: its type annotation, default value and help text."""

    name: str
    type: Any
    default: Any
    help: str = ""


def dataclass_options(cls: type) -> dict[str, Option]:
    """Options of an argument dataclass, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    options = {}
    for f in dataclasses.fields(cls):
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
        options[f.name] = Option(f.name, hints[f.name], default, f.metadata.get("help", ""))
    return options


def training_options() -> dict[str, Option]:
    """Options of `transformers.TrainingArguments`, read from its source.

    Importing the class costs seconds (it imports torch); reading the file costs a few hundredths, which lets a typo
    be named at once and `--help` answer quickly. A test holds the result against the imported class.
    """
    root = Path(importlib.util.find_spec("transformers").submodule_search_locations[0])
    trees = [ast.parse((root / f"{name}.py").read_text("utf-8"))
             for name in ("training_args", "trainer_utils", "debug_utils")]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    names = {"Any": Any, "Literal": Literal, "ParallelismConfig": dict}
    names |= {name: choices for name, node in classes.items() if (choices := _enum_choices(node))}
    options = {}
    for node in classes["TrainingArguments"].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            keywords = {k.arg: k.value for k in node.value.keywords}
            annotation = eval(ast.unparse(node.annotation), {}, names)  # upstream's own source, installed by the user
            metadata = _literal(keywords.get("metadata"), {})
            options[node.target.id] = Option(node.target.id, _drop_free_text(annotation),
                                             _literal(keywords.get("default"), None), metadata.get("help", ""))
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


def _literal(node: ast.AST | None, otherwise: Any) -> Any:
    try:
        return otherwise if node is None else ast.literal_eval(node)
    except ValueError:  # computed upstream (an f-string, an enum member): only the help text would show it
        return otherwise


def _members(annotation: Any) -> tuple:
    is_union = get_origin(annotation) in (typing.Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def describe(annotation: Any) -> str:
    """The type as a person reads it in help and errors: `int or null`, `one of a, b`."""
    words = []
    for member in _members(annotation):
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(str(v) for v in get_args(member)))
        elif get_origin(member) is list:
            words.append("list of " + describe(get_args(member)[0]))
        elif get_origin(member) is dict or member is dict:
            words.append("mapping")
        else:
            words.append("null" if member is type(None) else member.__name__)
    return " or ".join(words)


def accepts(annotation: Any, kind: type) -> bool:
    """Whether `kind` (list, bool, ...) is one of the annotation's alternatives."""
    return any(member is kind or get_origin(member) is kind for member in _members(annotation))


def convert(value: Any, annotation: Any) -> Any:
    """`value` as YAML or JSON gave it, checked against the annotation without silent casts.

    Raises:
        ValueError: the value is of another type or not one of the choices.
    """
    for member in _members(annotation):
        ok, result = _match(value, member)
        if ok:
            return result
    raise ValueError(f"expected {describe(annotation)}")


def _match(value: Any, member: Any) -> tuple[bool, Any]:
    origin = get_origin(member)
    if origin is Literal:
        return any(value == v and type(value) is type(v) for v in get_args(member)), value
    if origin is list:
        if not isinstance(value, list):
            return False, None
        pairs = [_match(item, get_args(member)[0]) for item in value]
        return all(ok for ok, _ in pairs), [item for _, item in pairs]
    if member is float:
        return _match_float(value)
    if member is Any:
        return True, value
    return type(value) is (origin or member), value


def _match_float(value: Any) -> tuple[bool, float | None]:
    if isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            value = float(value)
        except ValueError:
            return False, None
    ok = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return ok, float(value) if ok else None


def convert_text(words: list[str], annotation: Any) -> Any:
    """The words that follow a flag on the command line, as the annotation's type; no words means true.

    Raises:
        ValueError: as `convert`.
    """
    if not words and accepts(annotation, bool):
        return True
    if accepts(annotation, list) and (len(words) > 1 or not accepts(annotation, str)):
        item = next(get_args(m)[0] for m in _members(annotation) if get_origin(m) is list)
        return [convert_text([word], item) for word in words]
    if len(words) != 1:
        raise ValueError(f"expected {describe(annotation)}")
    for reading in _readings(words[0]):
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
