"""Packed rows: every token is the target of exactly one prediction, and documents do not see each other."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from hfscale.config import InputError
from hfscale.data.packing import IGNORED, collate_rows, pack_documents, pack_splits
from hfscale.data.tokenizer import train_bpe, train_char
from hfscale.models import new_model

TEXTS = ["a small text", "ö", "a much longer text that fills more than one row of the packed kind, twice over", "end"]


@pytest.fixture(scope="module")
def documents():
    return Dataset.from_dict({"text": TEXTS})


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_bpe(documents, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = new_model(tokenizer, n_layer=2, n_head=2, n_embd=32, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
                      attn_pdrop=0.0)
    return model.eval()


def targets(rows):
    return [label for row in rows for label in row["labels"][1:] if label != IGNORED]


@pytest.mark.parametrize("max_length", [2, 5, 16, 64])
def test_every_token_is_scored_once_in_order(documents, tokenizer, max_length):
    stream = [token for text in TEXTS for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]
    for plain in (False, True):
        rows = pack_documents(documents, tokenizer, max_length, cross_document_attention=plain)
        assert targets(rows) == stream
        assert sum(rows["num_tokens"]) == len(stream)
        assert sum(rows["num_bytes"]) == sum(len(text.encode()) for text in TEXTS)


def test_rows_by_hand():
    documents = Dataset.from_dict({"text": ["abc", "d"]})
    tokenizer = train_char(documents)
    eos, a, b, c, d = tokenizer.convert_tokens_to_ids([tokenizer.eos_token, "a", "b", "c", "d"])
    rows = pack_documents(documents, tokenizer, 4)
    assert rows["input_ids"][:] == [[eos, a, b, c], [c, eos, d, eos]]
    assert rows["labels"][:] == [[eos, a, b, c], [c, eos, d, eos]]
    assert rows["position_ids"][:] == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert rows["num_bytes"][:] == [0, 4]  # both documents end in the second row
    wide = pack_documents(documents, tokenizer, 6)
    assert wide["input_ids"][:] == [[eos, a, b, c, eos, d], [d, eos, eos, eos, eos, eos]]
    assert wide["labels"][1] == [d, eos] + [IGNORED] * 4
    assert wide["position_ids"][0] == [0, 1, 2, 3, 0, 1]


def document_nll(model, tokenizer, text):
    """Alone in a batch, without packing."""
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def packed_nll(model, rows):
    batch = collate_rows(list(rows))
    with torch.no_grad():
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none",
                                             ignore_index=IGNORED)[labels != IGNORED]


def test_packed_loss_equals_each_document_alone(documents, tokenizer, model):
    short = documents.select([0, 1, 3])
    alone = torch.cat([document_nll(model, tokenizer, text) for text in short["text"]])
    packed = packed_nll(model, pack_documents(short, tokenizer, 64))
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    leaking = packed_nll(model, pack_documents(short, tokenizer, 64, cross_document_attention=True))
    assert (leaking - alone).abs().max() > 1e-3  # the switch really switches


def test_too_little_text_names_the_counts(tokenizer):
    few = Dataset.from_dict({"text": ["a small"]})
    with pytest.raises(InputError, match=r"fewer than one row of 64"):
        pack_splits(DatasetDict(train=few, validation=few), tokenizer, 64)


def test_collator_gives_int64_without_attention_mask(documents, tokenizer):
    batch = collate_rows(list(pack_documents(documents, tokenizer, 8)))
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert all(tensor.dtype == torch.int64 and tensor.shape[1] == 8 for tensor in batch.values())


def test_long_documents_are_tokenized_in_slices_alike(documents, tokenizer, monkeypatch):
    whole = pack_documents(documents, tokenizer, 16)["input_ids"][:]
    monkeypatch.setattr("hfscale.data.packing.SLICE_CHARACTERS", 10)
    again = Dataset.from_dict({"text": TEXTS})
    np.testing.assert_array_equal(pack_documents(again, tokenizer, 16)["input_ids"][:], whole)
