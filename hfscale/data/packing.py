"""Documents -> rows of equal length, every token of every document the target of exactly one prediction."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.config import InputError
from hfscale.models import context_limit

IGNORED = -100  # label that the loss passes over
SLICE_CHARACTERS = 2_000_000  # text given to the tokenizer at once: bounds its memory for long documents


def pack_splits(documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int,
                cross_document_attention: bool = False, model: PreTrainedModel | None = None) -> DatasetDict:
    """Every split through `pack_documents`, for a model that exists already or one made for this tokenizer.

    Raises:
        InputError: as there, rows longer than the model's context, or training text that does not fill one row.
    """
    vocab_size = len(tokenizer) if model is None else model.get_input_embeddings().num_embeddings
    context = None if model is None else context_limit(model)
    if context and max_length > context:
        raise InputError(f"max_length {max_length} is beyond the model's context of {context} tokens")
    rows = DatasetDict({name: pack_documents(part, tokenizer, max_length, cross_document_attention, vocab_size)
                        for name, part in documents.items()})
    tokens = sum(rows["train"][:2]["num_tokens"]) + 1
    if tokens < max_length:
        raise InputError(f"the training text holds {tokens:,} tokens, fewer than one row of {max_length:,}; "
                         "give more text or a smaller --max_length")
    return rows


def pack_documents(documents: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int,
                   cross_document_attention: bool = False, vocab_size: int | None = None) -> Dataset:
    """Tokenize and pack the column `text` into rows of `max_length` tokens.

    The stream is EOS d1 EOS d2 EOS ...: an EOS is the target that ends one document and the context that opens the
    next. Position ids restart at each EOS, which keeps packed documents from attending to each other (transformers
    builds the mask from them when there is no attention mask and no cache); with `cross_document_attention` they
    run through. A row that does not begin a stream begins with the last token of the row before, as context only
    (its label is never scored, the loss shifts by one), so no target is lost at the seams. The end of a last row is
    filled with EOS under label -100. The stream restarts every 1,000 documents, so `datasets` can cache and stream it.

    Returns:
        Rows of `input_ids`, `labels`, `position_ids` (each `max_length` integers), `num_tokens` (targets scored in the
        row) and `num_bytes` (UTF-8 bytes of the documents that end in it); both columns sum to the whole text's.

    Raises:
        InputError: rows of fewer than 2 tokens, or a token id beyond the vocabulary (default: the tokenizer's).
    """
    if max_length < 2:
        raise InputError(f"max_length: got {max_length}, expected at least 2")
    features = Features({name: List(Value("int32"), length=max_length)
                         for name in ("input_ids", "labels", "position_ids")}
                        | {"num_tokens": Value("int64"), "num_bytes": Value("int64")})
    settings = {"tokenizer": tokenizer, "max_length": max_length, "cross_document_attention": cross_document_attention,
                "vocab_size": vocab_size or len(tokenizer)}
    return documents.map(_pack_batch, batched=True, remove_columns=documents.column_names, features=features,
                         fn_kwargs=settings, desc="Tokenizing and packing")


def collate_rows(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of packed rows as int64 tensors, rows x length. No attention mask: the position ids say it all."""
    names = ("input_ids", "labels", "position_ids")
    return {name: torch.from_numpy(np.array([row[name] for row in rows], dtype=np.int64)) for name in names}


def _pack_batch(batch: dict, tokenizer: PreTrainedTokenizerBase, max_length: int,
                cross_document_attention: bool, vocab_size: int) -> dict[str, np.ndarray]:
    eos = tokenizer.eos_token_id
    documents = [np.append(ids, eos).astype(np.int32) for ids in encode_texts(batch["text"], tokenizer)]
    stream = np.concatenate([np.array([eos], np.int32), *documents])
    if stream.max() >= vocab_size:
        raise InputError(f"token id {stream.max()} is outside the vocabulary of {vocab_size}; use the tokenizer that "
                         "the model was trained with")
    ends = np.cumsum([len(ids) for ids in documents])  # index of each closing EOS in the stream
    stride = max_length - 1  # consecutive rows share one token
    num_rows = max(1, -(-(len(stream) - 1) // stride))
    index = np.arange(num_rows)[:, None] * stride + np.arange(max_length)
    inside = index < len(stream)
    safe = np.where(inside, index, 0)
    input_ids = np.where(inside, stream[safe], eos)
    num_tokens = inside[:, 1:].sum(axis=1)
    num_bytes = np.bincount((ends - 1) // stride, [len(text.encode()) for text in batch["text"]], num_rows)
    return {"input_ids": input_ids.astype(np.int32), "labels": np.where(inside, input_ids, IGNORED).astype(np.int32),
            "position_ids": _positions(safe, inside, ends[:-1], max_length, cross_document_attention),
            "num_tokens": num_tokens, "num_bytes": num_bytes.astype(np.int64)}


def _positions(index: np.ndarray, inside: np.ndarray, starts: np.ndarray, max_length: int,
               cross_document_attention: bool) -> np.ndarray:
    """Distance to the row's beginning or to the document's opening EOS, whichever is nearer. Padding counts on."""
    column = np.broadcast_to(np.arange(max_length), index.shape)
    if cross_document_attention:
        return column.astype(np.int32)
    opens = np.isin(index, starts) & inside
    latest = np.maximum.accumulate(np.where(opens, column, 0), axis=1)
    return (column - latest).astype(np.int32)


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Ids of each text without special tokens."""
    part, size = [], 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= SLICE_CHARACTERS:
            yield from _ids(part, tokenizer)
            part, size = [], 0
    if part:
        yield from _ids(part, tokenizer)


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids without special tokens; `verbose=False` because longer than the model's context is what packing is for."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
