"""One thread per model that writes all of its texts, step by step, in one batch."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.generation.texts import end_ids
from hfscale.serving.batches import Batch
from hfscale.serving.draws import Chance, Draws, Sampling, chances, next_tokens
from hfscale.serving.text_stream import TextStream
from hfscale.shown import one_line

PREFILL_TOKENS = 4096  # of prompts that are read at once


class Piece(NamedTuple):
    """What one step adds to a text."""

    text: str
    chances: tuple[Chance, ...] = ()  # of the tokens, where they were asked for
    finish_reason: str | None = None  # stop (EOS or a stop string), length, error; None: it goes on
    error: str = ""  # why it failed
    num_tokens: int = 0  # of the text so far, EOS too


@dataclass(eq=False)
class Text:
    """A text that is asked for: what it continues, how, and who takes its pieces."""

    ids: Sequence[int]
    max_new_tokens: int
    stop_strings: Sequence[str]
    sampling: Sampling
    take: Callable[[Piece], None]
    is_cancelled: bool = field(default=False)  # nobody wants it any more


def hand_out_at_once(pieces: list[tuple[Text, Piece]]) -> None:
    """Give each piece to who takes it."""
    for text, piece in pieces:
        text.take(piece)


class _Going:
    """A text that is being written."""

    def __init__(self, text: Text, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]):
        self.text = text
        self.draws = Draws(text.ids, text.sampling)
        self.ends = ends
        self.stream = TextStream(tokenizer, text.ids[-1], text.stop_strings)
        self.num_tokens = 0
        self.is_done = False

    def add(self, token: int, chance: Chance | None) -> Piece:
        """What a token adds."""
        self.num_tokens += 1
        finish_reason = None
        if token in self.ends:
            finish_reason = "stop"
            new_text = self.stream.end()
        else:
            new_text = self.stream.add(token)
            if self.num_tokens >= self.text.max_new_tokens and not self.stream.stopped:
                finish_reason = "length"
                new_text += self.stream.end()
        if self.stream.stopped:
            finish_reason = "stop"
        self.is_done = finish_reason is not None
        of_token = () if chance is None else (chance,)
        return Piece(new_text, of_token, finish_reason, num_tokens=self.num_tokens)


class Engine:
    """Writes the texts of one model, `batch_size` at a time; others wait in the order they came."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: Batch,
        *,
        batch_size: int,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.batch = batch
        self.batch_size = batch_size
        self.hand_out: Callable[[list[tuple[Text, Piece]]], None] = hand_out_at_once
        self.ends = end_ids(model, tokenizer)
        self._waiting: deque[Text] = deque()
        self._going: list[_Going] = []
        self._last: list[int] = []  # token of each of them
        self._changed = threading.Condition()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="hfscale-engine")

    def start(self, hand_out: Callable[[list[tuple[Text, Piece]]], None]) -> None:
        """Begin to write. `hand_out` gets the pieces of each step with their texts, in the engine's
        thread: a server brings them to its own, once for each step.
        """
        self.hand_out = hand_out
        self._thread.start()

    def stop(self) -> None:
        """End after the step at hand; what goes on or waits is told an error."""
        with self._changed:
            self._is_ending = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def num_going(self) -> int:
        """Texts that are being written."""
        return len(self._going)

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a place, and are still wanted."""
        with self._changed:
            return sum(not text.is_cancelled for text in self._waiting)

    def ask(self, texts: Sequence[Text]) -> None:
        """Let these be written as soon as there is room."""
        with self._changed:
            self._waiting.extend(texts)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._going or self._is_ending):
                    self._changed.wait()
                if self._is_ending:
                    break
                joining = self._next_texts()
            try:
                self._drop([going.text.is_cancelled for going in self._going])
                self._begin(joining)
                self._go_on()
            except Exception as error:  # whatever the model's own code raises, or no memory
                failed = [going.text for going in self._going]
                self._drop([True] * len(failed))
                self._fail(failed, _reason(error))
        with self._changed:
            left = [*(going.text for going in self._going), *self._waiting]
            self._going = []
            self._waiting.clear()
        self._fail(left, "the server is stopping")

    def _next_texts(self) -> list[Text]:
        """Those that join now, as many as there is room for."""
        texts: list[Text] = []
        longest = 0
        while self._waiting and len(self._going) + len(texts) < self.batch_size:
            text = self._waiting[0]
            longest = max(longest, len(text.ids))
            if texts and longest * (len(texts) + 1) > PREFILL_TOKENS:
                break
            self._waiting.popleft()
            if not text.is_cancelled:
                texts.append(text)
        return texts

    def _begin(self, texts: list[Text]) -> None:
        if not texts:
            return
        try:
            logits = self.batch.join([text.ids for text in texts])
        except Exception as error:  # those that go on already are not concerned
            self._fail(texts, _reason(error))
            return
        new = [_Going(text, self.tokenizer, self.ends) for text in texts]
        self._going += new
        self._last += [0] * len(new)
        self._take_tokens(logits, new)

    def _go_on(self) -> None:
        if self._going:
            self._take_tokens(self.batch.step(self._last), self._going)

    def _take_tokens(self, logits: torch.Tensor, goings: list[_Going]) -> None:
        """Draw the next token of the texts, the last ones in the batch, and hand out what it
        adds.
        """
        is_broken = logits.sum(-1).isnan().tolist()  # faster than to look at each
        logits = logits.nan_to_num() if any(is_broken) else logits
        draws = [going.draws for going in goings]
        tokens = next_tokens(logits, draws)
        of_tokens = chances(logits, tokens, draws)
        pieces = []
        for going, token, chance, broken in zip(goings, tokens, of_tokens, is_broken, strict=True):
            if broken:
                going.is_done = True
                piece = Piece("", finish_reason="error", error="the model gives NaN")
            else:
                piece = going.add(token, chance)
            pieces.append((going.text, piece))
        self._last[len(self._last) - len(tokens) :] = tokens
        self._drop([going.is_done for going in self._going])
        self.hand_out(pieces)

    def _drop(self, is_out: Sequence[bool]) -> None:
        """Take texts out of the batch."""
        if not any(is_out):
            return
        places = [place for place, out in enumerate(is_out) if not out]
        self.batch.keep(places)
        self._going = [self._going[place] for place in places]
        self._last = [self._last[place] for place in places]

    def _fail(self, texts: Sequence[Text], reason: str) -> None:
        piece = Piece("", finish_reason="error", error=reason)
        self.hand_out([(text, piece) for text in texts])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error))[:200]}"
