"""Text of files, models and users, as it is shown: on a terminal and in Markdown it is text and
nothing else.
"""

import json
import re
import sys
from collections.abc import Container, Mapping
from typing import Any, TextIO

# What a terminal takes for a command, not for text: titles, links, colours, the cursor's moves.
ESCAPE_SEQUENCES = re.compile(
    r"\x1b\][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[PX^_][^\x1b]*\x1b\\"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
# All but tabs and line ends; and what turns the order of the text around it.
CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
# What Markdown, as the Hub and GitHub read it, takes for more than text anywhere in a line.
MARKDOWN = re.compile(
    r"[\\`*\[\]<>&|~#]|!(?=\[)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|@", re.IGNORECASE
)
# Those of them that stay what they are behind a backslash.
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}


def printable(text: str) -> str:
    """The text without escape sequences of terminals and without control characters; tabs and line
    ends stay.
    """
    return CONTROL_CHARACTERS.sub("", ESCAPE_SEQUENCES.sub("", text))


def printable_values(value: Any) -> Any:
    """Lists and mappings with each text in them as `printable`, names too."""
    if isinstance(value, dict):
        return {printable_values(key): printable_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value


def one_line(text: str) -> str:
    """The text as `printable`, with each run of white space as one blank."""
    return " ".join(printable(text).split())


def show_text(
    *values: Any, file: TextIO | None = None, end: str = "\n", flush: bool = False
) -> None:
    """Print values that hold text of others, each as `printable`."""
    texts = [printable(str(value)) for value in values]
    print(*texts, file=file or sys.stdout, end=end, flush=flush)


def in_markdown(text: str) -> str:
    """The text for a line or a table's cell of Markdown: no HTML, link, picture, mark or column
    comes of it.
    """

    def escaped(match: re.Match) -> str:
        return ENTITIES.get(match[0], f"\\{match[0]}")

    return MARKDOWN.sub(escaped, one_line(text))


def code_span(text: str) -> str:
    """The text as code in a line or a table's cell of Markdown; nothing for no text."""
    line = one_line(text)
    if not line:
        return ""
    fence = "`" * (1 + _longest_run_of_backticks(line))
    room = " " if line.startswith("`") or line.endswith("`") else ""
    line = line.replace("|", "\\|")
    return f"{fence}{room}{line}{room}{fence}"


def code_block(text: str, language: str = "text") -> str:
    """The text as a block of code of Markdown, its lines as they are."""
    shown = printable(text)
    fence = "`" * max(3, 1 + _longest_run_of_backticks(shown))
    return f"{fence}{language}\n{shown}\n{fence}"


class MarkdownText(str):
    """Text that is Markdown already."""


def markdown_text(value: Any) -> Any:
    """What a template of Markdown fills in (its `finalize`): text becomes `in_markdown`."""
    if isinstance(value, MarkdownText) or not isinstance(value, str):
        return value
    return in_markdown(value)


def python_text(text: str) -> str:
    """The text as a string of Python, for a block of code."""
    return json.dumps(printable(text), ensure_ascii=False)


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


MARKDOWN_FILTERS = {
    "code_span": lambda text: MarkdownText(code_span(text)),
    "code_block": lambda text: MarkdownText(code_block(text)),
    "python": lambda text: MarkdownText(python_text(text)),
    "repr": lambda value: MarkdownText(repr(value)),
    "code": MarkdownText,  # of our own, not of others
}


def describe_differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    ignored: Container[str] = (),
    wording: str = "{name} was {before}, is {now}",
) -> str:
    """What two sets of settings do not agree in, as messages name it: `seed was 1, is 2; ...`.

    Args:
        before: the settings of the run that is there.
        now: those of the run that is asked for. A name that only one of the two has is None in the
            other.
        ignored: names that may differ.
        wording: one difference, with the places {name}, {before} and {now}.

    Returns:
        An empty text where nothing differs.
    """
    differences = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new and name not in ignored:
            differences.append(wording.format(name=name, before=old, now=new))
    return "; ".join(differences)
