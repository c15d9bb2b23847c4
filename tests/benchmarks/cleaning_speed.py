"""How fast cleaning and the search for copies are, stage by stage, on 20 MB of real books, and what
memory they take.

    python tests/benchmarks/cleaning_speed.py              # pieces of 1,000 words, 2 processes
    python tests/benchmarks/cleaning_speed.py --words 0    # whole books
    # 200 MB: the peak of memory beside that of 20 MB
    python tests/benchmarks/cleaning_speed.py --copies 10 --processes 1

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
from collections.abc import Callable
from pathlib import Path

import datasets
import psutil
from datasets import Dataset

from hfscale.cleaning.duplicates import exact_clusters, near_clusters
from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.quality import quality_problem
from hfscale.cleaning.repair import repair_text
from hfscale.cleaning.rules import QualityRules
from hfscale.cleaning.stages import Ledger, drop_broken, keep_first, rewrite_texts

DATA = Path(os.environ.get("HFSCALE_DATA", ""))  # the folder of the public data sets
BOOKS = DATA / "books_large_a" / "books_large_a.jsonl.gz"
LEAST_MB_PER_SECOND = 2.0


def read_documents(words: int, copies: int):
    """Rows of `text`: whole books, or pieces of about so many words that end with a paragraph."""
    for copy in range(copies):
        with gzip.open(BOOKS, "rt", encoding="utf-8") as lines:
            for line in lines:
                for piece in pieces(json.loads(line)["text"], words, copy):
                    yield {"text": piece}


def pieces(book: str, words: int, copy: int):
    """Runs of paragraphs of about so many words (0: all), those of a later copy altered."""
    paragraphs = []
    count = 0
    for paragraph in book.split("\n\n"):
        tokens = paragraph.split(" ")
        if copy:
            tokens[::10] = [f"{token}{copy}" for token in tokens[::10]]
        paragraphs.append(" ".join(tokens))
        count += len(tokens)
        if words and count >= words:
            yield "\n\n".join(paragraphs)
            paragraphs = []
            count = 0
    yield "\n\n".join(paragraphs)


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
        anonymous_bytes = 1024 * int(status.partition("RssAnon:")[2].split()[0])
        peaks[stage[0]] = max(peaks.get(stage[0], 0), anonymous_bytes)


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
        stages = make_stages(Ledger(Path(folder) / "dropped.jsonl"), args.processes)
        return measure(documents, stages, args.processes)


def make_stages(ledger: Ledger, workers: int) -> dict[str, Callable[[Dataset], Dataset]]:
    """Each stage by its name, from documents to documents."""
    rules = QualityRules()

    def repair(documents):
        return rewrite_texts(
            documents, "repair", lambda text: (repair_text(text), {}), ledger, workers
        )

    def quality(documents):
        return drop_broken(
            documents, "quality", lambda text: quality_problem(text, rules), ledger, workers
        )

    def exact_duplicates(documents):
        return keep_first(documents, "exact", exact_clusters(documents), ledger)

    def near_duplicates(documents):
        return keep_first(documents, "near", near_clusters(documents, num_proc=workers), ledger)

    def personal_data(documents):
        return rewrite_texts(documents, "personal data", mask_personal_data, ledger, workers)

    return {
        "repair": repair,
        "quality": quality,
        "exact duplicates": exact_duplicates,
        "near duplicates": near_duplicates,
        "personal data": personal_data,
    }


def measure(
    documents: Dataset, stages: dict[str, Callable[[Dataset], Dataset]], workers: int
) -> int:
    """Print a table of the stages; 1 if all together are slower than `LEAST_MB_PER_SECOND`."""
    size = sum(len(text.encode()) for text in documents["text"]) / 1e6
    peaks: dict[str, int] = {}
    stage = ["start"]
    stop = threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(peaks, stage, stop))
    watcher.start()
    print(
        f"{len(documents):,} documents, {size:.1f} MB, {workers} processes, load "
        f"{psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores\n"
        "| stage | wall s | MB/s | CPU s | MB per CPU s | peak MB of this process "
        "|\n|---|---|---|---|---|---|"
    )
    total_wall = 0.0
    total_cpu = 0.0
    for name, run in stages.items():
        stage[0] = name
        wall_start = time.perf_counter()
        cpu_start = cpu_seconds()
        documents = run(documents)
        wall = time.perf_counter() - wall_start
        cpu = cpu_seconds() - cpu_start
        total_wall += wall
        total_cpu += cpu
        print(
            f"| {name} | {wall:.1f} | {size / wall:.1f} | {cpu:.1f} | {size / cpu:.1f} | "
            f"{peaks[name] / 1e6:.0f} |",
            flush=True,
        )
    stop.set()
    watcher.join()
    print(
        f"| all | {total_wall:.1f} | {size / total_wall:.2f} | {total_cpu:.1f} | "
        f"{size / total_cpu:.2f} | {max(peaks.values()) / 1e6:.0f} |\n"
        f"{len(documents):,} documents are left"
    )
    return int(size / total_wall < LEAST_MB_PER_SECOND)


if __name__ == "__main__":
    raise SystemExit(main())
