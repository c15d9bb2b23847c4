"""Documents -> rows of equal length, every token of every document the target of exactly one
prediction.
"""

import contextlib
import ctypes
import sys
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale import __version__
from hfscale.behaviour import random_ids, reads_as_alone, run_as_in_training
from hfscale.data.tokens import after_once, encode_texts, start_ids
from hfscale.models import context_limit, trial_size
from hfscale.process import InputError, is_main_rank

IGNORED = -100  # label that the loss passes over
BATCH_DOCUMENTS = 1000  # packed together at most; rows never hold text of two batches
BATCH_CHARACTERS = 1_000_000  # about as much as that, in long documents


def settle_packing(
    model: PreTrainedModel,
    packing: str | None,
    *,
    default: str,
    cross_document_attention: bool = False,
) -> str:
    """How documents become rows for this model: `packing` as it was asked for, else `default`, or
    `none` where the model lets documents in one row see each other and they should not. That is
    tried on two short ones (`reads_as_alone`): no configuration tells. Every rank asks.

    Raises InputError: a packing was asked for by name and does not keep documents apart, or not
    even `none` does.
    """
    size = trial_size(model)
    if cross_document_attention or size < 4:  # a context too short for two documents
        return packing or default
    kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    try:
        run_as_in_training(model, collate_rows([_trial_row(model, size)]))
        if packing != "none" and _keeps_apart(model, size):
            return packing or default
        readable = _reads_padded_rows(model, size)
    except Exception as error:  # whatever a model's own code raises; training would raise it later
        raise InputError(
            f"model: {kind} cannot read a row of {size} tokens: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    if not readable:
        raise InputError(
            f"model: {kind} reads a text in another way when its row is padded beside a longer "
            "one, so neither packed nor padded rows train it right; take another model"
        )
    if packing not in ("none", None):
        raise InputError(
            f"packing {packing}: {kind} lets documents that share a row see each other; use "
            "--packing none, which gives each a row of its own"
        )
    if packing is None and is_main_rank():
        print(
            f"packing: {kind} lets documents that share a row see each other, so each gets a row "
            "of its own, padded in its batch (--packing none)",
            file=sys.stderr,
        )
    return "none"


def _keeps_apart(model: PreTrainedModel, size: int) -> bool:
    """Tried in a batch of two rows, each of two documents in the other order."""
    short = size // 2 - 1
    rows = [
        _trial_row(model, *lengths) for lengths in ((short, size - short), (size - short, short))
    ]
    places = [(0, 0, short), (0, short, size), (1, 0, size - short), (1, size - short, size)]
    return reads_as_alone(model, collate_rows(rows), places)


def _reads_padded_rows(model: PreTrainedModel, size: int) -> bool:
    short = size // 2
    rows = [_trial_row(model, length) for length in (short, size)]
    for row in rows:
        del row["position_ids"]
    return reads_as_alone(model, collate_rows(rows), [(0, 0, short), (1, 0, size)])


def _trial_row(model: PreTrainedModel, *lengths: int) -> dict[str, list[int]]:
    """A packed row of documents of these lengths, of random tokens."""
    ids = [token for length in lengths for token in random_ids(model, length, seed=length).tolist()]
    return {
        "input_ids": ids,
        "labels": ids,
        "position_ids": [place for length in lengths for place in range(length)],
    }


def pack_splits(
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cross_document_attention: bool = False,
    model: PreTrainedModel | None = None,
    packing: str = "wrapped",
    num_proc: int | None = None,
) -> DatasetDict:
    """Every split through `pack_documents`, for a model that exists already or one made for this
    tokenizer, by `num_proc` processes.

    Raises InputError: as there, rows longer than the model's context, or training text that does
    not fill one row.
    """
    vocab_size = len(tokenizer) if model is None else model.config.get_text_config().vocab_size
    context = None if model is None else context_limit(model)
    if context and max_length > context:
        raise InputError(
            f"max_length {max_length} is beyond the model's context of {context} tokens"
        )
    settings = (tokenizer, max_length, cross_document_attention, vocab_size, packing, num_proc)
    rows = DatasetDict({name: pack_documents(part, *settings) for name, part in documents.items()})
    if packing == "none":  # a row may be short
        return rows
    tokens = (
        sum(row["num_tokens"] for row in islice(rows["train"], max_length)) + 1
    )  # at least one in each row
    if tokens < max_length:
        raise InputError(
            f"the training text holds {tokens:,} tokens, fewer than one row of {max_length:,}; "
            "give more text or a smaller --max_length"
        )
    return rows


def pack_documents(
    documents: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cross_document_attention: bool = False,
    vocab_size: int | None = None,
    packing: str = "wrapped",
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Tokenize and pack the column `text` into rows of `max_length` tokens.

    `packing="wrapped"`: EOS d1 EOS d2 EOS ... is cut into rows, or BOS d1 EOS BOS d2 EOS ... where
    another token begins a text (see `start_ids`), which is no target. A row begins with the last
    token of the row before, as context only (its label is never scored, the loss shifts by one), so
    no target is lost at the seams. `packing="bfd_split"`: each document is EOS d EOS (BOS d EOS) of
    its own and is never cut when that fits into a row; a longer one gives full rows as above and a
    rest. The first token of each has label -100. `packing="none"`: the same documents, full rows
    and rests, each a row of its own length, for models that do not keep packed documents apart.

    Position ids restart where a document (or rest) begins, from which transformers builds the mask
    when there is no attention mask and no cache; with `cross_document_attention` they run through.
    Unused space at a row's end holds EOS under label -100. Batches (see `BATCH_DOCUMENTS`) are
    packed by themselves: any `num_proc` gives the same rows.

    Returns:
        Rows of `input_ids`, `labels`, `position_ids` (each `max_length` integers; with `none` up to
        as many, and no position ids: the model counts by itself), `num_tokens` (targets scored in
        the row) and `num_bytes` (UTF-8 bytes of the documents that end in it); both columns sum to
        the whole text's.

    Raises InputError: rows of fewer than 2 tokens, or a token id beyond the vocabulary (default:
    the tokenizer's).
    """
    if max_length < 2:
        raise InputError(f"max_length: got {max_length}, expected at least 2")
    one_each = packing == "none"
    names = ("input_ids", "labels") if one_each else ("input_ids", "labels", "position_ids")
    length = -1 if one_each else max_length
    features = Features(
        {name: List(Value("int32"), length=length) for name in names}
        | {"num_tokens": Value("int64"), "num_bytes": Value("int64")}
    )
    settings = {
        "tokenizer": tokenizer,
        "max_length": max_length,
        "cross_document_attention": cross_document_attention,
        "vocab_size": vocab_size or len(tokenizer),
        "packing": packing,
    }
    head = [len(document["text"]) for document in islice(documents, 100)]
    size = min(BATCH_DOCUMENTS, max(1, BATCH_CHARACTERS * len(head) // max(1, sum(head))))
    if isinstance(documents, IterableDataset):
        return documents.map(
            _pack_batch,
            batched=True,
            batch_size=size,
            features=features,
            remove_columns=documents.column_names or ["text"],
            fn_kwargs=settings,
        )
    # `map` cuts its rows into one run per process, wherever that falls; so here one of its rows
    # stands for a batch.
    batches = Dataset.from_dict({"start": range(0, len(documents), size)})
    fingerprint = Hasher.hash([documents._fingerprint, settings, start_ids(tokenizer), __version__])
    files = documents.cache_files  # none: the documents are in memory, and so will the rows be
    cache = (
        str(Path(files[0]["filename"]).with_name(f"cache-{fingerprint}.arrow")) if files else None
    )
    return batches.map(
        lambda start: _pack_batch(documents[start[0] : start[0] + size], **settings),
        batched=True,
        batch_size=1,
        input_columns="start",
        remove_columns="start",
        features=features,
        num_proc=num_proc,
        cache_file_name=cache,
        new_fingerprint=fingerprint,
        desc="Tokenizing and packing",
    )


def collate_rows(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of rows as int64 tensors, rows x longest, of those columns that the model takes
    (Trainer drops others).

    No attention mask: packed rows have position ids, which say it all, and shorter rows are filled
    on the right, which no earlier token attends to. No label is hidden, filler has none.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    names = [name for name in ("input_ids", "labels", "position_ids") if name in rows[0]]
    return {
        name: torch.from_numpy(
            np.array([_filled(row, name, longest) for row in rows], dtype=np.int64)
        )
        for name in names
    }


def _filled(row: dict, name: str, longest: int) -> list[int]:
    values = row[name]
    filler = IGNORED if name == "labels" else values[-1]  # any token that the model knows
    return values if len(values) == longest else [*values, *[filler] * (longest - len(values))]


def _pack_batch(
    batch: dict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cross_document_attention: bool,
    vocab_size: int,
    packing: str,
) -> dict[str, np.ndarray | list[np.ndarray]]:
    with contextlib.suppress(
        OSError, AttributeError
    ):  # glibc: give back what the tokenizer freed, else a long stream
        ctypes.CDLL(None).malloc_trim(
            0
        )  # takes half as much again (tests/benchmarks/streaming_memory.py)
    eos = tokenizer.eos_token_id
    stream, starts, ends, is_target = _stream(batch["text"], tokenizer)
    if stream.max() >= vocab_size:
        raise InputError(
            f"token id {stream.max()} is outside the vocabulary of {vocab_size}; use the tokenizer "
            "that the model was trained with"
        )
    layouts = {"wrapped": _wrapped_layout, "bfd_split": _bfd_split_layout, "none": _single_layout}
    index, opens, row_of_end = layouts[packing](starts, ends, max_length)
    inside = index >= 0
    scored = inside & is_target[index]
    input_ids = np.where(inside, stream[index], np.int32(eos))
    labels = np.where(
        scored if packing == "wrapped" else scored & ~opens, input_ids, np.int32(IGNORED)
    )
    position_ids = np.broadcast_to(np.arange(max_length, dtype=np.int32), index.shape)
    if not cross_document_attention:  # distance to where the document begins; padding counts on
        position_ids = position_ids - np.maximum.accumulate(
            np.where(opens, position_ids, 0), axis=1
        )
    num_bytes = np.bincount(row_of_end, [len(text.encode()) for text in batch["text"]], len(index))
    counts = {
        "num_tokens": (labels[:, 1:] != IGNORED).sum(axis=1),
        "num_bytes": num_bytes.astype(np.int64),
    }
    if packing == "none":
        lengths = inside.sum(axis=1)
        trimmed = {
            name: [row[:length] for row, length in zip(rows, lengths, strict=True)]
            for name, rows in (("input_ids", input_ids), ("labels", labels))
        }
        return trimmed | counts
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids} | counts


def _stream(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All documents one after the other, the index of what each begins and ends with, and which
    tokens are targets: those that only stand in front of a document are none. A single EOS ends a
    document and begins the next.
    """
    eos, front = tokenizer.eos_token_id, start_ids(tokenizer)
    shared = front == [eos]
    whole = (after_once(front, ids) for ids in encode_texts(texts, tokenizer))
    documents = [np.array([*ids[shared:], eos], np.int32) for ids in whole]
    if shared:
        documents.insert(0, np.array([eos], np.int32))
    stream = np.concatenate(documents)
    lasts = np.cumsum([len(ids) for ids in documents]) - 1  # index of each EOS
    starts, ends = (lasts[:-1], lasts[1:]) if shared else (np.array([0, *(lasts[:-1] + 1)]), lasts)
    is_target = np.ones(len(stream), bool)
    if not shared:
        is_target[starts[:, None] + np.arange(len(front))] = False
    return stream, starts, ends, is_target


def _wrapped_layout(
    starts: np.ndarray, ends: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place of each row its index in the stream (-1: padding) and whether it opens a
    document; for each document the row in which it ends.
    """
    stride = max_length - 1  # consecutive rows share one token
    num_rows = -(-ends[-1] // stride)
    index = np.arange(num_rows)[:, None] * stride + np.arange(max_length)
    is_start = np.zeros(num_rows * stride + 1, bool)
    is_start[starts] = True
    return np.where(index <= ends[-1], index, -1), is_start[index], (ends - 1) // stride


def _bfd_split_layout(
    starts: np.ndarray, ends: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_wrapped_layout`, several segments in a row."""
    segments = _segments(starts, ends, max_length)
    return _lay_out(
        best_fit([len(segment) for segment in segments], max_length), segments, ends, max_length
    )


def _single_layout(
    starts: np.ndarray, ends: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_wrapped_layout`, one segment in a row."""
    segments = _segments(starts, ends, max_length)
    return _lay_out([[i] for i in range(len(segments))], segments, ends, max_length)


def _segments(starts: np.ndarray, ends: np.ndarray, max_length: int) -> list[range]:
    """Where in the stream each document's full rows lie, and its rest, each with one token of
    context first.
    """
    return [
        range(first, min(first + max_length, end + 1))
        for start, end in zip(starts, ends, strict=True)
        for first in range(start, end, max_length - 1)
    ]


def _lay_out(
    rows: list[list[int]], segments: list[range], ends: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index = np.full((len(rows), max_length), -1)
    opens, row_of_stop = np.zeros(index.shape, bool), {}
    for row, held in enumerate(rows):
        at = 0
        for segment in (segments[i] for i in held):
            index[row, at : at + len(segment)] = np.arange(segment.start, segment.stop)
            opens[row, at] = True
            at += len(segment)
            row_of_stop[segment.stop] = row
    return index, opens, np.array([row_of_stop[end + 1] for end in ends.tolist()])


def best_fit(sizes: Sequence[int], max_length: int) -> list[list[int]]:
    """The segments in each row by best-fit decreasing: largest first, into the fullest row with
    room. Rows are in the order of the first segment that each holds.
    """
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free places, row), sorted
    for segment in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(space, (sizes[segment], 0))
        if at == len(space):
            rows.append([])
        free, row = space.pop(at) if at < len(space) else (max_length, len(rows) - 1)
        rows[row].append(segment)
        if free - sizes[segment] >= 2:  # no segment is smaller
            insort(space, (free - sizes[segment], row))
    return sorted(rows, key=min)
