"""Peak memory of a streaming run's data side (read, split, pack, shuffle, batch) against the size
of the text.

    python tests/benchmarks/streaming_memory.py

The same text is written again and again into a folder, in files of about 20 MB. Each size is read
to its end by a process of its own. Memory: the process's highest resident size.
"""

import multiprocessing
import resource
from pathlib import Path

import datasets
from datasets import Dataset
from measure import Cost, Row, measured, once
from running import run_alone
from texts import long_text, pieces_of

BATCH = 8
ROW_TOKENS = 1024
SHUFFLE_BUFFER_ROWS = 1000
FILE_BYTES = 20_000_000
DOCUMENT_CHARACTERS = 20_000
GROWTH = 10
SMALL_BYTES = {True: 2_000_000, False: 20_000_000}


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """Rows of the table: memory and CPU seconds of ten times the text."""
    from hfscale.data.tokenizer import train_bpe

    small_bytes = SMALL_BYTES[is_small]
    texts = pieces_of(long_text(min(FILE_BYTES, small_bytes)), DOCUMENT_CHARACTERS)
    datasets.disable_progress_bars()
    documents = Dataset.from_dict({"text": texts})
    train_bpe(documents.select(range(min(20, len(texts)))), 8192).save_pretrained(
        folder / "tokenizer"
    )
    read_bytes: list[tuple[float, Cost]] = []
    for number, num_bytes in enumerate((small_bytes, GROWTH * small_bytes)):
        source = folder / str(number)
        write_files(source, documents, num_bytes)
        read_bytes.append(in_own_process(source, folder / "tokenizer"))
    (small_peak, small_cost), (large_peak, large_cost) = read_bytes
    size = f"{GROWTH * small_bytes / 1e6:g} MB beside {small_bytes / 1e6:g} MB"
    return [
        once(
            f"streaming: MiB more for {GROWTH} times the text",
            large_peak - small_peak,
            f"{size}; peak of the process {large_peak:,.0f} MiB",
        ),
        once(
            f"streaming: CPU seconds of {GROWTH} times the text",
            large_cost.cpu / small_cost.cpu,
            size,
        ),
    ]


def write_files(folder: Path, documents: Dataset, num_bytes: int) -> None:
    """The documents as .jsonl files, again and again, until there are so many bytes."""
    folder.mkdir()
    written = 0
    while written < num_bytes:
        written += documents.to_json(folder / f"{written}.jsonl")


def in_own_process(source: Path, tokenizer: Path) -> tuple[float, Cost]:
    """Peak MiB of the process, and what reading cost."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=read, args=(str(source), str(tokenizer), answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def read(source: str, tokenizer_folder: str, answers) -> None:
    from torch.utils.data import DataLoader

    from hfscale.arguments import StreamArguments
    from hfscale.data.packing import collate_rows, pack_splits
    from hfscale.data.splits import load_parts
    from hfscale.data.tokenizer import load_pretrained_tokenizer

    datasets.disable_progress_bars()
    tokenizer = load_pretrained_tokenizer(tokenizer_folder)

    def read_all():
        args = StreamArguments(source=[source], streaming=True, validation_fraction=0.02)
        [part] = load_parts(args, seed=0)
        rows = pack_splits(part, tokenizer, ROW_TOKENS)["train"]
        rows = rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER_ROWS, max_buffer_input_shards=1)
        for _ in DataLoader(rows, batch_size=BATCH, collate_fn=collate_rows):
            pass

    cost = measured(read_all)
    answers.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, cost))


if __name__ == "__main__":
    run_alone(benchmark, __doc__)
