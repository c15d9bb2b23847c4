"""A recipe's arguments as a JSON Schema, by which editors complete and check its YAML files."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from hfscale.arguments import TaskArguments
from hfscale.config import (
    REFUSED,
    arguments_class,
    kinds_of,
    planned_kinds,
    task_recipes_kinds,
)
from hfscale.options import members_of, split_annotated

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}


def recipe_schema(recipe: Path) -> dict[str, Any]:
    """Of what a config file of this script may hold: names, types, limits, choices, defaults.

    Args:
        recipe: a script with an argument dataclass.
    """
    cls = arguments_class(recipe)
    kinds = kinds_of(cls) | planned_kinds(cls, recipe)
    if issubclass(cls, TaskArguments):
        kinds = task_recipes_kinds(recipe) | kinds  # one file serves both
    own = {item.name: item for item in fields(cls)}
    properties = {
        name: _property(kind, own.get(name)) for name, kind in kinds.items() if name not in REFUSED
    }
    properties["extends"] = _one_or_list({"type": "string"}) | {
        "description": "config files that are read before this one, as seen from its folder"
    }
    return {
        "$schema": DIALECT,
        "title": f"hfscale {recipe.stem}",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _property(kind: Any, item: Field | None) -> dict[str, Any]:
    """What one argument may be, and, of a recipe's own, what it means and its default."""
    schema = _schema_of(kind)
    if item is None:
        return schema
    if text := item.metadata.get("help"):
        schema["description"] = text
    default = item.default if item.default_factory is MISSING else item.default_factory()
    if default is not MISSING:
        schema["default"] = default
    return schema


def _schema_of(kind: Any) -> dict[str, Any]:
    kind, limits = split_annotated(kind)
    choices = [_of_member(member, limits) for member in members_of(kind)]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _of_member(member: Any, limits: Any) -> dict[str, Any]:
    """Of one type of a union, within the limits of all."""
    origin = get_origin(member) or member
    if origin is Literal:
        return {"enum": list(get_args(member))}
    if origin is list:
        return _one_or_list(_schema_of(get_args(member)[0]) | _bounds(limits))
    if origin is dict:
        return {"type": "object"}
    if origin not in TYPES:  # anything
        return {}
    return {"type": TYPES[origin]} | (_bounds(limits) if origin in (int, float) else {})


def _bounds(limits: Any) -> dict[str, Any]:
    names = {"min": "minimum", "max": "maximum"}
    return {names[name]: limits[name] for name in names if name in limits}


def _one_or_list(items: dict[str, Any]) -> dict[str, Any]:
    """A single value is a list of one."""
    return {"anyOf": [items, {"type": "array", "items": items}]}
