"""Tokens of documents -> rows: the stream of a batch, where each of its tokens stands in a row, and
the columns of such rows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from hfscale.data.tokens import after_once, encode_texts, start_ids

IGNORED = -100  # label that the loss passes over
MIN_SEGMENT_TOKENS = 2  # one of context and one target


@dataclass(frozen=True)
class PackSettings:
    """How documents become rows; see `pack_documents`."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    cross_document_attention: bool
    vocab_size: int
    packing: str


class TokenStream(NamedTuple):
    """All documents of a batch one after the other."""

    ids: np.ndarray  # of all tokens
    starts: np.ndarray  # index of each document's first token
    ends: np.ndarray  # index of the EOS that ends it
    is_target: np.ndarray  # False: only stands in front of a document


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a stream stand in rows."""

    index: np.ndarray  # rows x max_length: index in the stream, -1 where the row is unused
    opens: np.ndarray  # rows x max_length: whether a document, or a rest of one, begins there
    row_of_end: np.ndarray  # for each document the row in which it ends


# ---- streams


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """The tokens of each document behind `start_ids` and before EOS.

    Where EOS itself begins a text, a single one ends a document and begins the next: it stands in
    front here, and `join_documents` adds the last.
    """
    front = start_ids(tokenizer)
    end = [] if shares_eos(tokenizer) else [tokenizer.eos_token_id]
    return [
        np.array([*after_once(front, encoded), *end], np.int32)
        for encoded in encode_texts(texts, tokenizer)
    ]


def shares_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the EOS that ends a document begins the next."""
    return start_ids(tokenizer) == [tokenizer.eos_token_id]


def num_context_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of each of `tokenize`'s documents are no targets."""
    return 0 if shares_eos(tokenizer) else len(start_ids(tokenizer))


def join_documents(
    documents: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase
) -> TokenStream:
    """The stream of a batch of `tokenize`'s documents."""
    lengths = [len(ids) for ids in documents]
    stops = np.cumsum(lengths)
    starts = stops - lengths
    if shares_eos(tokenizer):
        last_eos = np.array([tokenizer.eos_token_id], np.int32)
        ids = np.concatenate([*documents, last_eos])
        return TokenStream(ids, starts, stops, np.ones(len(ids), bool))
    ids = np.concatenate(documents)
    is_target = np.ones(len(ids), bool)
    is_target[starts[:, None] + np.arange(num_context_tokens(tokenizer))] = False
    return TokenStream(ids, starts, stops - 1, is_target)


# ---- layouts: `starts` and `ends` as in `TokenStream`


def wrapped_layout(starts: np.ndarray, ends: np.ndarray, max_length: int) -> Layout:
    """The stream cut into rows; consecutive rows share one token, which ends one as a target and
    begins the next as context.
    """
    stride = max_length - 1
    last = ends[-1]
    num_rows = -(-last // stride)  # rounded up
    index = np.arange(num_rows)[:, None] * stride + np.arange(max_length)
    is_start = np.zeros(num_rows * stride + 1, bool)
    is_start[starts] = True
    opens = is_start[index]
    row_of_end = (ends - 1) // stride
    return Layout(np.where(index <= last, index, -1), opens, row_of_end)


def _bfd_split_layout(starts: np.ndarray, ends: np.ndarray, max_length: int) -> Layout:
    """Several segments in a row, by best-fit decreasing."""
    segments = _segments(starts, ends, max_length)
    rows = best_fit([len(segment) for segment in segments], max_length)
    return _lay_out(rows, segments, ends, max_length)


def _single_layout(starts: np.ndarray, ends: np.ndarray, max_length: int) -> Layout:
    """One segment in a row."""
    segments = _segments(starts, ends, max_length)
    rows = [[number] for number in range(len(segments))]
    return _lay_out(rows, segments, ends, max_length)


LAYOUTS = {"wrapped": wrapped_layout, "bfd_split": _bfd_split_layout, "none": _single_layout}


def _segments(starts: np.ndarray, ends: np.ndarray, max_length: int) -> list[range]:
    """Where in the stream each document's full rows lie, and its rest, each with one token of
    context first.
    """
    segments: list[range] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        firsts = range(start, end, max_length - 1)
        segments += [range(first, min(first + max_length, end + 1)) for first in firsts]
    return segments


def _lay_out(
    rows: list[list[int]], segments: list[range], ends: np.ndarray, max_length: int
) -> Layout:
    """Each row holds the segments of these numbers, one behind the other."""
    index = np.full((len(rows), max_length), -1)
    opens = np.zeros(index.shape, bool)
    row_of_stop = {}  # by the index behind a segment's last token
    for row, numbers in enumerate(rows):
        place = 0
        for number in numbers:
            segment = segments[number]
            index[row, place : place + len(segment)] = np.arange(segment.start, segment.stop)
            opens[row, place] = True
            place += len(segment)
            row_of_stop[segment.stop] = row
    row_of_end = np.array([row_of_stop[end + 1] for end in ends.tolist()])
    return Layout(index, opens, row_of_end)


def best_fit(sizes: Sequence[int], max_length: int) -> list[list[int]]:
    """The segments in each row by best-fit decreasing: largest first, into the fullest row with
    room. Rows are in the order of the first segment that each holds.

    Source: Johnson 1973, "Near-optimal bin packing algorithms"; as packing of training rows Ding et
    al. 2024, arXiv:2404.10830.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free places, row), sorted, so the fullest is first
    for segment in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        fitting = bisect_left(open_rows, (sizes[segment], 0))
        if fitting < len(open_rows):
            free, row = open_rows.pop(fitting)
        else:
            rows.append([])
            free = max_length
            row = len(rows) - 1
        rows[row].append(segment)
        free -= sizes[segment]
        if free >= MIN_SEGMENT_TOKENS:  # else no segment fits any more
            insort(open_rows, (free, row))
    return sorted(rows, key=min)


# ---- rows


def lay_out_rows(
    stream: TokenStream, layout: Layout, settings: PackSettings
) -> dict[str, np.ndarray]:
    """The columns `input_ids`, `labels` and `position_ids` (each rows x max_length, int32) and
    `num_tokens`, the targets of each row.
    """
    is_used = layout.index >= 0
    input_ids = np.where(is_used, stream.ids[layout.index], settings.tokenizer.eos_token_id)
    is_scored = is_used & stream.is_target[layout.index]
    if settings.packing != "wrapped":
        # There the first token of a row, or of a document in it, is context only. In a wrapped row
        # the loss shifts by one, and the token that opens a document also ends the one before.
        is_scored &= ~layout.opens
    labels = np.where(is_scored, input_ids, IGNORED)
    return {
        "input_ids": input_ids.astype(np.int32, copy=False),
        "labels": labels.astype(np.int32, copy=False),
        "position_ids": _position_ids(layout.opens, settings.cross_document_attention),
        "num_tokens": (labels[:, 1:] != IGNORED).sum(axis=1),
    }


def _position_ids(opens: np.ndarray, cross_document_attention: bool) -> np.ndarray:
    """Distance to where the document begins; unused places count on."""
    places = np.broadcast_to(np.arange(opens.shape[1], dtype=np.int32), opens.shape)
    if cross_document_attention:
        return places
    begin_of_document = np.maximum.accumulate(np.where(opens, places, 0), axis=1)
    return places - begin_of_document
