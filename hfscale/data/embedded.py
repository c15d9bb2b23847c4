"""Texts that every Python brings along: `embedded:python-docs` and `embedded:python-code`."""

import ast
import contextlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from hfscale import __version__
from hfscale.data.caches import generated
from hfscale.process import InputError

EMBEDDED = ("embedded:python-docs", "embedded:python-code")
TEXT_FEATURES = Features({"text": Value("string")})
# Folders of the standard library that are no library: others' packages, tests, and code written by
# a program.
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "__pycache__",
}
# They hold how this Python was built, and differ from machine to machine.
BUILD_SETTINGS = ("config-", "_sysconfigdata")


def load_embedded(name: str) -> Dataset:
    """One row per module of the standard library: its code, or its docstrings, after the topics of
    the language reference.

    Raises InputError: no such text.
    """
    # The text is that of one Python, read by one version of this module: both key the cache.
    arguments = {"name": name, "python": sys.version, "hfscale": __version__}
    return generated(_read_embedded, arguments, TEXT_FEATURES)


def _read_embedded(name: str, python: str, hfscale: str) -> Iterator[dict[str, Any]]:
    if name not in EMBEDDED:
        raise InputError(f"source {name}: unknown embedded text; there are {', '.join(EMBEDDED)}")
    if name == "embedded:python-code":
        for code in _library_code():
            yield {"text": code}
        return
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield {"text": topics[topic]}
    for code in _library_code():
        yield {"text": _docstrings(code)}


def _library_code() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts
        if not SKIPPED_FOLDERS.isdisjoint(folders) or folders[0].startswith(BUILD_SETTINGS):
            continue
        with contextlib.suppress(UnicodeDecodeError):  # a few files declare another encoding
            yield path.read_text("utf-8")


def _docstrings(code: str) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    docstrings = map(ast.get_docstring, nodes)
    return "\n\n".join(text for text in docstrings if text)
