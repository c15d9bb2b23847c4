"""Text that is given out piece by piece is the text that all tokens make together."""

import random

import pytest

from hfscale.data.tokens import decode_continuation
from hfscale.generation.texts import cut_at_stop
from hfscale.serving.text_stream import TextStream
from tests.tokenizer_kinds import KINDS, make_tokenizer


def streamed(tokenizer, ids: list[int], before: int, stops=()) -> tuple[list[str], bool]:
    stream = TextStream(tokenizer, before, stops)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.end()], stream.stopped


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_the_text(kind):
    tokenizer = make_tokenizer(kind)
    draw = random.Random(kind)
    texts = ["the cat sat – on ünique 🦆 mats.", " two  spaces\n\tand lines\n"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows += [draw.choices(range(len(tokenizer)), k=40) for _ in range(10)]
    for ids in rows:
        before, *rest = ids
        expected = decode_continuation(rest, tokenizer, before)
        pieces, _ = streamed(tokenizer, rest, before)
        assert "".join(pieces) == expected
        if len(expected) > 9:
            for stop in (expected[4:7], expected[-3:], "never there"):
                pieces, stopped = streamed(tokenizer, rest, before, ["not this", stop])
                assert "".join(pieces) == cut_at_stop(expected, [stop])
                assert stopped == (stop in expected)


def test_what_may_be_the_beginning_of_a_stop_string_waits():
    tokenizer = make_tokenizer("nothing (GPT-2)")
    ids = tokenizer("a<b<</b", add_special_tokens=False)["input_ids"]
    pieces, stopped = streamed(tokenizer, ids, ids[0], ["<</c"])
    given = ""
    for piece in pieces[:-1]:
        given += piece
        assert not given.endswith("<")
    assert not stopped and "".join(pieces) == "a<b<</b"
