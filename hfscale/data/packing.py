"""Documents -> rows of equal length, every token of every document the target of exactly one
prediction.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale import __version__
from hfscale.behaviour import random_ids, reads_as_alone, run_as_in_training
from hfscale.data.caches import kept
from hfscale.data.layouts import (
    IGNORED,
    LAYOUTS,
    MIN_SEGMENT_TOKENS,
    PackSettings,
    join_documents,
    lay_out_rows,
    num_context_tokens,
    tokenize,
)
from hfscale.data.repacking import RepackedRows
from hfscale.data.tokens import start_ids
from hfscale.models import context_limit, trial_size
from hfscale.process import InputError, is_main_rank

BATCH_DOCUMENTS = 1000  # packed together at most; rows never hold text of two batches
BATCH_CHARACTERS = 1_000_000  # about as much as that, in long documents
LOOKED_AT = 100  # documents, for how long they are
MIN_TRIAL_TOKENS = 4  # a shorter context has no room for two documents
# Documents that are packed for each epoch anew.
TOKEN_FEATURES = Features(
    input_ids=List(Value("int32")), num_tokens=Value("int64"), num_bytes=Value("int64")
)


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
    if cross_document_attention or size < MIN_TRIAL_TOKENS:
        return packing or default
    # Below an adapter it is the model that reads.
    get_base_model = getattr(model, "get_base_model", None)
    base_model = get_base_model() if get_base_model else model
    kind = type(base_model).__name__
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
    long = size - short
    rows = [_trial_row(model, short, long), _trial_row(model, long, short)]
    # Row, begin and end of each document.
    places = [(0, 0, short), (0, short, size), (1, 0, long), (1, long, size)]
    return reads_as_alone(model, collate_rows(rows), places)


def _reads_padded_rows(model: PreTrainedModel, size: int) -> bool:
    short = size // 2
    rows = [_trial_row(model, length) for length in (short, size)]
    for row in rows:
        del row["position_ids"]
    return reads_as_alone(model, collate_rows(rows), [(0, 0, short), (1, 0, size)])


def _trial_row(model: PreTrainedModel, *lengths: int) -> dict[str, list[int]]:
    """A packed row of documents of these lengths, of random tokens."""
    ids: list[int] = []
    position_ids: list[int] = []
    for length in lengths:
        ids += random_ids(model, length, seed=length).tolist()
        position_ids += range(length)
    return {"input_ids": ids, "labels": ids, "position_ids": position_ids}


def pack_splits(
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cross_document_attention: bool = False,
    model: PreTrainedModel | None = None,
    packing: str = "wrapped",
    num_proc: int | None = None,
    repack_seed: int | None = None,
) -> DatasetDict:
    """Every split through `pack_documents`, for a model that exists already or one made for this
    tokenizer, by `num_proc` processes; with a `repack_seed` those to train on anew for each epoch.

    Raises InputError: as there, rows longer than the model's context, or training text that does
    not fill one row.
    """
    if model is None:
        vocab_size = len(tokenizer)
    else:
        vocab_size = model.config.get_text_config().vocab_size
        _check_context(model, max_length)
    rows = DatasetDict()
    for name, part in documents.items():
        rows[name] = pack_documents(
            part,
            tokenizer,
            max_length,
            cross_document_attention=cross_document_attention,
            vocab_size=vocab_size,
            packing=packing,
            # A stream is packed by the workers that read it.
            num_proc=None if isinstance(part, IterableDataset) else num_proc,
            repack_seed=repack_seed if name == "train" else None,
        )
    if packing != "none":  # there a row may be short
        _check_fills_a_row(rows["train"], max_length)
    return rows


def _check_context(model: PreTrainedModel, max_length: int) -> None:
    context = context_limit(model)
    if context and max_length > context:
        raise InputError(
            f"max_length {max_length} is beyond the model's context of {context} tokens"
        )


def _check_fills_a_row(rows: Dataset | IterableDataset | RepackedRows, max_length: int) -> None:
    """Raises InputError for text of fewer tokens than a row has."""
    # Each row scores at least one token, so these rows tell whether there are enough.
    num_tokens = 1 + sum(row["num_tokens"] for row in islice(rows, max_length))
    if num_tokens < max_length:
        raise InputError(
            f"the training text holds {num_tokens:,} tokens, fewer than one row of {max_length:,}; "
            "give more text or a smaller --max_length"
        )


def pack_documents(
    documents: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cross_document_attention: bool = False,
    vocab_size: int | None = None,
    packing: str = "wrapped",
    num_proc: int | None = None,
    repack_seed: int | None = None,
) -> Dataset | IterableDataset | RepackedRows:
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
    packed by themselves: any `num_proc` gives the same rows. With a `repack_seed` nothing is packed
    here: `RepackedRows` does it for each epoch.

    Returns:
        Rows of `input_ids`, `labels`, `position_ids` (each `max_length` integers; with `none` up to
        as many, and no position ids: the model counts by itself), `num_tokens` (targets scored in
        the row) and `num_bytes` (UTF-8 bytes of the documents that end in it); both columns sum to
        the whole text's.

    Raises InputError: rows of fewer than 2 tokens, or a token id beyond the vocabulary (default:
    the tokenizer's).
    """
    if max_length < MIN_SEGMENT_TOKENS:
        raise InputError(f"max_length: got {max_length}, expected at least {MIN_SEGMENT_TOKENS}")
    settings = PackSettings(
        tokenizer=tokenizer,
        max_length=max_length,
        cross_document_attention=cross_document_attention,
        vocab_size=vocab_size or len(tokenizer),
        packing=packing,
    )
    if repack_seed is not None:
        tokenized = _map_batches(documents, _tokenize_batch, TOKEN_FEATURES, settings, num_proc)
        return RepackedRows(tokenized, settings, seed=repack_seed)
    features = _row_features(settings)
    if isinstance(documents, IterableDataset):
        return documents.map(
            _pack_batch,
            batched=True,
            batch_size=_documents_per_batch(documents),
            features=features,
            remove_columns=documents.column_names or ["text"],
            fn_kwargs={"settings": settings},
        )
    return _map_batches(documents, _pack_batch, features, settings, num_proc)


