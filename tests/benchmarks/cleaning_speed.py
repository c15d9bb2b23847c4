"""How fast cleaning and the search for copies are, stage by stage, on real books, and what memory
they take.

    python tests/benchmarks/cleaning_speed.py                       # 20 MB in pieces of 1,000 words
    python tests/benchmarks/cleaning_speed.py --words 0             # whole books
    python tests/benchmarks/cleaning_speed.py --copies 10 --rounds 1  # 200 MB: the peak of memory

CPU seconds are those of all processes. Copy number k of the books has every tenth word replaced by
one with k in it, so that copies do not count as duplicates.
"""

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from measure import Cost, Estimate, Row, geometric_mean, measured, once
from running import run_alone
from texts import books, books_are_there

from hfscale.cleaning.duplicates import exact_clusters, near_clusters
from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.quality import quality_problem
from hfscale.cleaning.repair import repair_text
from hfscale.cleaning.rules import QualityRules
from hfscale.cleaning.stages import Ledger, drop_broken, keep_first, rewrite_texts

SMALL_BOOKS = 5
WATCH_SECONDS = 0.02


def benchmark(
    folder: Path,
    is_small: bool,
    rounds: int | None = None,
    *,
    words: int = 1000,
    copies: int = 1,
    processes: int = 2,
) -> list[Row]:
    """Rows of the table: megabytes per CPU second of each stage and of all, and the peak of memory.

    Raises RuntimeError: the books are not here.
    """
    if not books_are_there():
        raise RuntimeError("HFSCALE_DATA names no folder with books_large_a")
    datasets.disable_progress_bars()
    documents = Dataset.from_generator(
        read_documents,
        cache_dir=str(folder),
        gen_kwargs={
            "words": words,
            "copies": copies,
            "most_books": SMALL_BOOKS if is_small else None,
        },
    )
    documents = documents.filter(bool, input_columns="text")
    documents = documents.add_column("id", range(len(documents)))
    num_bytes = sum(len(text.encode()) for text in documents["text"])
    stages = make_stages(Ledger(folder / "dropped.jsonl"), processes)
    with PeakMemory() as peak:
        passes = [run_stages(documents, stages) for _ in range(rounds or 5)]
    size = f"{num_bytes / 1e6:.1f} MB, {processes} processes"
    rows = [speed_row(f"cleaning, {stage}", stage, passes, num_bytes, size) for stage in stages]
    rows.append(speed_row("cleaning, all stages", None, passes, num_bytes, size))
    rows.append(once("cleaning: peak MB of the main process", peak.num_bytes / 1e6, size))
    return rows


def read_documents(words: int, copies: int, most_books: int | None) -> Iterator[dict[str, str]]:
    """Rows of `text`: whole books, or pieces of about so many words that end with a paragraph."""
    for copy in range(copies):
        for book in islice(books(), most_books):
            for piece in pieces(book, words, copy):
                yield {"text": piece}


def pieces(book: str, words: int, copy: int) -> Iterator[str]:
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


def run_stages(
    documents: Dataset, stages: dict[str, Callable[[Dataset], Dataset]]
) -> dict[str, Cost]:
    """What each stage cost, one after the other."""
    costs = {}
    current = [documents]
    for name, run in stages.items():

        def run_stage(run=run):
            current[0] = run(current[0])

        costs[name] = measured(run_stage)
    return costs


def speed_row(
    name: str, stage: str | None, passes: list[dict[str, Cost]], num_bytes: int, size: str
) -> Row:
    """Megabytes per CPU second of a stage, or of all (None); by wall time beside it."""
    costs = [
        np.sum(list(costs.values()), axis=0) if stage is None else costs[stage] for costs in passes
    ]
    speeds = [[num_bytes / 1e6 / seconds for seconds in cost] for cost in costs]
    by_clock: list[Estimate] = [geometric_mean(values) for values in zip(*speeds, strict=True)]
    cpu, wall = by_clock
    return Row(f"{name}: MB per CPU second", cpu, len(passes), wall, size)


class PeakMemory:
    """Largest memory of this process, without the pages of mapped files, which can go at any
    time.
    """

    def __init__(self):
        self.num_bytes = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(WATCH_SECONDS):
            status = Path("/proc/self/status").read_text()
            now = 1024 * int(status.partition("RssAnon:")[2].split()[0])
            self.num_bytes = max(self.num_bytes, now)


if __name__ == "__main__":
    run_alone(benchmark, __doc__, words=1000, copies=1, processes=2)
