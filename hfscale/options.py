"""What types a recipe's arguments have, known before anything heavy is imported, and values checked
against them.
"""

import ast
import contextlib
import difflib
import importlib.util
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from hfscale.strict_yaml import RefusedError, check_numbers, load_json, parse_yaml

PAIR = re.compile(r"[A-Za-z_]\w*=")
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@cache
def training_types() -> dict[str, Any]:
    """Types of the arguments of `transformers.TrainingArguments` by name, read from its source:
    importing the class costs seconds. An enum becomes the `Literal` of its values.

    A test holds the result against the imported class.
    """
    classes = _upstream_classes()
    enums = {name: choices for name, node in classes.items() if (choices := _enum_choices(node))}
    names = {"Any": Any, "Literal": Literal, "ParallelismConfig": dict, **enums}
    kinds = {}
    for name, node in _training_fields(classes):
        annotation = ast.unparse(node.annotation)
        # `SomeEnum | str` means one of the enum's values.
        kind = enums.get(annotation.removesuffix(" | str"))
        if kind is None:  # the text is the installed library's own source
            kind = eval(annotation, {}, names)
        kinds[name] = kind
    return kinds


@cache
def training_defaults() -> dict[str, Any]:
    """Defaults of the arguments of `transformers.TrainingArguments` by name, read as in
    `training_types`; those that its source only computes are left out.
    """
    defaults = {}
    for name, node in _training_fields(_upstream_classes()):
        assert isinstance(node.value, ast.Call)
        for keyword in node.value.keywords:
            if keyword.arg == "default":
                with contextlib.suppress(ValueError):  # computed
                    defaults[name] = ast.literal_eval(keyword.value)
    return defaults


def _upstream_classes() -> dict[str, ast.ClassDef]:
    """The source of upstream's classes of training arguments by name."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations, "transformers is a dependency"
    root = Path(spec.submodule_search_locations[0])
    files = [root / f"{name}.py" for name in ("training_args", "trainer_utils", "debug_utils")]
    return {
        node.name: node
        for path in files
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


def _training_fields(classes: Mapping[str, ast.ClassDef]) -> Iterator[tuple[str, ast.AnnAssign]]:
    """The arguments: each is `name: type = field(...)`."""
    for node in classes["TrainingArguments"].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            yield ast.unparse(node.target), node


def _enum_choices(node: ast.ClassDef) -> Any:
    """The `Literal` of an enum's values; None: the class is none."""
    values = [
        statement.value.value
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
    ]
    is_enum = any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in node.bases)
    return Literal[tuple(values)] if is_enum and values else None


def members_of(kind: Any) -> tuple:
    """The types of a union, or the single type."""
    kind, _ = split_annotated(kind)
    if get_origin(kind) in (typing.Union, types.UnionType):
        return get_args(kind)
    return (kind,)


def split_annotated(kind: Any) -> tuple[Any, Mapping[str, Any]]:
    """A type and its limits (see `check_limits`), which `Annotated[type, limits]` holds."""
    if get_origin(kind) is Annotated:
        return kind.__origin__, kind.__metadata__[0]
    return kind, {}