def _map_batches(
    documents: Dataset,
    make_rows: Callable[[dict, PackSettings], dict[str, Any]],
    features: Features,
    settings: PackSettings,
    num_proc: int | None,
) -> Dataset:
    """What `make_rows` makes of each batch of documents."""
    batch_size = _documents_per_batch(documents)
    # `map` cuts its rows into one run per process, wherever that falls; so here one of its rows
    # stands for a batch.
    batches = Dataset.from_dict({"start": range(0, len(documents), batch_size)})
    parts = [documents._fingerprint, settings, start_ids(settings.tokenizer), __version__]
    fingerprint = Hasher.hash([make_rows.__name__, *parts])

    def make(folder: Path | None = None) -> Dataset:
        return batches.map(
            lambda start: make_rows(documents[start[0] : start[0] + batch_size], settings),
            batched=True,
            batch_size=1,
            input_columns="start",
            remove_columns="start",
            features=features,
            num_proc=None if num_proc is None else max(1, min(num_proc, len(batches))),
            cache_file_name=str(folder / "rows.arrow") if folder else None,
            new_fingerprint=fingerprint,
            desc="Tokenizing and packing",
        )

    # Of documents in memory the rows are too.
    return kept("rows", fingerprint, make) if documents.cache_files else make()


def _documents_per_batch(documents: Dataset | IterableDataset) -> int:
    """As many as hold about `BATCH_CHARACTERS`, told by the first ones; at least one."""
    lengths = [len(document["text"]) for document in islice(documents, LOOKED_AT)]
    fitting = BATCH_CHARACTERS * len(lengths) // max(1, sum(lengths))
    return min(BATCH_DOCUMENTS, max(1, fitting))


def _row_features(settings: PackSettings) -> Features:
    """Columns of the rows; those of `none` have lengths of their own and count no positions."""
    is_padded_later = settings.packing == "none"
    length = -1 if is_padded_later else settings.max_length
    names = ["input_ids", "labels"]
    if not is_padded_later:
        names.append("position_ids")
    features = {name: List(Value("int32"), length=length) for name in names}
    return Features({**features, "num_tokens": Value("int64"), "num_bytes": Value("int64")})


def collate_rows(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of rows as int64 tensors, rows x longest, of those columns that the model takes
    (Trainer drops others).

    No attention mask: packed rows have position ids, which say it all, and shorter rows are filled
    on the right, which no earlier token attends to. No label is hidden, filler has none.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in ("input_ids", "labels", "position_ids"):
        if name in rows[0]:
            values = [_filled(row[name], name, longest) for row in rows]
            batch[name] = torch.from_numpy(np.array(values, dtype=np.int64))
    return batch


def _filled(values: list[int], name: str, longest: int) -> list[int]:
    if len(values) == longest:
        return values
    # Any token that the model knows; it has no label and nothing before attends to it.
    filler = IGNORED if name == "labels" else values[-1]
    return [*values, *[filler] * (longest - len(values))]


def _pack_batch(batch: dict, settings: PackSettings) -> dict[str, Any]:
    _give_memory_back()
    stream = join_documents(tokenize(batch["text"], settings.tokenizer), settings.tokenizer)
    _check_vocabulary(stream.ids, settings.vocab_size)
    lay_out = LAYOUTS[settings.packing]
    layout = lay_out(stream.starts, stream.ends, settings.max_length)
    rows: dict[str, Any] = lay_out_rows(stream, layout, settings)
    num_bytes = np.bincount(layout.row_of_end, _byte_counts(batch["text"]), len(layout.index))
    rows["num_bytes"] = num_bytes.astype(np.int64)
    if settings.packing == "none":
        lengths = (layout.index >= 0).sum(axis=1)
        del rows["position_ids"]
        for name in ("input_ids", "labels"):
            rows[name] = _cut(rows[name], lengths)
    return rows


def _tokenize_batch(batch: dict, settings: PackSettings) -> dict[str, Any]:
    _give_memory_back()
    documents = tokenize(batch["text"], settings.tokenizer)
    _check_vocabulary(np.concatenate(documents), settings.vocab_size)
    lengths = np.array([len(ids) for ids in documents])
    return {
        "input_ids": documents,
        "num_tokens": lengths - num_context_tokens(settings.tokenizer),
        "num_bytes": _byte_counts(batch["text"]),
    }


def _byte_counts(texts: list[str]) -> list[int]:
    """UTF-8 bytes of each."""
    return [len(text.encode()) for text in texts]


def _give_memory_back() -> None:
    """What the tokenizer freed, which glibc else keeps: a long stream took half as much again
    (tests/benchmarks/streaming_memory.py).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _check_vocabulary(ids: np.ndarray, vocab_size: int) -> None:
    if ids.max() >= vocab_size:
        raise InputError(
            f"token id {ids.max()} is outside the vocabulary of {vocab_size}; use the tokenizer "
            "that the model was trained with"
        )


def _cut(rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
