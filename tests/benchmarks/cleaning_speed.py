"""How fast cleaning and the search for copies are, stage by stage, on 20 MB of real books, and what
memory they take.

    python tests/benchmarks/cleaning_speed.py                       # pieces of 1,000 words, 2
    processes python tests/benchmarks/cleaning_speed.py --words 0             # whole books python
    tests/benchmarks/cleaning_speed.py --copies 10 --processes 1     # 200 MB: the peak of memory
    beside 20 MB

Wall time depends on what else the machine does; CPU seconds (of all processes) hardly do. Copy
number k of the books has every tenth word replaced by one with k in it, so that copies do not count
as duplicates.
"""

import argparse
import gzip
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import datasets
import psutil
from datasets import Dataset

from hfscale.cleaning.duplicates import exact_clusters, near_clusters
from hfscale.cleaning.rules import QualityRules
from hfscale.cleaning.stages import Ledger, drop_broken, keep_first, rewrite_texts
from hfscale.cleaning.text import mask_personal_data, quality_problem, repair_text

DATA = Path(os.environ.get("HFSCALE_DATA", ""))  # the folder of the public data sets
BOOKS = DATA / "books_large_a" / "books_large_a.jsonl.gz"
LEAST_MB_PER_SECOND = 2.0


def read_documents(words: int, copies: int):
    """Rows of `text`: whole books, or pieces of about so many words that end with a paragraph."""
    for copy in range(copies):
        with gzip.open(BOOKS, "rt", encoding="utf-8") as lines:
            for line in lines:
                piece, count = [], 0
                for paragraph in json.loads(line)["text"].split("\n\n"):
                    tokens = paragraph.split(" ")
                    tokens[::10] = (
                        [f"{token}{copy}" for token in tokens[::10]] if copy else tokens[::10]
                    )
                    piece.append(" ".join(tokens))
                    count += len(tokens)
                    if words and count >= words:
                        yield {"text": "\n\n".join(piece)}
                        piece, count = [], 0
                yield {"text": "\n\n".join(piece)}


def cpu_seconds() -> float:
    """Of this process and of all that it started and that ended."""
    return sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def watch_memory(peaks: dict[str, int], stage: list[str], stop: threading.Event) -> None:
    """Largest memory of this process in each stage, without the pages of mapped files, which can go
    at any time.
    """
    while not stop.wait(0.02):
        status = Path("/proc/self/status").read_text()
        own = 1024 * int(status.partition("RssAnon:")[2].split()[0])
        peaks[stage[0]] = max(peaks.get(stage[0], 0), own)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=1000, help="per document; 0: whole books")
    parser.add_argument("--copies", type=int, default=1, help="of the 20 MB, each with other words")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        documents = Dataset.from_generator(
            read_documents,
            cache_dir=folder,
            gen_kwargs={"words": args.words, "copies": args.copies},
        )
        documents = documents.filter(bool, input_columns="text")
        documents = documents.add_column("id", range(len(documents)))
        size, workers = sum(len(text.encode()) for text in documents["text"]) / 1e6, args.processes
        ledger, rules = Ledger(Path(folder) / "dropped.jsonl"), QualityRules()
        stages = {
            "repair": lambda d: rewrite_texts(
                d, "repair", lambda text: (repair_text(text), {}), ledger, workers
            ),
            "quality": lambda d: drop_broken(
                d, "quality", lambda text: quality_problem(text, rules), ledger, workers
            ),
            "exact duplicates": lambda d: keep_first(d, "exact", exact_clusters(d), ledger),
            "near duplicates": lambda d: keep_first(
                d, "near", near_clusters(d, num_proc=workers), ledger
            ),
            "personal data": lambda d: rewrite_texts(
                d, "personal data", mask_personal_data, ledger, workers
            ),
        }
        peaks, stage, stop = {}, ["start"], threading.Event()
        watcher = threading.Thread(target=watch_memory, args=(peaks, stage, stop))
        watcher.start()
        print(
            f"{len(documents):,} documents, {size:.1f} MB, {workers} processes, load "
            f"{psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores\n"
            "| stage | wall s | MB/s | CPU s | MB per CPU s | peak MB of this process "
            "|\n|---|---|---|---|---|---|"
        )
        total_wall = total_cpu = 0.0
        for name, run in stages.items():
            stage[0], wall, cpu = name, time.perf_counter(), cpu_seconds()
            documents = run(documents)
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            total_wall, total_cpu = total_wall + wall, total_cpu + cpu
            print(
                f"| {name} | {wall:.1f} | {size / wall:.1f} | {cpu:.1f} | {size / cpu:.1f} | "
                f"{peaks[name] / 1e6:.0f} |",
                flush=True,
            )
        stop.set()
        watcher.join()
        print(
            f"| all | {total_wall:.1f} | {size / total_wall:.2f} | {total_cpu:.1f} | "
            f"{size / total_cpu:.2f} | "
            f"{max(peaks.values()) / 1e6:.0f} |\n{len(documents):,} documents are left"
        )
    return int(size / total_wall < LEAST_MB_PER_SECOND)


if __name__ == "__main__":
    raise SystemExit(main())
