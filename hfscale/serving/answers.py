"""What clients get: the objects of the OpenAI API, whole or piece by piece."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

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
            "top_logprobs": [self._likeliest(chance) for chance in chances],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        name, content = token_text(token, self.tokenizer)
        return {"token": name, "logprob": logprob, "bytes": content and list(content)}

    def _name(self, token: int) -> str:
        return token_text(token, self.tokenizer)[0]

    def _likeliest(self, chance: Chance) -> dict[str, float]:
        """By name; of two tokens of one name the likelier."""
        return {self._name(token): logprob for token, logprob in reversed(chance.top)}


def token_text(token: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, bytes | None]:
    """A token's text and its bytes. Of a part of a character the text names the bytes, as the
    OpenAI API does (bytes:\\xf0\\x9f); None: the tokenizer does not tell them.
    """
    text = str(tokenizer.decode([token]))
    if BROKEN not in text:
        return text, text.encode()
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str) or not all(character in byte_of for character in piece):
        return text, None
    content = bytes(byte_of[character] for character in piece)
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content), content


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
