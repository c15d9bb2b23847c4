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
    ngrams_of_items = [_item_ngrams(item) for item in items]
    wanted = _by_size(ngrams_of_items)
    # For each n-gram the first document that holds it; -1: none.
    first_documents = {size: np.full(len(hashes), -1) for size, hashes in wanted.items()}
    for document, size, places in _matches(train, wanted):
        firsts = first_documents[size]
        firsts[places] = np.where(firsts[places] < 0, document, firsts[places])
    results = []
    for size, hashes in ngrams_of_items:
        documents = first_documents[size][np.searchsorted(wanted[size], hashes)]
        held = documents[documents >= 0]
        first = int(held.min()) if len(held) else None
        results.append((len(held) / len(documents), first))
    return results


def contaminated_documents(train: Iterable[dict], items: Sequence[str]) -> list[int]:
    """Indices of the training documents that hold an n-gram of any item (see `contaminated_items`),
    ascending.
    """
    wanted = _by_size([_item_ngrams(item) for item in items])
    return sorted({document for document, _, _ in _matches(train, wanted)})


def _item_ngrams(item: str) -> tuple[int, np.ndarray]:
    """The length in words of an item's n-grams, and their distinct hashes."""
    words = hash_words(item)
    return min(NGRAM_SIZE, len(words)), np.unique(ngrams(words, NGRAM_SIZE))


def _by_size(ngrams_of_items: list[tuple[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """All items' distinct hashes by n-gram length, sorted."""
    hashes_of: dict[int, list[np.ndarray]] = {}
    for size, hashes in ngrams_of_items:
        hashes_of.setdefault(size, []).append(hashes)
    return {size: np.unique(np.concatenate(hashes_of[size])) for size in sorted(hashes_of)}


def _matches(
    train: Iterable[dict], wanted: dict[int, np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Document index, n-gram length, and where in `wanted[length]` the n-grams stand that the
    document holds.
    """
    for number, document in enumerate(train):
        words = hash_words(document["text"])
        for size, hashes in wanted.items():
            document_hashes = ngrams(words, size)
            places = np.minimum(np.searchsorted(hashes, document_hashes), len(hashes) - 1)
            is_wanted = hashes[places] == document_hashes
            if is_wanted.any():
                yield number, size, np.unique(places[is_wanted])
