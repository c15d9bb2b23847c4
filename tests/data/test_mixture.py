"""Mixtures: counts and epochs worked out by hand."""

from collections import Counter

import pytest
from datasets import Dataset

from hfscale.data.mixture import mix
from hfscale.process import InputError


@pytest.fixture
def sources():
    sizes = {"a": 16, "b": 4, "c": 1}
    return [
        Dataset.from_dict({"text": [f"{name}{i}" for i in range(n)]}) for name, n in sizes.items()
    ]


def counts(rows):
    return Counter(text[0] for text in rows["text"])


def test_proportional_is_every_row_once(sources):
    rows, epochs = mix(sources)
    assert sorted(rows["text"]) == sorted(text for part in sources for text in part["text"])
    assert epochs == [1.0, 1.0, 1.0]
    assert mix(sources, temperature=1.0)[0]["text"][:] == rows["text"][:]


def test_temperature(sources):
    rows, epochs = mix(sources, temperature=2.0)  # square roots: shares 4/7, 2/7 and 1/7 of 21 rows
    assert counts(rows) == {"a": 12, "b": 6, "c": 3}
    assert epochs == [0.75, 1.5, 3.0]
    assert len(set(rows["text"])) == 12 + 4 + 1  # of b, every row once and two rows twice
    assert max(Counter(text for text in rows["text"] if text[0] == "b").values()) == 2


def test_weights(sources):
    rows, epochs = mix(
        sources, [1, 0, 1]
    )  # 10.5 and 10.5 of 21 rows: the earlier source wins the tie
    assert counts(rows) == {"a": 11, "c": 10}
    assert epochs == [11 / 16, 0.0, 10.0]


def test_a_seed_fixes_the_order(sources):
    orders = [mix(sources, temperature=2.0, seed=seed)[0]["text"][:] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert Counter(text[0] for text in orders[0]) == Counter(text[0] for text in orders[2])
    assert {text[0] for text in orders[0][:10]} != {"a"}  # mixed, not one after the other


@pytest.mark.parametrize("weights", [[1], [-1, 1, 1], [0, 0, 0], [1, 1, float("inf")]])
def test_wrong_weights_are_named(sources, weights):
    with pytest.raises(InputError, match="source_weights: got .* for 3 source"):
        mix(sources, weights)
    with pytest.raises(InputError, match="source_temperature: got 0"):
        mix(sources, temperature=0)


def test_an_empty_source_is_named(sources):
    with pytest.raises(InputError, match="source 4 has no rows"):
        mix([*sources, sources[0].select([])])
