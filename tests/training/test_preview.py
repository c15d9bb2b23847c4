"""The row that a dry run shows: the first text in it, up to its last scored token."""

import pytest

from hfscale.data.packing import IGNORED
from hfscale.training.preview import SHOWN_TOKENS, _row_table


class Letters:
    """Stands for a tokenizer: token i is the letter number i."""

    def decode(self, ids: list[int]) -> str:
        return chr(ord("a") + ids[0] % 26)


def shown(labels: list[int], positions: list[int] | None = None) -> list[tuple[str, ...]]:
    """Position and label of each line."""
    row = {
        "input_ids": list(range(len(labels))),
        "labels": [i if label else IGNORED for i, label in enumerate(labels)],
        "position_ids": positions or list(range(len(labels))),
    }
    return [(position, label) for position, _, _, label in _row_table(row, Letters())]


def test_a_prompt_and_its_target_without_what_follows():
    found = shown([0, 0, 1, 1, 0, 0])
    assert found == [("0", "not scored"), ("1", "not scored"), ("2", "'c'"), ("3", "'d'")]


def test_only_the_first_text_of_a_packed_row():
    assert [place for place, _ in shown([0, 1, 1, 0, 1], [0, 1, 2, 0, 1])] == ["0", "1", "2"]


def test_every_answer_of_a_conversation():
    assert [label for _, label in shown([0, 1, 0, 1, 0])] == [
        "not scored",
        "'b'",
        "not scored",
        "'d'",
    ]


@pytest.mark.parametrize("size", [SHOWN_TOKENS, SHOWN_TOKENS + 1, 500])
def test_the_middle_of_long_parts_is_left_out(size):
    found = shown([0] * size + [1] * size)
    places = [place for place, _ in found]
    if size == SHOWN_TOKENS:
        assert places == [str(i) for i in range(2 * size)]
    else:
        half = SHOWN_TOKENS // 2
        ends = [*range(half), None, *range(size - half, size)]
        assert places == ["..." if i is None else str(i + at) for at in (0, size) for i in ends]
        assert [i for i, place in enumerate(places) if place == "..."] == [half, 3 * half + 1]


def test_a_row_of_text_to_pretrain_on():
    """The first token of a row is never predicted."""
    assert [label for _, label in shown([1, 1, 1])] == ["not scored", "'b'", "'c'"]
