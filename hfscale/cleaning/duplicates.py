"""Exact and near duplicates: for every document the index of the first document of its cluster.

MinHash: Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3. A candidate pair counts only after
its exact Jaccard similarity is computed.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Iterator

import numpy as np
from datasets import Dataset, Features, List, Value
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from xxhash import xxh3_64_intdigest

from hfscale.cleaning.rules import LEAST_THRESHOLD
from hfscale.data.caches import scratch_folder
from hfscale.data.words import find_words
from hfscale.process import InputError

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so no bit of a hash is lost
NGRAM_SIZE = 5  # words of a shingle
NUM_PERM = 128  # hashes of a signature
SEED = 0  # of these
# Least probability that banding meets a pair whose similarity is just the threshold.
RECALL_AT_THRESHOLD = 0.98
# An estimate lower than the threshold by so many standard errors is believed.
STANDARD_ERRORS = 3
# Neighbours compared per document in one bucket: keeps one huge bucket from costing its square
WINDOW = 200
SLICE = 8192  # pairs, or shingles of one document, worked on at once


def exact_clusters(documents: Dataset) -> np.ndarray:
    """Clusters (as in `near_clusters`) of equal `text`: runs of white space count as one space,
    case counts.
    """
    return first_of_equal(text_digests(documents))


def text_digests(documents: Dataset) -> np.ndarray:
    """16 bytes (S16) for each `text`, equal for texts that `exact_clusters` takes as equal."""
    digests = (
        hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        for batch in documents.iter(1000)
        for text in batch["text"]
    )
    return np.fromiter(digests, "S16", len(documents))


def first_of_equal(values: np.ndarray) -> np.ndarray:
    """For each value the index of the first that equals it."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which]


def near_clusters(
    documents: Dataset, *, threshold: float = 0.52, num_proc: int | None = None
) -> np.ndarray:
    """For each row the index (int64) of the first document of its cluster, its own when it is
    alone.

    A pair is linked when the Jaccard similarity of its sets of word 5-grams is >= `threshold`;
    clusters are what links connect. Case and punctuation do not count; a document shorter than 5
    words matches only the same words. The result does not depend on `num_proc`. In memory: 512
    bytes per document, shingles of 128 documents.

    Raises InputError: see `rows_per_band`.
    """
    rows_per_band(threshold)  # before the long work
    signatures = sketch(documents, num_proc=num_proc)
    return connect(len(documents), near_links(documents, signatures, threshold=threshold))


def near_links(
    documents: Dataset, signatures: np.ndarray, *, threshold: float, part: int = 0, parts: int = 1
) -> np.ndarray:
    """Pairs of rows (int64, shape (pairs, 2)) that connect the clusters of `near_clusters`;
    `signatures` by `sketch`.

    Looks at the bands `part`, `part + parts`, ... only: the pairs of all parts together connect the
    same clusters.
    """
    rows = rows_per_band(threshold)
    # The largest standard error of an estimate from NUM_PERM hashes, at a similarity of 0.5.
    standard_error = 0.5 / NUM_PERM**0.5
    least_estimate = threshold - STANDARD_ERRORS * standard_error

    @functools.lru_cache(maxsize=128)
    def shingles(row: int) -> np.ndarray:
        return np.unique(ngrams(hash_words(documents[row]["text"]), NGRAM_SIZE))

    @functools.lru_cache(maxsize=100_000)
    def are_near(first: int, second: int) -> bool:
        """By the exact Jaccard similarity: shared shingles by all."""
        shared = len(np.intersect1d(shingles(first), shingles(second), assume_unique=True))
        either = len(shingles(first)) + len(shingles(second)) - shared
        return shared >= threshold * either

    # A union-find forest: rows that are linked already, by whatever way, are not compared again.
    parent = np.arange(len(documents))
    links = []
    for left, right in _candidates(signatures, rows, part, parts):
        is_apart = parent[left] != parent[right]
        left = left[is_apart]
        right = right[is_apart]
        estimates = (signatures[left] == signatures[right]).mean(axis=1)
        is_likely = estimates >= least_estimate
        pairs = zip(left[is_likely].tolist(), right[is_likely].tolist(), strict=True)
        for first, second in pairs:
            roots = (_root(parent, first), _root(parent, second))
            if roots[0] != roots[1] and are_near(first, second):
                parent[max(roots)] = min(roots)
                links.append((first, second))
    return np.array(links, np.int64).reshape(-1, 2)


