"""Conversations in a model's chat template, written in one process of its own for all requests."""

import contextlib
import os
import pickle
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfscale.generation.prompts import CHAT_TEMPLATE
from hfscale.limited import SHOWN_CHARACTERS, each_limited
from hfscale.process import InputError
from hfscale.shown import one_line

MOST_FILES = 4096  # that are looked at in the copy


class TurnsWriter:
    """Writes turns as `write_turns` does, with the same limits on time and memory. That copies the
    process for each conversation, which takes a tenth of a second of a server; this keeps its copy,
    until a conversation goes beyond a limit in it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._answers: Iterator[Any] | None = None  # of the copy
        self._turns: Any = None  # the pipe to it

    def begin(self) -> None:
        """Make the copy now, and not with the first conversation."""
        with self._lock:
            self._copy()

    def write(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation, up to where the next answer begins.

        Raises InputError: the template refuses it, as some refuse a system's turn, or is broken, or
        goes beyond the limits.
        """
        with self._lock:
            if self._answers is None:
                self._copy()
            text, refusal = self._ask(list(messages))
        if text is None:
            raise InputError(f"{CHAT_TEMPLATE}: {refusal}")
        return text

    def end(self) -> None:
        """Let the copy end."""
        with self._lock:
            self._forget()

    def _copy(self) -> None:
        read_end, write_end = os.pipe()
        turns = _turns_from(read_end, write_end)
        self._answers = each_limited(self._answer, turns, place=CHAT_TEMPLATE)
        self._turns = os.fdopen(write_end, "wb")
        self._ask([])  # the copy is made when something is asked for, which has to be short
        os.close(read_end)

    def _ask(self, messages: list[dict[str, str]]) -> tuple[str | None, str]:
        assert self._answers is not None
        try:
            pickle.dump(messages, self._turns)
            self._turns.flush()
            return next(self._answers)
        except (InputError, BrokenPipeError, StopIteration) as error:
            self._forget()
            reason = str(error) or "its process ended"
            raise InputError(reason) from None

    def _answer(self, messages: list[dict[str, str]]) -> tuple[str | None, str]:
        """In the copy: the text, or why there is none."""
        if not messages:
            return "", ""
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except MemoryError:
            raise
        except Exception as error:  # whatever a template raises
            return None, f"{type(error).__name__}: {one_line(str(error))[:SHOWN_CHARACTERS]}"
        return str(text), ""

    def _forget(self) -> None:
        if self._answers is not None:
            with contextlib.suppress(BrokenPipeError):
                self._turns.close()
        self._answers = None


def _turns_from(read_end: int, write_end: int) -> Iterator[Any]:
    """The conversations that come through a pipe: in the copy, which holds nobody's connection."""
    os.close(write_end)
    for number in range(3, MOST_FILES):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.close(number)
    with os.fdopen(read_end, "rb") as pipe, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(pipe)
