"""Equal text, equal fingerprint: what tells that two runs read the same."""

import hashlib

from datasets import Dataset, IterableDataset


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
