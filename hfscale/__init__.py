"""Thin glue and a recipe collection for GPT-2-style language models on the Hugging Face stack."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The recipes and building blocks, imported when they are asked for; see docs/python.md."""
    return importlib.import_module("hfscale.api").find_public(name)


def __dir__() -> list[str]:
    return ["__version__", *importlib.import_module("hfscale.api").public_names()]
