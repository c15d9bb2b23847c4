"""How many planted near copies are found, how many findings are wrong, and how fast the search is.

    python tests/benchmarks/near_duplicates.py                 # 2,000 paragraphs of real books
    python tests/benchmarks/near_duplicates.py --threshold 0.7 --seed 1

Each chosen paragraph gets one copy for each level: that share of its words replaced by words of
other places, left out, or joined by a new word, one third each. Hard negatives share a template: a
form with many or with few entries that differ, or other paragraphs between the same opening and
closing lines. A finding is a document that is not the first of its cluster; it is right when it
stems from the same paragraph as the first. Recall counts the copies that share a cluster with their
original.
"""

import gzip
import itertools
import random
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from measure import Row, exactly, geometric_mean, measured
from running import run_alone
from texts import SMALL_BOOKS, books, books_are_there

from hfscale.cleaning.duplicates import hash_words, near_clusters, ngrams

LEVELS = (0.02, 0.05, 0.1, 0.2)
NEGATIVES = ("loose form", "tight form", "same frame")
SMALL_COUNT = 300
FULL_COUNT = 2000
LEAST_WORDS = 20
LOOSE_FORM = (
    "Record number {} of the county office. The undersigned {} {} of {} declares to have received "
    "the sum of {} pounds for the {} that was delivered on the {} of {} and paid by {} in the "
    "presence of {} and {}. Signed {}."
)
TIGHT_FORM = (
    "Record number {} of the county office. The undersigned declares to have received in good "
    "order from {} the goods that were asked for in the letter of the last month and to have paid "
    "for them to {} the sum that was agreed upon by both sides before the witnesses of this town, "
    "among them {} and their families, on the first {} of the year, so that none of the sides may "
    "claim anything further from the other about {} after this day."
)
OPENING = "This text is part of the open library of old books and may be copied and read by anyone at no cost. "
CLOSING = " Please tell the library about any mistake that you find in this text, so that it can be put right."


def read_paragraphs() -> list[str]:
    """Distinct paragraphs, in file order, of both sets of books."""
    texts = [
        gzip.open(path, "rt", encoding="utf-8").read() for path in sorted(SMALL_BOOKS.glob("*.gz"))
    ]
    texts += books()
    pieces = [" ".join(piece.split()) for text in texts for piece in text.split("\n")]
    return list(dict.fromkeys(piece for piece in pieces if len(piece.split()) >= LEAST_WORDS))


def edit(text: str, level: float, vocabulary: list[str], rng: random.Random) -> str:
    """`level` of the words (at least one) replaced, left out, or followed by a new word."""
    words = text.split()
    for at in rng.sample(range(len(words)), max(1, round(level * len(words)))):
        words[at] = rng.choice(
            ["", rng.choice(vocabulary), f"{words[at]} {rng.choice(vocabulary)}"]
        )
    return " ".join(word for word in words if word)


def plant(paragraphs: list[str], count: int, seed: int) -> tuple[list[str], list[int], list]:
    """Texts in random order, the paragraph each stems from, and its level (0: original) or kind of
    negative.
    """
    rng = random.Random(seed)
    vocabulary = sorted({word for text in paragraphs[::7] for word in text.split()})
    chosen = rng.sample(paragraphs, 2 * count)
    rows = [(text, i, 0) for i, text in enumerate(chosen)]
    rows += [
        (edit(text, level, vocabulary, rng), i, level)
        for i, text in enumerate(chosen[:count])
        for level in LEVELS
    ]
    short = sorted(text for text in set(paragraphs) - set(chosen) if len(text.split()) <= 35)
    negatives = [
        (form.format(*rng.choices(vocabulary, k=form.count("{}"))), kind)
        for _ in range(count // 4)
        for form, kind in zip((LOOSE_FORM, TIGHT_FORM), NEGATIVES, strict=False)
    ]
    negatives += [
        (OPENING + text + CLOSING, NEGATIVES[2]) for text in rng.sample(short, count // 4)
    ]
    rows += [(text, 2 * count + i, kind) for i, (text, kind) in enumerate(negatives)]
    rng.shuffle(rows)
    texts, origins, levels = zip(*rows, strict=True)
    return list(texts), list(origins), list(levels)


def measure(
    clusters: np.ndarray, origins: list[int], levels: list
) -> tuple[dict[float, float], float, int]:
    """Recall per level, precision, number of findings."""
    original = {
        origin: i
        for i, (origin, level) in enumerate(zip(origins, levels, strict=True))
        if level == 0
    }
    recall = {
        level: float(
            np.mean(
                [
                    clusters[i] == clusters[original[origin]]
                    for i, origin in enumerate(origins)
                    if levels[i] == level
                ]
            )
        )
        for level in LEVELS
    }
    findings = [(i, first) for i, first in enumerate(clusters.tolist()) if i != first]
    right = sum(origins[i] == origins[first] for i, first in findings)
    return recall, right / max(1, len(findings)), len(findings)


def benchmark(
    folder: Path,
    is_small: bool,
    rounds: int | None = None,
    *,
    seed: int = 0,
    threshold: float = 0.52,
    num_proc: int = 2,
) -> list[Row]:
    """Rows of the table: recall by level, precision, speed.

    Raises RuntimeError: the books are not here.
    """
    if not books_are_there():
        raise RuntimeError("HFSCALE_DATA names no folder with books_large_a")
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = folder
    paragraphs = read_paragraphs()
    count = SMALL_COUNT if is_small else FULL_COUNT
    texts, origins, levels = plant(paragraphs, count, seed)

    def search(texts):
        return near_clusters(
            Dataset.from_dict({"text": texts}), threshold=threshold, num_proc=num_proc
        )

    clusters = search(texts)
    recall, precision, findings = measure(clusters, origins, levels)
    rows = [
        exactly(f"near duplicates: recall at {level:.0%} of the words", recall[level])
        for level in LEVELS
    ]
    rows.append(exactly("near duplicates: precision", precision, f"of {findings:,} findings"))
    rows += [negative_row(kind, texts, levels, clusters) for kind in NEGATIVES]
    whole = texts if is_small else paragraphs
    megabytes = sum(len(text.encode()) for text in whole) / 1e6
    costs = [measured(lambda: search(whole)) for _ in range(rounds or 5)]
    speed = geometric_mean([megabytes / cost.cpu for cost in costs])
    wall = geometric_mean([megabytes / cost.wall for cost in costs])
    note = f"{len(whole):,} paragraphs, {num_proc} processes"
    rows.append(Row("near duplicates: MB per CPU second", speed, len(costs), wall, note))
    return rows


def negative_row(kind: str, texts: list[str], levels: list, clusters: np.ndarray) -> Row:
    """How many documents of one template were taken for copies, and how alike they are."""
    rows = [i for i, level in enumerate(levels) if level == kind]
    sets = [set(ngrams(hash_words(texts[i]), 5).tolist()) for i in rows[:200]]
    shared = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]
    wrong = sum(clusters[i] != i for i in rows)
    return exactly(
        f"near duplicates: share of {kind}s wrongly found",
        wrong / len(rows),
        f"similarity: median {np.median(shared):.2f}, greatest {max(shared):.2f}",
    )


if __name__ == "__main__":
    run_alone(benchmark, __doc__, seed=0, threshold=0.52, num_proc=2)
