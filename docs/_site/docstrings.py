"""Docstrings as the site shows them: commands are set as such, and signs stand for themselves."""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

COMMAND = re.compile(r" *(hfscale|python|sbatch) ")
MARKUP = re.compile(r"[*|]")


def set_lines(
    app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Change a docstring's lines in place."""
    shown: list[str] = []
    is_block = False
    for line in lines:
        goes_on = is_block and line.startswith(" ")
        is_command = goes_on or bool(COMMAND.match(line))
        if is_command and not is_block:
            shown += ["", ".. code-block:: bash", ""]
        if is_block and not is_command:
            shown.append("")
        shown.append(f"   {line}" if is_command else without_markup(line))
        is_block = is_command
    lines[:] = [*shown, ""]


def set_property(
    app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """A property's text as it stands: napoleon takes what is before its first colon for a type."""
    if kind == "property":
        lines[:] = [*map(without_markup, (inspect.getdoc(thing) or "").splitlines()), ""]


def without_markup(line: str) -> str:
    """Stars and bars mean nothing in a docstring, but between `...` all is as it stands."""
    parts = line.split("`")
    parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", set_lines, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", set_property, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
