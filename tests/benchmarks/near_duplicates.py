"""How many planted near copies are found, how many findings are wrong, and how fast the search is.

    python tests/benchmarks/near_duplicates.py                 # 2,000 paragraphs of real books, 2
    processes python tests/benchmarks/near_duplicates.py --threshold 0.7

Each chosen paragraph gets one copy for each level: that share of its words replaced by words of
other places, left out, or joined by a new word, one third each. Hard negatives share a template: a
form with many or with few entries that differ, or other paragraphs between the same opening and
closing lines. A finding is a document that is not the first of its cluster; it is right when it
stems from the same paragraph as the first. Recall counts the copies that share a cluster with their
original.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset

from hfscale.cleaning.duplicates import hash_words, near_clusters, ngrams

DATA = Path(os.environ.get("HFSCALE_DATA", ""))  # the folder of the public data sets
LEVELS = (0.02, 0.05, 0.1, 0.2)
NEGATIVES = ("loose form", "tight form", "same frame")
LEAST_RECALL, LEAST_PRECISION = {0.02: 0.95, 0.05: 0.95}, 0.98
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


def read_paragraphs(data: Path = DATA, least_words: int = 20) -> list[str]:
    """Distinct paragraphs, in file order, of both sets of books."""
    texts = [
        gzip.open(path, "rt", encoding="utf-8").read()
        for path in sorted((data / "books_a").glob("*.gz"))
    ]
    with gzip.open(
        data / "books_large_a" / "books_large_a.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        texts += [json.loads(line)["text"] for line in lines]
    pieces = [" ".join(piece.split()) for text in texts for piece in text.split("\n")]
    return list(dict.fromkeys(piece for piece in pieces if len(piece.split()) >= least_words))


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="paragraphs that get copies")
    parser.add_argument("--threshold", type=float, default=0.52)
    parser.add_argument("--num_proc", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        paragraphs = read_paragraphs()
        texts, origins, levels = plant(paragraphs, args.count, args.seed)
        clusters = near_clusters(
            Dataset.from_dict({"text": texts}), threshold=args.threshold, num_proc=args.num_proc
        )
        recall, precision, findings = measure(clusters, origins, levels)
        print(
            f"{len(texts):,} documents, {args.count:,} copies per level, threshold {args.threshold}"
        )
        print("| words edited | recall |\n|---|---|")
        print("\n".join(f"| {level:.0%} | {value:.4f} |" for level, value in recall.items()))
        print(f"precision {precision:.4f} of {findings:,} findings")
        for kind in NEGATIVES:
            rows = [i for i, level in enumerate(levels) if level == kind]
            sets = [set(ngrams(hash_words(texts[i]), 5).tolist()) for i in rows[:200]]
            shared = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]
            wrong = sum(clusters[i] != i for i in rows)
            print(
                f"{kind}: similarity median {np.median(shared):.2f}, greatest {max(shared):.2f}; "
                f"{wrong} of {len(rows)} documents wrongly found"
            )
        size = sum(len(text.encode()) for text in paragraphs) / 1e6
        whole = Dataset.from_dict({"text": paragraphs})
        start = time.perf_counter()
        found = (near_clusters(whole, num_proc=args.num_proc) != np.arange(len(whole))).sum()
        seconds = time.perf_counter() - start
        print(
            f"all {len(whole):,} paragraphs, {size:.1f} MB, {args.num_proc} processes: "
            f"{seconds:.1f} s, {size / seconds:.1f} MB/s, {found:,} near copies among them"
        )
    missed = [level for level, least in LEAST_RECALL.items() if recall[level] < least]
    return int(bool(missed) or precision < LEAST_PRECISION)


if __name__ == "__main__":
    raise SystemExit(main())
