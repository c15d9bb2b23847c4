"""Text as it comes, token by token: what is sure is given out, nothing of a stop string is."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from hfscale.generation.texts import BROKEN


class TextStream:
    """The text of tokens that follow the token `before`, piece by piece. The pieces together are
    what `decode_continuation` gives for all tokens at once, up to the first stop string.

    Only the last tokens are decoded at each step, so a long text costs no more per token than a
    short one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, before: int, stop_strings: Sequence[str] = ()
    ):
        self.tokenizer = tokenizer
        self.stop_strings = stop_strings
        self.stopped = False  # a stop string came
        self._is_plain = tokenizer.is_fast and not tokenizer.clean_up_tokenization_spaces
        self._ids = [before]  # the last ones; those before them are given out
        self._known = 1  # how many of them are given out, or held back below
        self._held = ""  # what may become part of a stop string

    def add(self, token: int) -> str:
        """The text that is sure now."""
        self._ids.append(token)
        return self._sure(self._new_text(is_last=False), is_last=False)

    def end(self) -> str:
        """The text that was held back."""
        return self._sure(self._new_text(is_last=True), is_last=True)

    def _new_text(self, *, is_last: bool) -> str:
        """What the tokens since the last call add, once their last character is whole."""
        known = self._decode(self._ids[: self._known])
        whole = self._decode(self._ids)
        if whole.endswith(BROKEN) and not is_last:
            return ""
        if whole.startswith(known):
            text = whole[len(known) :]
        else:
            text = self._decode(self._ids[self._known :])
        if text:  # special tokens alone tell nothing about the space before the next word
            self._ids = self._ids[self._known :]
        self._known = len(self._ids)
        return text

    def _decode(self, ids: list[int]) -> str:
        if self._is_plain:  # a tenth of the time
            return self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # a list only for lists of lists
        return text

    def _sure(self, text: str, *, is_last: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        places = [self._held.find(stop) for stop in self.stop_strings]
        first = min((place for place in places if place >= 0), default=None)
        if first is not None:
            self.stopped = True
            return self._held[:first]
        size = 0 if is_last else self._size_of_beginning(self._held)
        sure = self._held[: len(self._held) - size]
        self._held = self._held[len(sure) :]
        return sure

    def _size_of_beginning(self, text: str) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = max(map(len, self.stop_strings), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stop_strings):
                return size
        return 0
