"""What clients get: the objects of the OpenAI API, whole or piece by piece."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfscale.generation.texts import BROKEN
from hfscale.serving.draws import Chance
from hfscale.serving.engine import Piece


class Answer:
    """The form of the answers to one request.

    Args:
        model: by its name.
        is_chat: whether turns were asked for, or continued texts.
        has_chances: whether probabilities of tokens were asked for.
        tokenizer: the model's.
    """

    def __init__(
        self, model: str, tokenizer: PreTrainedTokenizerBase, *, is_chat: bool, has_chances: bool
    ):
        self.tokenizer = tokenizer
        self.is_chat = is_chat
        self.has_chances = has_chances
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: Sequence[Sequence[Piece]], prompt_tokens: int) -> dict[str, Any]:
        """The answer at once, from the pieces of each text."""
        choices = []
        for index, of_text in enumerate(pieces):
            text = "".join(piece.text for piece in of_text)
            content: dict[str, Any] = {"text": text}
            if self.is_chat:
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choice = {
                "index": index,
                **content,
                "logprobs": self._logprobs([one for piece in of_text for one in piece.chances]),
                "finish_reason": of_text[-1].finish_reason,
            }
            choices.append(choice)
        completion_tokens = sum(of_text[-1].num_tokens for of_text in pieces)
        return {
            **self._head,
            "object": "chat.completion" if self.is_chat else "text_completion",
            "choices": choices,
            "usage": usage(prompt_tokens, completion_tokens),
        }

    def first_chunks(self, num_texts: int) -> list[str]:
        """What a stream of turns begins with: who speaks."""
        if not self.is_chat:
            return []
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, {"delta": delta}, None, None) for index in range(num_texts)]

    def chunk(self, index: int, piece: Piece) -> str | None:
        """A piece of one text as an event of a stream; None: it adds nothing yet."""
        if not (piece.text or piece.chances or piece.finish_reason):
            return None
        content: dict[str, Any] = {"text": piece.text}
        if self.is_chat:
            content = {"delta": {"content": piece.text} if piece.text else {}}
        return self._chunk(index, content, self._logprobs(piece.chances), piece.finish_reason)

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> str:
        """The numbers of tokens, after all texts."""
        numbers = usage(prompt_tokens, completion_tokens)
        return event({**self._head, "object": self._chunk_object, "choices": [], "usage": numbers})

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(
        self, index: int, content: dict[str, Any], logprobs: Any, finish_reason: str | None
    ) -> str:
        choice = {
            "index": index,
            **content,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return event({**self._head, "object": self._chunk_object, "choices": [choice]})

    def _logprobs(self, chances: Sequence[Chance]) -> dict[str, Any] | None:
        if not self.has_chances:
            return None
        if self.is_chat:
            content = []
            for chance in chances:
                top = [self._token(*one) for one in chance.top]
                content.append({**self._token(chance.token, chance.logprob), "top_logprobs": top})
            return {"content": content, "refusal": None}
        return {
            "tokens": [self._name(chance.token) for chance in chances],
            "token_logprobs": [chance.logprob for chance in chances],
            "top_logprobs": [
                {self._name(token): logprob for token, logprob in chance.top} for chance in chances
            ],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        name = self._name(token)
        # A part of a character has bytes that the text of the token does not tell.
        known = None if BROKEN in name else list(name.encode())
        return {"token": name, "logprob": logprob, "bytes": known}

    def _name(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The numbers of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(value: Any) -> str:
    """JSON as an event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


LAST_EVENT = "data: [DONE]\n\n"
