"""Texts that every Python brings along: its documentation, the prose of that, its code."""

import ast
import contextlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from hfscale import __version__
from hfscale.data.caches import generated
from hfscale.process import InputError

EMBEDDED = ("embedded:python-docs", "embedded:python-prose", "embedded:python-code")
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
# A paragraph of prose: a sentence or more, and few words that are names, numbers or signs.
SENTENCES = re.compile(r"""[A-Z"'`].{58,}[.!?:]['")]*""")
PLAIN_WORD = re.compile(r"""["'(*]*[A-Za-z][a-z]*(?:['-][a-z]+)*["')*.,;:!?]*""")
PLAIN_SHARE = 0.75
# They hold how this Python was built, and differ from machine to machine.
BUILD_SETTINGS = ("config-", "_sysconfigdata")


def load_embedded(name: str) -> Dataset:
    """One row per module of the standard library: its code, or its docstrings, after the topics of
    the language reference; of both, as `python-prose`, only the paragraphs that are prose, each in
    one line.

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
    documents = _documentation()
    if name == "embedded:python-prose":
        documents = filter(None, map(prose, documents))
    for text in documents:
        yield {"text": text}


def prose(text: str) -> str:
    """The paragraphs of whole sentences, each in one line, without lists, tables and code."""
    paragraphs = [block.strip("\n").split("\n") for block in re.split(r"\n\s*\n", text)]
    flush = [lines for lines in paragraphs if len({_indentation(line) for line in lines}) == 1]
    unwrapped = [" ".join(" ".join(lines).split()) for lines in flush]
    return "\n\n".join(filter(_is_prose, unwrapped))


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words)
    is_plain = plain >= PLAIN_SHARE * len(words)
    return is_plain and SENTENCES.fullmatch(paragraph) is not None


def _documentation() -> Iterator[str]:
    """The topics of the language reference, then the docstrings of each module."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield topics[topic]
    for code in _library_code():
        yield _docstrings(code)


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
