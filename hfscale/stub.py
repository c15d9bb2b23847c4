"""The stub file from which editors and type checkers know the names of `hfscale`:
`python -m hfscale.stub` writes it.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hfscale.api import BUILDING_BLOCKS, recipe_module, recipe_names
from hfscale.signatures import KEYWORD, signature_of

HEAD = '''"""Written by `python -m hfscale.stub`; a test compares it with the recipes."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

'''
STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def stub(recipes: Mapping[str, ModuleType], blocks: Mapping[str, str]) -> str:
    """The text of a stub file for `hfscale` itself."""
    lines = [f"from {module} import {name} as {name}" for name, module in sorted(blocks.items())]
    parts = [HEAD + "\n".join([*lines, "", "__version__: str", ""])]
    parts += [_stub_of(name, signature_of(recipe)) for name, recipe in sorted(recipes.items())]
    return "\n".join(parts)


def _stub_of(name: str, signature: inspect.Signature) -> str:
    lines = [f"def {name}("]
    if signature.parameters and next(iter(signature.parameters.values())).kind == KEYWORD:
        lines.append("    *,")
    for parameter in signature.parameters.values():
        default = " = ..." if parameter.kind == KEYWORD else ""
        written = f"{STARS.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}"
        lines.append(f"    {written}{default},")
    return "\n".join([*lines, f") -> {signature.return_annotation}: ...", ""])


def current_stub() -> str:
    """Of the recipes and building blocks as they are."""
    return stub({name: recipe_module(name) for name in recipe_names()}, BUILDING_BLOCKS)


if __name__ == "__main__":
    Path(__file__).with_name("__init__.pyi").write_text(current_stub(), "utf-8")
