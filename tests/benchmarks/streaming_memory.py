"""Peak memory of a streaming run's data side (read, split, pack, shuffle, batch) against the size
of the text.

    python tests/benchmarks/streaming_memory.py --megabytes 20 200

The text is the books beside the checkout, written again and again into a temporary folder. Each
size is read to its end by a process of its own, with --in_memory once more without --streaming.
"""

import argparse
import gzip
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

DATA = Path(os.environ.get("HFSCALE_DATA", ""))  # the folder of the public data sets
BOOKS = DATA / "books_large_a" / "books_large_a.jsonl.gz"
BATCH = 8


def write_books(folder: Path, num_bytes: float, books: Path) -> int:
    """Copies of the books as .jsonl, the last one cut at a line; returns the bytes written."""
    lines, written = gzip.decompress(books.read_bytes()).splitlines(keepends=True), 0
    folder.mkdir()
    while written < num_bytes:
        with (folder / f"{written}.jsonl").open("wb") as file:
            for line in lines:
                written += file.write(line) if written < num_bytes else 0
    return written


def read(
    folder: str, tokenizer_folder: str, streaming: bool, buffer_size: int, max_length: int, answers
) -> None:
    import datasets
    from torch.utils.data import DataLoader

    from hfscale.arguments import StreamArguments
    from hfscale.data.packing import collate_rows, pack_splits
    from hfscale.data.splits import load_parts
    from hfscale.data.tokenizer import load_pretrained_tokenizer

    datasets.disable_progress_bars()
    tokenizer = load_pretrained_tokenizer(tokenizer_folder)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [part] = load_parts(
        StreamArguments(source=[folder], streaming=streaming, validation_fraction=0.02), seed=0
    )
    rows = pack_splits(part, tokenizer, max_length)["train"]
    if streaming:
        rows = rows.shuffle(seed=0, buffer_size=buffer_size, max_buffer_input_shards=1)
    tokens = sum(
        batch["labels"].numel()
        for batch in DataLoader(rows, batch_size=BATCH, collate_fn=collate_rows)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.put((before / 1024, peak / 1024, tokens, time.perf_counter() - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[20, 200])
    parser.add_argument("--shuffle_buffer_size", type=int, default=1000)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--in_memory", action="store_true", help="also without --streaming")
    parser.add_argument("--books", type=Path, default=BOOKS)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        from hfscale.data.sources import load_documents
        from hfscale.data.tokenizer import train_bpe

        tokenizer = Path(folder, "tokenizer")
        train_bpe(load_documents(str(options.books)).select(range(3)), 8192).save_pretrained(
            tokenizer
        )
        for i, megabytes in enumerate(options.megabytes):
            source = Path(folder, str(i))
            size = write_books(source, megabytes * 1e6, options.books)
            for streaming in (True, False) if options.in_memory else (True,):
                answers = context.Queue()
                settings = (options.shuffle_buffer_size, options.max_length, answers)
                process = context.Process(
                    target=read, args=(str(source), str(tokenizer), streaming, *settings)
                )
                process.start()
                before, peak, tokens, seconds = answers.get()
                process.join()
                print(
                    f"{size / 1e6:,.0f} MB {'streaming' if streaming else 'in memory'}: peak "
                    f"{peak:,.0f} MiB, {peak - before:,.0f} above the libraries; {tokens:,} tokens "
                    f"in {seconds:,.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
