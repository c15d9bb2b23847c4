"""What tokenizing and packing cost beside `tokenizers.encode_batch` alone on the same text.

    python tests/benchmarks/packing_speed.py --rounds 10

Documents of 4,000 characters, rows of 1,024 tokens, a BPE of 8,192 trained on a part of them.
"""

from pathlib import Path

import datasets
from datasets import Dataset
from measure import Row, compare, exactly, measured, take_turns
from running import run_alone
from texts import long_text, pieces_of

from hfscale.data.packing import pack_documents
from hfscale.data.tokenizer import train_bpe

ROW_TOKENS = 1024
DOCUMENT_CHARACTERS = 4000
TOKENIZER_DOCUMENTS = 200
PACKINGS = ("wrapped", "bfd_split")


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """Rows of the table for 1 or 4 MB of text."""
    datasets.disable_progress_bars()
    datasets.disable_caching()  # every round really packs
    texts = pieces_of(long_text(1_000_000 if is_small else 4_000_000), DOCUMENT_CHARACTERS)
    Dataset.from_dict({"text": texts}).save_to_disk(folder / "documents")
    documents = Dataset.load_from_disk(folder / "documents")
    tokenizer = train_bpe(documents.select(range(min(TOKENIZER_DOCUMENTS, len(texts)))), 8192)

    def encode():
        tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)

    def pack(packing):
        return pack_documents(documents, tokenizer, ROW_TOKENS, packing=packing)

    sides = {"encode_batch": lambda: measured(encode)}
    rows = []
    for packing in PACKINGS:
        sides[packing] = lambda packing=packing: measured(lambda: pack(packing))
        packed = pack(packing)
        unused = 1 - sum(packed["num_tokens"]) / len(packed) / (ROW_TOKENS - 1)
        rows.append(exactly(f"packing {packing}: share of the targets unused", unused))
    costs = take_turns(sides, rounds or (5 if is_small else 10))
    rows += [
        compare(f"packing {packing} / encode_batch", packing, "encode_batch", costs)
        for packing in PACKINGS
    ]
    return rows


if __name__ == "__main__":
    run_alone(benchmark, __doc__)