def _root(parent: np.ndarray, row: int) -> int:
    """Halves the path on its way; a parent's index is never above its child's."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def connect(count: int, links: np.ndarray) -> np.ndarray:
    """For each of `count` rows the index of the first that links lead to, its own when none do."""
    graph = coo_array((np.ones(len(links)), links.T), shape=(count, count))
    return first_of_equal(connected_components(graph, directed=False)[1])


def rows_per_band(threshold: float) -> int:
    """Hashes per band: the most, so the fewest false candidates, that still meet pairs at the
    threshold.

    Raises InputError: a threshold above 1, or one too low for 128 hashes.
    """
    if not LEAST_THRESHOLD <= threshold <= 1:
        raise InputError(
            f"near duplicates: got threshold {threshold}, expected {LEAST_THRESHOLD} to 1"
        )
    for rows in range(NUM_PERM, 1, -1):
        num_bands = NUM_PERM // rows
        # Two documents agree in a whole band with this probability, and in none with ...
        agree_in_band = threshold**rows
        agree_in_none = (1 - agree_in_band) ** num_bands
        if 1 - agree_in_none >= RECALL_AT_THRESHOLD:
            return rows
    return 1  # `LEAST_THRESHOLD` is where that still suffices


def hash_words(text: str) -> np.ndarray:
    """uint64 hash of each word (`find_words`) in lower case; a text without words counts as one
    word.
    """
    words = find_words(text.lower()) or ["".join(text.split())]
    return np.fromiter(map(xxh3_64_intdigest, map(str.encode, words)), np.uint64, len(words))


def ngrams(words: np.ndarray, size: int) -> np.ndarray:
    """uint64 hash of each run of `size` hashes along the first axis; of the whole when there are
    fewer.
    """
    size = min(size, len(words))
    count = len(words) - size + 1
    hashes = words[:count]
    for offset in range(1, size):
        hashes = hashes * MULTIPLIER + words[offset : offset + count]
    return hashes


def sketch(documents: Dataset, *, num_proc: int | None = None) -> np.ndarray:
    """MinHash signatures of the word n-grams, uint32, shape (documents, 128); by rensa where it is
    installed.
    """
    with scratch_folder() as folder:
        rows = documents.select_columns("text").map(
            _sketch,
            batched=True,
            batch_size=200,
            num_proc=num_proc,
            remove_columns="text",
            desc="Hashing shingles",
            cache_file_name=str(folder / "signatures.arrow"),
            fn_kwargs={"with_rensa": importlib.util.find_spec("rensa") is not None},
            features=Features({"signature": List(Value("uint32"), length=NUM_PERM)}),
        )
        # Through Arrow, with no Python numbers in between.
        columns = [
            batch["signature"].combine_chunks().flatten().to_numpy()
            for batch in rows.with_format("arrow").iter(1000)
        ]
    return np.concatenate([np.zeros(0, np.uint32), *columns]).reshape(-1, NUM_PERM)


def _sketch(batch: dict, with_rensa: bool) -> dict[str, list]:
    shingles = [ngrams(hash_words(text), NGRAM_SIZE) for text in batch["text"]]
    signatures = _rensa_signatures(shingles) if with_rensa else _datasketch_signatures(shingles)
    return {"signature": signatures}


def _rensa_signatures(shingles: list[np.ndarray]) -> list:
    from rensa import RMinHash

    ends = np.cumsum([0, *map(len, shingles)]).astype(np.uint64)
    flat = np.concatenate(shingles)
    return RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, NUM_PERM, SEED).to_rows()


def _datasketch_signatures(shingles: list[np.ndarray]) -> list[np.ndarray]:
    from datasketch import MinHash

    sketches = [MinHash(NUM_PERM, SEED, hashfunc=int, scheme="affine32")]
    sketches += [sketches[0].copy() for _ in shingles[1:]]
    for sketch, hashes in zip(sketches, shingles, strict=True):
        for start in range(0, len(hashes), SLICE):
            sketch.update_batch(hashes[start : start + SLICE] >> np.uint64(32))
    return [sketch.hashvalues for sketch in sketches]


def _candidates(
    signatures: np.ndarray, rows: int, part: int, parts: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (left < right) that agree in all hashes of a band; first those next to each other in
    their bucket.
    """
    for band in range(part * rows, signatures.shape[1] - rows + 1, parts * rows):
        keys = ngrams(signatures[:, band : band + rows].T.astype(np.uint64), rows)[0]
        # Equal keys, of one bucket, stand next to each other.
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        places = np.arange(len(keys))
        for gap in range(1, WINDOW + 1):
            places = places[places + gap < len(keys)]
            places = places[keys[places] == keys[places + gap]]
            for start in range(0, len(places), SLICE):
                lefts = places[start : start + SLICE]
                yield order[lefts], order[lefts + gap]
