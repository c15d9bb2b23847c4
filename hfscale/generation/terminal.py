"""Texts for people at a terminal: a prompt set off from what a model added, lines that they type,
the next command.
"""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hfscale.process import InputError
from hfscale.shown import printable, show_text

NEW_TEXT = "(none: a new text)"


def show_prompt(prompt: str) -> None:
    """Print a prompt so that what follows stands off from it: in bold on a terminal, which the text
    goes on from, else on a line of its own with its name before it.
    """
    if _has_styles():
        from rich.console import Console
        from rich.text import Text

        Console().print(Text(printable(prompt), "bold"), end="", soft_wrap=True)
    else:
        show_text(f"prompt: {prompt.rstrip() or NEW_TEXT}")


def _has_styles() -> bool:
    """Whether standard output is a terminal that shows bold text, and its user takes it
    (NO_COLOR).
    """
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    )


def show_completions(prompt: str, completions: Sequence[str]) -> None:
    """Print what a model made of a prompt, several texts with their number before each, and an
    empty line.
    """
    has_styles = _has_styles()
    for number, text in enumerate(completions, 1):
        head = f"--- {number} of {len(completions)}\n" if len(completions) > 1 else ""
        if has_styles:  # each text goes on from its prompt
            show_text(head, end="")
            show_prompt(prompt)
        else:  # the prompt stands once, above all
            if number == 1:
                show_prompt(prompt)
            show_text(head, end="")
        show_text(text)
    print()


def show_samples(samples: Sequence[str]) -> None:
    """Print texts of a model that was just trained."""
    for text in samples:
        show_text(f"\n--- sample\n{text}")
    print()


def read_lines(question: str) -> Iterator[str]:
    """Lines with text in them from the terminal or a pipe, until it ends, or a line says /exit.

    Raises InputError: a line that is not UTF-8.
    """
    while True:
        try:
            line = input(question)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise InputError(
                f"standard input: not UTF-8 ({error.reason}); convert it first"
            ) from None
        if line.strip() == "/exit":
            return
        if line.strip():
            yield line


@contextlib.contextmanager
def conversation(is_asked: bool) -> Iterator[None]:
    """What people type and models say; Ctrl-C ends it as Ctrl-D does."""
    with contextlib.suppress(KeyboardInterrupt):
        yield
    if is_asked:
        print()  # the shell's prompt gets a line of its own


def ready_command(recipe: str, model: str, prompts: Sequence[str], *words: str) -> str:
    """A command line that asks a model and works as it is printed: `hfscale` by name where the
    shell finds the one that lies beside this Python, else by its path.
    """
    flags = []
    for text in prompts:
        if text.startswith("--"):  # it has to be tied to its flag
            flags.append(f"--prompts={text}")
        else:
            flags += ["--prompts", text]
    return command_line(recipe, "--model", model, *words, *flags)


def command_line(*words: str) -> str:
    """Of `hfscale` with these words, as `ready_command`."""
    return shlex.join([*_hfscale_command(), *words])


def _hfscale_command() -> list[str]:
    script = Path(sys.executable).with_name("hfscale")
    in_path = shutil.which("hfscale")
    if in_path and Path(in_path).absolute() == script:
        return ["hfscale"]
    if script.is_relative_to(Path.cwd()) and script.is_file():
        return [os.path.relpath(script)]
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-m", "hfscale.cli"]
