"""Word n-grams that evaluation items share with training text (13 words as in Brown et al. 2020,
appendix C).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hfscale.cleaning.duplicates import hash_words, ngrams

NGRAM_SIZE = 13  # words


def contaminated_items(
    train: Iterable[dict], items: Sequence[str]
) -> list[tuple[float, int | None]]:
    """For each evaluation item the share of its distinct n-grams, 0 to 1, that occurs in the
    training documents, and the index of the first document that holds one.

    Words are compared in lower case and without punctuation. An item shorter than 13 words is
    looked for whole: its share is 0 or 1. `train` (rows with `text`: a Dataset, a stream, a list)
    is read once; only hashes of the items' n-grams are held in memory, 8 bytes each.
    """
    grams, wanted = _item_ngrams(items)
    first = {size: np.full(len(hashes), -1) for size, hashes in wanted.items()}
    for index, size, found in _matches(train, wanted):
        first[size][found] = np.where(first[size][found] < 0, index, first[size][found])
    places = [first[size][np.searchsorted(wanted[size], own)] for size, own in grams]
    return [(float((at >= 0).mean()), min(at[at >= 0].tolist(), default=None)) for at in places]


def contaminated_documents(train: Iterable[dict], items: Sequence[str]) -> list[int]:
    """Indices of the training documents that hold an n-gram of any item (see `contaminated_items`),
    ascending.
    """
    return sorted({index for index, _, _ in _matches(train, _item_ngrams(items)[1])})


def _item_ngrams(items: Sequence[str]) -> tuple[list, dict[int, np.ndarray]]:
    """Per item its n-gram length in words and its distinct hashes, and per length all hashes,
    sorted.
    """
    hashed = [hash_words(item) for item in items]
    grams = [
        (min(NGRAM_SIZE, len(words)), np.unique(ngrams(words, NGRAM_SIZE))) for words in hashed
    ]
    sizes = sorted({size for size, _ in grams})
    return grams, {
        size: np.unique(np.concatenate([own for s, own in grams if s == size])) for size in sizes
    }


def _matches(
    train: Iterable[dict], wanted: dict[int, np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Document index, n-gram length, and where in `wanted[length]` the n-grams stand that the
    document holds.
    """
    for index, document in enumerate(train):
        words = hash_words(document["text"])
        for size, hashes in wanted.items():
            own = ngrams(words, size)
            place = np.minimum(np.searchsorted(hashes, own), len(hashes) - 1)
            if len(found := np.unique(place[hashes[place] == own])):
                yield index, size, found
