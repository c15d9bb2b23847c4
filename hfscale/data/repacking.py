"""Rows to train on that each epoch packs anew, of the documents in a new order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset

from hfscale.arguments import DataArguments, StreamArguments
from hfscale.data.layouts import (
    PackSettings,
    TokenStream,
    lay_out_rows,
    num_context_tokens,
    shares_eos,
    wrapped_layout,
)
from hfscale.process import InputError


def check_repacking(args: DataArguments) -> None:
    """Set in `args` the packing that `repack_each_epoch` means.

    Raises InputError: another packing, a stream, or a mixture.
    """
    if not args.repack_each_epoch:
        return
    args.packing = args.packing or "wrapped"
    if args.packing != "wrapped":
        raise InputError(
            f"repack_each_epoch: got packing {args.packing}, and works with wrapped alone; leave "
            "one of them out"
        )
    if not isinstance(args, StreamArguments):
        return
    if args.streaming:
        raise InputError(
            "repack_each_epoch: a stream is read in its own order; leave out --streaming, or "
            "repack_each_epoch"
        )
    if args.source_weights is not None or args.source_temperature is not None:
        raise InputError(
            "repack_each_epoch: a mixture is drawn of rows that are packed once; leave out "
            "--source_weights and --source_temperature, or repack_each_epoch"
        )


class RepackedRows(torch.utils.data.Dataset):
    """Rows of a `wrapped` packing whose documents come in another order in each epoch. There are as
    many in each, and each epoch has every token once. A row is cut out of the tokenized documents
    when it is asked for: in memory are three numbers per document.

    Args:
        documents: tokenized, in the columns `input_ids` (see `layouts.tokenize`), `num_tokens`
            (targets) and `num_bytes`; both count what all rows of an epoch hold together.
        settings: as for `pack_documents`.
        seed: draws the orders, together with the number of the epoch.

    Raises InputError: a single document.
    """

    def __init__(self, documents: Dataset, settings: PackSettings, seed: int):
        if len(documents) < 2:
            raise InputError(
                "repack_each_epoch: the training text is a single document, which has no other "
                "order; give --sample_by paragraph or line, or leave repack_each_epoch out"
            )
        self.documents = documents
        self.settings = settings
        self.seed = seed
        ids = documents.data.column("input_ids")
        self._lengths = pyarrow.compute.list_value_length(ids).to_numpy().astype(np.int64)
        self._num_tokens = int(self._lengths.sum()) + shares_eos(settings.tokenizer)
        self._num_context_tokens = num_context_tokens(settings.tokenizer)
        # Shared, since a data loader's processes may live through several epochs.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._drawn_epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Rows are those of this epoch, from 0, from now on, also in processes of a data loader."""
        self._epoch[0] = epoch
        self._draw_order()  # here, and not in each process that is forked for the epoch

    def _draw_order(self) -> None:
        epoch = int(self._epoch[0])
        if epoch == self._drawn_epoch:
            return
        generator = np.random.default_rng([self.seed, epoch])
        self._order = generator.permutation(len(self._lengths))
        self._stops = np.cumsum(self._lengths[self._order])
        self._drawn_epoch = epoch

    @property
    def column_names(self) -> list[str]:
        """Of each row."""
        return list(self[0])

    def __len__(self) -> int:
        # Consecutive rows share one token.
        return -(-(self._num_tokens - 1) // (self.settings.max_length - 1))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> dict[str, Any]:
        """One row: its columns as those of `pack_documents`, but for `num_bytes`."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        self._draw_order()
        first = row * (self.settings.max_length - 1)
        stream = self._cut_out(first, min(first + self.settings.max_length, self._num_tokens))
        layout = wrapped_layout(stream.starts, stream.ends, self.settings.max_length)
        rows = lay_out_rows(stream, layout, self.settings)
        return {name: column[0] for name, column in rows.items()}

    def _cut_out(self, first: int, stop: int) -> TokenStream:
        """These tokens of the epoch's stream, as a stream that ends with them."""
        begin, end = np.searchsorted(self._stops, [first, stop - 1], side="right")
        documents = self._order[begin : end + 1]
        starts = self._stops[begin : end + 1] - self._lengths[documents] - first
        size = stop - first
        column = self.documents.data.column("input_ids")
        pieces = [
            column[document].values[max(0, -start) : size - start].to_numpy()
            for document, start in zip(documents.tolist(), starts.tolist(), strict=True)
        ]
        ids = np.concatenate(pieces)
        if len(ids) < size:  # the EOS that ends the last document is in none
            ids = np.append(ids, np.int32(self.settings.tokenizer.eos_token_id))
        is_target = np.ones(size, bool)
        context = (starts[:, None] + np.arange(self._num_context_tokens)).ravel()
        is_target[context[(context >= 0) & (context < size)]] = False
        return TokenStream(ids, starts[starts >= 0], np.array([size - 1]), is_target)


def table_of(rows: Dataset | RepackedRows) -> Dataset:
    """What of training rows lies in a table: they, or the documents of which they are packed. Both
    have the columns `num_tokens` and `num_bytes`.
    """
    return rows.documents if isinstance(rows, RepackedRows) else rows
