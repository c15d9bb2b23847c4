"""What tokenizing and packing cost beside `tokenizers.encode_batch` alone on the same text.

    python tests/benchmarks/packing_speed.py --megabytes 4 --rounds 5

The text is the books beside the checkout, cut at line ends into documents of about 4,000
characters. The sides take turns, round after round; printed are the medians of the rounds' ratios
(bare time / our time, 1 is as fast as the bare call) with their range, by the clock and by
processor time, which other work on the machine disturbs less.
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
from datasets import Dataset

from hfscale.data.packing import pack_documents
from hfscale.data.tokenizer import train_bpe

DATA = Path(os.environ.get("HFSCALE_DATA", ""))  # the folder of the public data sets
BOOKS = DATA / "books_large_a" / "books_large_a.jsonl.gz"
LIMIT = 0.85


def read_documents(path: Path, num_bytes: float, num_characters: int) -> list[str]:
    texts: list[str] = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        paragraphs = (
            part for line in lines for part in json.loads(line)["text"].splitlines(keepends=True)
        )
        part, size = [], 0
        for paragraph in paragraphs:
            part.append(paragraph)
            size += len(paragraph)
            if size >= num_characters:
                texts.append("".join(part))
                num_bytes -= len(texts[-1].encode())
                part, size = [], 0
            if num_bytes <= 0:
                break
    return texts


def timed(call: Callable) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--characters", type=int, default=4000, help="of a document, about")
    parser.add_argument("--books", type=Path, default=BOOKS)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.disable_caching()  # every round really packs
    texts = read_documents(options.books, options.megabytes * 1e6, options.characters)
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_dict({"text": texts}).save_to_disk(folder)
        documents = Dataset.load_from_disk(folder)
        tokenizer = train_bpe(documents.select(range(min(200, len(texts)))), 8192)
        sides = {
            "bare": lambda: tokenizer.backend_tokenizer.encode_batch(
                texts, add_special_tokens=False
            )
        }
        for packing in ("wrapped", "bfd_split"):
            rows = pack_documents(documents, tokenizer, options.max_length, packing=packing)
            unused = 1 - sum(rows["num_tokens"]) / len(rows) / (options.max_length - 1)
            print(
                f"{packing}: {len(texts):,} documents, {len(rows):,} rows, {unused:.2%} of the "
                "targets unused"
            )
            sides[packing] = lambda packing=packing: pack_documents(
                documents, tokenizer, options.max_length, packing=packing
            )
        rounds = [
            {name: timed(call) for name, call in sides.items()} for _ in range(options.rounds)
        ]
    for packing in ("wrapped", "bfd_split"):
        for i, clock in enumerate(("clock", "processor time")):
            ratios = sorted(r["bare"][i] / r[packing][i] for r in rounds)
            median = statistics.median(ratios)
            print(
                f"{packing} / encode_batch by {clock}: {median:.3f} (from {ratios[0]:.3f} to "
                f"{ratios[-1]:.3f} in {len(ratios)} rounds; "
                f"{'within' if median >= LIMIT else 'BELOW'} the limit {LIMIT})"
            )


if __name__ == "__main__":
    main()