def describe(kind: Any) -> str:
    """The type as a person reads it in help and errors: `int or null`, `one of a, b`."""
    words = []
    for member in members_of(kind):
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(member))))
        elif get_origin(member) is list:
            words.append("list of " + describe(get_args(member)[0]))
        elif (get_origin(member) or member) is dict:
            words.append("{name: value, ...}")
        else:
            words.append(
                "null" if member is type(None) else (get_origin(member) or member).__name__
            )
    return " or ".join(words)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message that names what is known and nearest to `word`, or nothing if that is
    far off.
    """
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def convert(value: Any, kind: Any) -> Any:
    """`value` as YAML or JSON gave it, checked against the type without silent casts. Where a list
    is expected and no single value, a single value is a list of one.

    Raises:
        ValueError: the value is of another type, not one of the choices, or beyond the type's
            limits.
    """
    kind, limits = split_annotated(kind)
    converted = _convert(value, kind)
    check_limits(converted, limits)
    return converted


def _convert(value: Any, kind: Any) -> Any:
    choices: list[str] = []
    for member in members_of(kind):
        origin = get_origin(member)
        arguments = get_args(member)
        if origin is Literal:
            choices += map(str, arguments)
            if any(value == choice and type(value) is type(choice) for choice in arguments):
                return value
        elif origin is list and isinstance(value, list):
            return [convert(item, arguments[0]) for item in value]
        elif member is float and type(value) in (int, float, str):
            # Text that is no number (YAML reads 1e-3 as text), or a number beyond all of them.
            with contextlib.suppress(ValueError, OverflowError):
                if not math.isnan(number := float(value)):
                    return number
        elif member is Any or type(value) is (origin or member):
            if isinstance(value, str) and not is_utf8(value):
                raise ValueError("which is not UTF-8; write it in UTF-8")
            check_numbers(value if isinstance(value, dict | list) else None)
            return value
    item = _item_kind(kind)
    if item is not None and not isinstance(value, list | dict | None):
        with contextlib.suppress(ValueError):
            return [convert(value, item)]
        choices += choices_of(item)
    raise ValueError(f"expected {describe(kind)}{did_you_mean(str(value), choices)}")


def _item_kind(kind: Any) -> Any:
    """The type of the items where `kind` can be a list; else None."""
    lists = [member for member in members_of(kind) if get_origin(member) is list]
    return get_args(lists[0])[0] if lists else None


def choices_of(kind: Any) -> list[str]:
    """What may stand for a type that lists its values."""
    literals = [member for member in members_of(kind) if get_origin(member) is Literal]
    return [str(choice) for member in literals for choice in get_args(member)]


def read_mapping(text: str) -> dict[str, Any] | None:
    """The names and values written in JSON or YAML, such as `{f1: {squad_version: 1}}`; None: it is
    something else.

    Raises:
        RefusedError: it could be read, but is too deep, too large, names something twice, or holds
            a number that is not finite.
    """
    import yaml

    with contextlib.suppress(json.JSONDecodeError):
        value = load_json(text)
        return value if isinstance(value, dict) else None
    try:
        loader, node = parse_yaml(text)
        value = construct_value(loader, node) if isinstance(node, yaml.MappingNode) else None
    except RefusedError:
        raise
    except (yaml.YAMLError, ValueError):
        return None
    check_numbers(value)
    return value


def _read_words(words: list[str]) -> dict[str, Any] | None:
    """The names and values written as `{f1: {squad_version: 1}}`, or as `num_experts=16 ...`, each
    value as in YAML; None: in neither way. Raises ValueError as `read_mapping`, or for a name that
    is given twice.
    """
    if not all(PAIR.match(word) for word in words):
        return read_mapping(" ".join(words))  # a shell cuts at spaces what was not quoted
    pairs: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        value = read_mapping(f"{name}: {text}")
        if value is None:
            raise ValueError(f"the value of {name} is not YAML; quote it")
        if name in pairs:
            raise ValueError(f"{name} is given twice; give it once")
        pairs |= value
    return pairs


def construct_value(loader: Any, node: Any) -> Any:
    """The value of a node of YAML. Inside `{name: value}`, whose values no type is known of, 1e-3
    is a number, as it is in JSON; YAML 1.1 takes it for text.
    """
    import yaml

    if isinstance(node, yaml.MappingNode):
        for part in _scalar_nodes(node):
            if part.style is None and EXPONENT.fullmatch(part.value):  # without quotes
                part.tag = "tag:yaml.org,2002:float"
    return loader.construct_object(node, deep=True)


def _scalar_nodes(node: Any) -> Iterator[Any]:
    """The values in a mapping or list of YAML, at any depth."""
    if isinstance(node.value, str):
        yield node
        return
    for part in node.value:
        yield from _scalar_nodes(part[1] if isinstance(part, tuple) else part)


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8: bytes of another encoding on the command line
    cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_limits(value: Any, limits: Mapping[str, Any]) -> None:
    """Raise ValueError unless a number, or each of a list, is finite and lies from `limits["min"]`
    to `limits["max"]`; both may be missing.
    """
    least = limits.get("min", -math.inf)
    most = limits.get("max", math.inf)
    values = value if isinstance(value, list) else [value]
    numbers = [number for number in values if isinstance(number, int | float)]
    if all(least <= number <= most for number in numbers):
        if math.inf in numbers or -math.inf in numbers:
            raise ValueError("expected a finite number")
        return
    if most == math.inf:
        raise ValueError(f"expected at least {least}")
    raise ValueError(f"expected {least} to {most}")


def convert_text(words: list[str], kind: Any) -> Any:
    """The words that follow a flag on the command line, as a value of the type; no words means
    true; a list may be written as JSON, an empty one as `[]`; where null is a value, `null` is it.

    Raises:
        ValueError: as `convert`.
    """
    kind, limits = split_annotated(kind)
    is_null = type(None) in members_of(kind) and [word.lower() for word in words] == ["null"]
    converted = None if is_null else _convert_text(words, kind)
    check_limits(converted, limits)
    return converted


def _convert_text(words: list[str], kind: Any) -> Any:
    members = {get_origin(member) or member: member for member in members_of(kind)}
    if not words and bool in members:
        return True
    if dict in members and words:
        mapping = _read_words(words)
        if mapping is not None:
            return mapping
    if list in members and len(words) == 1 and words[0].startswith("["):
        with contextlib.suppress(json.JSONDecodeError):  # `[PAD]` is a word
            return _convert(load_json(words[0]), kind)
    if list in members and words and (len(words) > 1 or str not in members):
        item = get_args(members[list])[0]
        return [convert_text([word], item) for word in words]
    if len(words) != 1:
        raise ValueError(f"expected {describe(kind)}")
    word = words[0]
    with contextlib.suppress(ValueError):  # JSON (null, true, 3, 1e-3, {...}) goes before text
        value = load_json(word.lower() if word.lower() in ("true", "false", "null") else word)
        if not isinstance(value, str):
            return _convert(value, kind)
    return _convert(word, kind)
