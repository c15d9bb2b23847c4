"""A stream -> what is trained on and what is held out, by a hash of each document."""

import hashlib

from datasets import Dataset, DatasetDict, IterableDataset

from hfscale.data.embedded import TEXT_FEATURES
from hfscale.process import InputError

# Held out of a stream: it stays in memory, and is scored at each evaluation.
HELD_OUT_CHARACTERS = 2_000_000


def split_stream(
    documents: IterableDataset, split_by: str, fraction: float, seed: int
) -> DatasetDict:
    """A hash of text and seed says on which side a document is, so equal texts are on the same.

    The train part is a stream; of the other the first 2 million characters are kept in memory.

    Raises InputError: the last part is asked for, or one side has no document.
    """
    if split_by == "position":
        raise InputError(
            "split_by position: a stream has no last part; use --split_by document or "
            "--validation_source"
        )
    texts = _first_texts(_side(documents, True, fraction, seed))
    if not texts:
        raise InputError(
            f"validation_fraction: {fraction} holds out none of the stream's documents (equal ones "
            "are on the same side); raise it, or give a --validation_source"
        )
    train = _side(documents, False, fraction, seed)
    if next(iter(train), None) is None:
        raise InputError(
            f"validation_fraction: {fraction} holds out all of the stream's documents (equal ones "
            "are on the same side); lower it, or give a --validation_source"
        )
    validation = Dataset.from_dict({"text": texts}, features=TEXT_FEATURES)
    return DatasetDict(train=train, validation=validation)


def _side(
    documents: IterableDataset, held_out: bool, fraction: float, seed: int
) -> IterableDataset:
    arguments = {"wanted": held_out, "fraction": fraction, "seed": seed}
    return documents.filter(_is_on_side, input_columns="text", fn_kwargs=arguments)


def _is_on_side(text: str, wanted: bool, fraction: float, seed: int) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    is_held_out = int.from_bytes(digest, "big") < fraction * 2**64
    return is_held_out == wanted


def _first_texts(documents: IterableDataset) -> list[str]:
    """Whole documents, until they hold `HELD_OUT_CHARACTERS`."""
    texts = []
    num_characters = 0
    for document in documents:
        texts.append(document["text"])
        num_characters += len(document["text"])
        if num_characters >= HELD_OUT_CHARACTERS:
            break
    return texts
