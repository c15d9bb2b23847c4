"""Equal text, equal fingerprint: what tells that two runs read the same."""

import hashlib
import json
from typing import Any

import pyarrow as pa
import xxhash
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase


def text_fingerprint(documents: Dataset | IterableDataset) -> str:
    """SHA-256 over the texts in their order (16 hexadecimal digits): equal text, equal
    fingerprint.
    """
    digest = hashlib.sha256()
    for batch in documents.iter(100):
        for text in batch["text"]:
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def text_digest(text: str) -> bytes:
    """16 bytes, equal for equal texts; others almost surely differ."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def rows_fingerprint(rows: Dataset) -> str:
    """XXH3 (32 hexadecimal digits) over what every row holds, in their order, however files and
    indices of rows hold them. A gigabyte takes half a second.
    """
    digest = xxhash.xxh3_128()
    for batch in rows.with_format("arrow").iter(1000):
        # Joined with an empty piece it is copied; a slice would be written with what surrounds it.
        table = pa.concat_tables([batch, batch.slice(0, 0)]).combine_chunks()
        table = table.replace_schema_metadata(None)
        written = pa.BufferOutputStream()
        with pa.ipc.new_stream(written, table.schema) as writer:
            writer.write_table(table)
        digest.update(written.getvalue())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what a tokenizer makes of texts and conversations (16 hexadecimal digits)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        rules: Any = tokenizer.get_vocab()
    else:
        rules = json.loads(backend.to_str())
        for name in ("padding", "truncation"):  # of the last call
            del rules[name]
    content = [
        type(tokenizer).__name__,
        rules,
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
    ]
    described = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:16]
