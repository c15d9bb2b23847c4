"""Rows that each epoch packs anew: those that the packer makes of the documents in another order."""

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader

from hfscale.data.layouts import IGNORED
from hfscale.data.packing import collate_rows, pack_documents, pack_splits
from hfscale.data.repacking import check_repacking, table_of
from hfscale.data.tokenizer import train_char
from hfscale.process import InputError
from recipes.finetune import FinetuneArguments
from recipes.pretrain import PretrainArguments
from tests.tokenizer_kinds import KINDS, make_tokenizer

SEED = 3
TEXTS = ["the cat sat on the mat", "no", "and the dog sat on the log " * 3, "the dog"]
DOCUMENTS = Dataset.from_dict({"text": TEXTS})
COLUMNS = ("input_ids", "labels", "position_ids", "num_tokens")


def columns_of(rows):
    return [{name: np.asarray(row[name]).tolist() for name in COLUMNS} for row in rows]


@pytest.mark.parametrize(
    ("kind", "max_length", "cross_document_attention"),
    [
        *((kind, 5, False) for kind in KINDS),
        ("nothing (GPT-2)", 2, False),
        ("BOS and EOS", 2, True),
        ("BOS and EOS", 64, False),
        ("nothing (GPT-2)", 64, True),
    ],
)
def test_rows_are_those_of_the_packer_for_the_epochs_order(
    kind, max_length, cross_document_attention
):
    tokenizer = make_tokenizer(kind)
    words = (tokenizer, max_length, cross_document_attention)
    rows = pack_documents(DOCUMENTS, *words, repack_seed=SEED)
    for epoch in (0, 1):
        order = np.random.default_rng([SEED, epoch]).permutation(len(TEXTS))
        rows.set_epoch(epoch)
        packed = pack_documents(DOCUMENTS.select(order, keep_in_memory=True), *words)
        assert columns_of(rows) == columns_of(packed)
        assert len(rows) == len(packed)
        for name in ("num_tokens", "num_bytes"):
            assert sum(table_of(rows)[name]) == sum(table_of(packed)[name])


@pytest.fixture(scope="module")
def lines():
    """Each is one document of a length and a letter of its own."""
    return Dataset.from_dict({"text": [chr(97 + i) * (3 * i + 1) for i in range(26)]})


@pytest.fixture
def rows(lines):
    return pack_documents(lines, train_char(lines), 16, repack_seed=SEED)


def letters_of(rows, tokenizer):
    targets = [label for row in rows for label in row["labels"][1:] if label != IGNORED]
    return tokenizer.decode(targets).split(tokenizer.eos_token)[:-1]


def test_each_epoch_has_every_document_once_and_cuts_it_elsewhere(lines, rows):
    tokenizer = train_char(lines)
    orders = []
    for epoch in range(3):
        rows.set_epoch(epoch)
        orders.append(letters_of(rows, tokenizer))
        assert Counter(orders[-1]) == Counter(lines["text"])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    again = pack_documents(lines, tokenizer, 16, repack_seed=SEED)
    assert letters_of(again, tokenizer) == orders[0]  # of epoch 0, where nobody says another
    other = pack_documents(lines, tokenizer, 16, repack_seed=SEED + 1)
    assert letters_of(other, tokenizer) != orders[0]


def test_rows_end_where_they_end(rows):
    assert len(list(rows)) == len(rows)
    with pytest.raises(IndexError):
        rows[len(rows)]
    assert rows.column_names == [*COLUMNS]


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_processes_of_a_data_loader_pack_for_the_epoch_too(rows, persistent_workers):
    loader = DataLoader(
        rows,
        batch_size=4,
        collate_fn=collate_rows,
        num_workers=1,
        persistent_workers=persistent_workers,
    )
    for epoch in (0, 1):
        rows.set_epoch(epoch)
        found = torch.cat([batch["input_ids"] for batch in loader])
        assert torch.equal(found, collate_rows(list(rows))["input_ids"])


@pytest.mark.parametrize(
    ("cls", "values", "says"),
    [
        (PretrainArguments, {"packing": "bfd_split"}, "got packing bfd_split, and works with wrap"),
        (FinetuneArguments, {"packing": "none"}, "got packing none, and works with wrapped alone"),
        (PretrainArguments, {"streaming": True}, "a stream is read in its own order; leave out"),
        (PretrainArguments, {"source_weights": [1.0]}, "a mixture is drawn of rows that are pac"),
        (PretrainArguments, {"source_temperature": 2.0}, "a mixture is drawn of rows that are"),
    ],
)
def test_what_it_does_not_work_with_is_refused(cls, values, says):
    check_repacking(cls(**values))  # without it, all of that works
    with pytest.raises(InputError, match=f"^repack_each_epoch: {says}"):
        check_repacking(cls(repack_each_epoch=True, **values))


def test_a_model_that_would_not_be_packed_is_asked_for_the_packing():
    args = FinetuneArguments(repack_each_epoch=True)
    check_repacking(args)
    assert args.packing == "wrapped"


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a single text, long enough"], "the training text is a single document"),
        (["a", "b"], "the training text holds 5 tokens, fewer than one row of 16"),
    ],
)
def test_text_that_cannot_be_repacked_is_refused(lines, texts, says):
    splits = DatasetDict(train=Dataset.from_dict({"text": texts}), validation=lines)
    with pytest.raises(InputError, match=says):
        pack_splits(splits, train_char(lines), 16, repack_seed=SEED)
