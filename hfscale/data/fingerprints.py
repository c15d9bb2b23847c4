"""Equal text, equal fingerprint: what tells that two runs read the same."""

import hashlib
import json

from datasets import Dataset, IterableDataset

MOST_SAMPLED_ROWS = 256


def sampled_fingerprint(rows: Dataset) -> str:
    """SHA-256 over the number of rows and a few hundred of them, from the first to the last (16
    hexadecimal digits). It tells sets apart in no time, but for a change of few rows.
    """
    step = max(1, len(rows) // MOST_SAMPLED_ROWS)
    places = {*range(0, len(rows), step), len(rows) - 1}
    sample = rows.with_format(None).select(sorted(places))
    content = json.dumps([len(rows), list(sample)], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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
