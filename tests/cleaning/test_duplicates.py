"""Duplicate clusters: found where they are, nowhere else, and the same for any number of
workers.
"""

import importlib.util
import random

import numpy as np
import pytest
from datasets import Dataset

from hfscale.cleaning.duplicates import (
    connect,
    exact_clusters,
    hash_words,
    near_clusters,
    near_links,
    ngrams,
    rows_per_band,
    sketch,
)
from hfscale.process import InputError

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("a", "en", "il", "or", "un", "ast")]


def documents(*texts):
    return Dataset.from_dict({"text": list(texts)})


def sentence(rng, length=100):
    return [rng.choice(WORDS) for _ in range(length)]


def planted(count=60, seed=0):
    """Texts of 100 words, each followed by a copy with 4 words changed and one unrelated text."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        words = sentence(rng)
        copy = words.copy()
        for at in rng.sample(range(100), 4):
            copy[at] = "changed"
        texts += [" ".join(words), " ".join(copy), " ".join(sentence(rng))]
    return texts


def test_exact_clusters_ignore_white_space_only():
    rows = documents("a b", "a  b\n", "A b", "", " \n", "a b", "ab")
    assert exact_clusters(rows).tolist() == [0, 0, 2, 3, 3, 0, 6]


@pytest.mark.parametrize("backend", ["rensa", "datasketch"])
def test_planted_copies_are_found_and_nothing_else(backend, monkeypatch):
    if backend == "rensa":
        pytest.importorskip("rensa", reason="rensa is optional")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "rensa" != backend else find_spec(name, *more),
    )
    expected = [3 * (i // 3) + (2 if i % 3 == 2 else 0) for i in range(180)]
    assert near_clusters(documents(*planted())).tolist() == expected


def test_clusters_do_not_depend_on_the_number_of_workers():
    rows = documents(*planted(seed=1))
    alone, shared = near_clusters(rows), near_clusters(rows, num_proc=2)
    assert alone.dtype == np.int64 and alone.tolist() == shared.tolist()


def test_bands_can_be_shared_out():
    rows = documents(*planted(seed=3))
    signatures = sketch(rows)
    links = [
        near_links(rows, signatures, threshold=0.52, part=i, parts=50) for i in range(50)
    ]  # some have no band
    assert connect(len(rows), np.concatenate(links[::-1])).tolist() == near_clusters(rows).tolist()
    assert len(near_links(rows, signatures, threshold=0.52)) == 60  # one link for each planted copy


def test_the_threshold_is_exact():
    """21 shingles each, 14 shared: 14 / 28 is just the threshold; 13 / 29 is below."""
    left = [f"w{i}" for i in range(25)]
    for seed in range(2, 7):
        rng = random.Random(seed)
        just, below = left[:18] + sentence(rng, 7), left[:17] + sentence(rng, 8)
        assert near_clusters(documents(" ".join(left), " ".join(just)), threshold=0.5).tolist() == [
            0,
            0,
        ]
        assert near_clusters(
            documents(" ".join(left), " ".join(below)), threshold=0.5
        ).tolist() == [0, 1]


def test_a_chain_is_one_cluster_named_by_its_first():
    words = [f"w{i}" for i in range(130)]
    steps = [
        " ".join(words[start : start + 100]) for start in (30, 15, 0)
    ]  # neighbours share 81 of 111 shingles
    assert near_clusters(documents("something else", *steps), threshold=0.65).tolist() == [
        0,
        1,
        1,
        1,
    ]


def test_short_documents_match_only_the_same_words():
    rows = documents(
        "Hello, world!", "hello world", "hello", "", " ", "***", "hello world again", "* * *", "--"
    )
    assert near_clusters(rows).tolist() == [0, 0, 2, 3, 3, 5, 6, 5, 8]


def test_case_punctuation_and_emphasis_do_not_count():
    rows = documents("It was _the_ best of times, it was", "it was the best of TIMES it was!")
    assert near_clusters(rows).tolist() == [0, 0]


def test_texts_without_spaces_are_cut_into_characters():
    assert len(hash_words("今日は良い天気です")) == 9
    text = "今日は良い天気ですから散歩に行きましょう"
    assert near_clusters(documents(text + "ね", text)).tolist() == [0, 0]


def test_words_that_differ_in_a_vowel_sign_are_different_words():
    """Without its vowel signs the second text would be the first."""
    text = "किताब मेज पर है और वह घर में पानी पीता है"
    assert near_clusters(
        documents(text, text.replace("ि", "ी").replace("ा", "ु").replace("े", "ो"))
    ).tolist() == [0, 1]
    assert near_clusters(documents(text, f"«{text}»।")).tolist() == [0, 0]


def test_many_identical_documents_and_no_documents():
    assert near_clusters(documents(*["one two three four five six"] * 1000)).tolist() == [0] * 1000
    assert near_clusters(documents("x").select([])).tolist() == []
    assert exact_clusters(documents("x").select([])).tolist() == []


def test_rows_that_were_selected_are_counted_as_they_stand():
    rows = documents("unrelated words of some length", *["the same six words in here"] * 3).select(
        [3, 0, 1]
    )
    assert near_clusters(rows).tolist() == [0, 1, 0]


def test_a_document_longer_than_a_slice_is_hashed_whole():
    words = [f"w{i}" for i in range(20_000)]
    head, tail = " ".join(words[:9_000]), " ".join(words[9_000:])
    assert near_clusters(documents(" ".join(words), tail, head), threshold=0.54).tolist() == [
        0,
        0,
        2,
    ]


def test_ngrams_are_runs_of_words_in_order():
    words = hash_words("a b c a b d")
    pairs = ngrams(words, 2)
    assert len(pairs) == 5 and pairs[0] == pairs[3] and len(set(pairs.tolist())) == 4
    assert ngrams(words, 9).tolist() == ngrams(words, 6).tolist()
    assert ngrams(hash_words("a b"), 2) != ngrams(hash_words("b a"), 2)


def test_bands_meet_pairs_at_the_threshold():
    assert rows_per_band(0.5) == 3
    for threshold in (0.031, 0.3, 0.7, 0.9, 1.0):
        rows = rows_per_band(threshold)
        assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.98


@pytest.mark.parametrize("wrong", [0.0, 0.03, 1.2])
def test_a_wrong_threshold_is_named(wrong):
    with pytest.raises(
        InputError, match=f"near duplicates: got threshold {wrong}, expected 0.031 to 1"
    ):
        near_clusters(documents("a"), threshold=wrong)
