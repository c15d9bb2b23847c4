"""Packed rows: every token is the target of exactly one prediction, and documents do not see each
other.
"""

from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from hfscale.data.layouts import IGNORED, best_fit
from hfscale.data.packing import collate_rows, pack_documents, pack_splits
from hfscale.data.tokenizer import train_bpe, train_char
from hfscale.data.tokens import encode_texts
from hfscale.new_models import new_model
from hfscale.process import InputError
from tests.tokenizer_kinds import KINDS, make_tokenizer

TEXTS = [
    "a small text",
    "ö",
    "a much longer text that fills more than one row of the packed kind, twice over",
    "end",
]


@pytest.fixture(scope="module")
def documents():
    return Dataset.from_dict({"text": TEXTS})


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_bpe(documents, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = new_model(
        tokenizer,
        n_layer=2,
        n_head=2,
        n_embd=32,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return model.eval()


def targets(rows):
    return [label for row in rows for label in row["labels"][1:] if label != IGNORED]


@pytest.mark.parametrize("max_length", [2, 5, 16, 64])
def test_every_token_is_scored_once_in_order(documents, tokenizer, max_length):
    stream = [
        token for text in TEXTS for token in [*tokenizer.encode(text), tokenizer.eos_token_id]
    ]
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


def test_rows_by_hand_where_another_token_begins_a_text():
    """BOS is read but never predicted, and each document begins with it: also one that has it
    written.
    """
    tokenizer = make_tokenizer("BOS and EOS")
    bos, eos, the, cat = tokenizer.convert_tokens_to_ids(["<s>", "</s>", "the", "Ġcat"])
    documents = Dataset.from_dict({"text": ["the cat", "<s>the"]})
    rows = pack_documents(documents, tokenizer, 4)
    assert rows["input_ids"][:] == [[bos, the, cat, eos], [eos, bos, the, eos]]
    assert rows["labels"][:] == [[IGNORED, the, cat, eos], [eos, IGNORED, the, eos]]
    assert rows["position_ids"][:] == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert rows["num_tokens"][:] == [3, 2] and rows["num_bytes"][:] == [7, 6]
    fitted = pack_documents(documents, tokenizer, 8, packing="bfd_split")
    assert fitted["input_ids"][:] == [[bos, the, cat, eos, bos, the, eos, eos]]
    assert fitted["labels"][:] == [[IGNORED, the, cat, eos, IGNORED, the, eos, IGNORED]]
    assert fitted["position_ids"][:] == [[0, 1, 2, 3, 0, 1, 2, 3]]
    narrow = pack_documents(documents, tokenizer, 3, packing="bfd_split")
    assert sorted(narrow["input_ids"][:]) == sorted(
        [[bos, the, cat], [cat, eos, eos], [bos, the, eos]]
    )


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split"])
@pytest.mark.parametrize("max_length", [5, 16, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_but_what_stands_in_front_is_scored_once(kind, max_length, packing):
    tokenizer = make_tokenizer(kind)
    texts = ["the cat sat on the mat", "no", "and the dog sat on the log " * 3]
    wanted = Counter(
        token for ids in encode_texts(texts, tokenizer) for token in [*ids, tokenizer.eos_token_id]
    )
    rows = pack_documents(
        Dataset.from_dict({"text": texts}), tokenizer, max_length, packing=packing
    )
    assert Counter(targets(rows)) == wanted
    assert sum(rows["num_tokens"]) == wanted.total()


@pytest.mark.parametrize("max_length", [2, 5, 16, 64])
def test_best_fit_scores_every_token_once(documents, tokenizer, max_length):
    eos = tokenizer.eos_token_id
    whole = [[eos, *tokenizer.encode(text), eos] for text in TEXTS]
    pieces = [
        ids[i : i + max_length] for ids in whole for i in range(0, len(ids) - 1, max_length - 1)
    ]
    rows = pack_documents(documents, tokenizer, max_length, packing="bfd_split")
    assert Counter(map(tuple, segments(rows))) == Counter(map(tuple, pieces))
    assert rows["num_tokens"][:] == [
        sum(label != IGNORED for label in row[1:]) for row in rows["labels"]
    ]
    assert sum(rows["num_tokens"]) == sum(len(ids) - 1 for ids in whole)
    assert sum(rows["num_bytes"]) == sum(len(text.encode()) for text in TEXTS)
    plain = pack_documents(
        documents, tokenizer, max_length, cross_document_attention=True, packing="bfd_split"
    )
    assert (
        plain["labels"][:] == rows["labels"][:]
    )  # labels keep to their document also when attention does not
    assert plain["position_ids"][:] == [list(range(max_length))] * len(rows)


def segments(rows):
    """What each stretch of counting position ids holds, up to its last label."""
    for row in rows:
        ids, labels, positions = row["input_ids"], row["labels"], row["position_ids"]
        bounds = [i for i, position in enumerate(positions) if position == 0] + [len(ids)]
        for start, stop in zip(bounds, bounds[1:], strict=False):
            scored = [i for i in range(start, stop) if labels[i] != IGNORED]
            assert scored == list(
                range(start + 1, start + 1 + len(scored))
            )  # all but the first; then padding
            assert [labels[i] for i in scored] == [ids[i] for i in scored]
            yield ids[start : start + 1 + len(scored)]


def test_best_fit_rows_by_hand():
    documents = Dataset.from_dict(
        {"text": ["abcdefg", "d", "ab", "c"]}
    )  # with both EOS 9, 3, 4 and 3 tokens
    tokenizer = train_char(documents)
    rows = pack_documents(documents, tokenizer, 6, packing="bfd_split")
    eos, a, b, c, d, e, f, g = tokenizer.convert_tokens_to_ids([tokenizer.eos_token, *"abcdefg"])
    # Pieces: eos-abcde (6) and its rest e-fg-eos (4); 3; 4; 3. Largest first: 6 | 4 | 4 | 3, 3.
    assert rows["input_ids"][:] == [
        [eos, a, b, c, d, e],
        [e, f, g, eos, eos, eos],
        [eos, d, eos, eos, c, eos],
        [eos, a, b, eos, eos, eos],
    ]
    no = IGNORED
    assert rows["labels"][:] == [
        [no, a, b, c, d, e],
        [no, f, g, eos, no, no],
        [no, d, eos, no, c, eos],
        [no, a, b, eos, no, no],
    ]
    assert rows["position_ids"][:] == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 0, 1, 2],
        [0, 1, 2, 3, 4, 5],
    ]
    assert (rows["num_tokens"][:], rows["num_bytes"][:]) == ([5, 3, 4, 3], [0, 7, 2, 2])


def test_single_rows_by_hand():
    documents = Dataset.from_dict({"text": ["abcdefg", "d", "", "c"]})
    tokenizer = train_char(documents)
    rows = pack_documents(documents, tokenizer, 6, packing="none")
    eos, a, b, c, d, e, f, g = tokenizer.convert_tokens_to_ids([tokenizer.eos_token, *"abcdefg"])
    no = IGNORED
    assert rows["input_ids"][:] == [
        [eos, a, b, c, d, e],
        [e, f, g, eos],
        [eos, d, eos],
        [eos, eos],
        [eos, c, eos],
    ]
    assert rows["labels"][:] == [
        [no, a, b, c, d, e],
        [no, f, g, eos],
        [no, d, eos],
        [no, eos],
        [no, c, eos],
    ]
    assert rows.column_names == [
        "input_ids",
        "labels",
        "num_tokens",
        "num_bytes",
    ]  # the model counts places itself
    assert (rows["num_tokens"][:], rows["num_bytes"][:]) == ([5, 3, 2, 1, 2], [0, 7, 1, 0, 1])
    batch = collate_rows([rows[1], rows[3]])
    assert batch["input_ids"].tolist() == [[e, f, g, eos], [eos, eos, eos, eos]]
    assert batch["labels"].tolist() == [[no, f, g, eos], [no, eos, no, no]]
    assert set(batch) == {"input_ids", "labels"}


@pytest.mark.parametrize("max_length", [2, 5, 16, 64])
def test_single_rows_score_every_token_once_and_as_alone(documents, tokenizer, model, max_length):
    rows = pack_documents(documents, tokenizer, max_length, packing="none")
    stream = [
        token for text in TEXTS for token in [*tokenizer.encode(text), tokenizer.eos_token_id]
    ]
    assert targets(rows) == stream
    assert sum(rows["num_tokens"]) == len(stream)
    assert sum(rows["num_bytes"]) == sum(len(text.encode()) for text in TEXTS)
    assert max(map(len, rows["input_ids"])) <= max_length
    if max_length == 64:
        alone = torch.cat([document_nll(model, tokenizer, text) for text in TEXTS])
        torch.testing.assert_close(packed_nll(model, rows), alone, atol=1e-5, rtol=0)


def test_best_fit_takes_the_fullest_row_and_never_overfills():
    assert best_fit([3, 6, 5, 2, 4], 10) == [
        [2, 0, 3],
        [1, 4],
    ]  # 6, then 5; 4 fills the first; 3 and 2 the second
    sizes = np.random.default_rng(0).integers(2, 101, 3000).tolist()
    rows = best_fit(sizes, 100)
    assert sorted(segment for row in rows for segment in row) == list(
        range(3000)
    )  # each in one place
    room = [100 - sum(sizes[segment] for segment in row) for row in rows]
    free: list[int] = []  # the same rule by search through all rows
    for size in sorted(sizes, reverse=True):
        fits = [i for i, room in enumerate(free) if room >= size]
        if fits:
            free[min(fits, key=lambda i: free[i])] -= size
        else:
            free.append(100 - size)
    assert sorted(room) == sorted(free) and min(room) >= 0


def document_nll(model, tokenizer, text):
    """Alone in a batch, without packing."""
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def packed_nll(model, rows):
    batch = collate_rows(list(rows))
    with torch.no_grad():
        logits = model(
            batch["input_ids"], position_ids=batch.get("position_ids"), use_cache=False
        ).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
    )[labels != IGNORED]


def test_packed_loss_equals_each_document_alone(documents, tokenizer, model):
    short = documents.select([0, 1, 3])
    alone = torch.cat([document_nll(model, tokenizer, text) for text in short["text"]])
    packed = packed_nll(model, pack_documents(short, tokenizer, 64))
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    leaking = packed_nll(model, pack_documents(short, tokenizer, 64, cross_document_attention=True))
    assert (leaking - alone).abs().max() > 1e-3  # the switch really switches


@pytest.mark.parametrize("max_length", [16, 64])
def test_best_fit_loss_equals_each_document_alone(documents, tokenizer, model, max_length):
    short = documents.select([0, 1, 3])
    rows = pack_documents(short, tokenizer, max_length, packing="bfd_split")
    assert len(rows) < 3  # something shares a row
    alone = torch.cat([document_nll(model, tokenizer, text) for text in short["text"]])
    torch.testing.assert_close(
        packed_nll(model, rows).sort()[0], alone.sort()[0], atol=1e-5, rtol=0
    )


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
    monkeypatch.setattr("hfscale.data.tokens.SLICE_CHARACTERS", 10)
    again = Dataset.from_dict({"text": TEXTS})
    np.testing.assert_array_equal(pack_documents(again, tokenizer, 16)["input_ids"][:], whole)


@pytest.fixture
def many(monkeypatch):
    """100 documents in batches of 7: document i repeats one character of its own, so a token names
    its document.
    """
    monkeypatch.setattr("hfscale.data.packing.BATCH_DOCUMENTS", 7)
    documents = Dataset.from_dict(
        {"text": [chr(0x4E00 + i) * (1 + i * 7 % 13) for i in range(100)]}
    )
    return documents, train_char(documents)


def as_lists(rows):
    return [
        (
            list(row["input_ids"]),
            list(row["labels"]),
            list(row.get("position_ids", [])),
            int(row["num_tokens"]),
            int(row["num_bytes"]),
        )
        for row in rows
    ]


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split", "none"])
def test_the_number_of_processes_changes_no_row(packing):
    documents = Dataset.from_dict(
        {"text": ["abcdefghij"[: 1 + i * 7 % 10] for i in range(2500)]}
    )  # 3 batches
    tokenizer = train_char(documents)
    splits = DatasetDict(train=documents, validation=documents.select(range(3)))
    alone, one, two = (
        pack_splits(splits, tokenizer, 64, packing=packing, num_proc=num_proc)
        for num_proc in (None, 1, 2)
    )
    for name in splits:
        assert as_lists(alone[name]) == as_lists(one[name]) == as_lists(two[name])
    assert as_lists(pack_documents(documents, tokenizer, 64, packing=packing, num_proc=2)) == (
        as_lists(alone["train"])
    )


def test_rows_of_documents_on_disk_are_kept(documents, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    documents.save_to_disk(tmp_path / "saved")
    saved = Dataset.load_from_disk(tmp_path / "saved")
    first = pack_documents(saved, tokenizer, 16)
    [file] = (tmp_path / "cache").glob("hfscale/rows-*/rows.arrow")
    written = file.stat().st_mtime_ns
    assert as_lists(pack_documents(saved, tokenizer, 16)) == as_lists(first)
    assert as_lists(pack_documents(saved, tokenizer, 16, num_proc=2)) == as_lists(first)
    assert file.stat().st_mtime_ns == written
    for other in (
        pack_documents(saved, tokenizer, 16, packing="bfd_split"),
        pack_documents(saved, tokenizer, 8),
        pack_documents(saved.select([0, 1]), tokenizer, 16),
    ):
        assert as_lists(other) != as_lists(first)


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split", "none"])
def test_streaming_gives_the_same_rows(many, packing):
    documents, tokenizer = many
    rows = pack_documents(documents, tokenizer, 16, packing=packing)
    for num_shards in (1, 3):
        streamed = pack_documents(
            documents.to_iterable_dataset(num_shards=num_shards), tokenizer, 16, packing=packing
        )
        assert as_lists(streamed) == as_lists(rows)
    first = collate_rows(rows.select([0, 1]).to_list())["input_ids"]
    assert torch.equal(collate_rows(list(islice(streamed, 2)))["input_ids"], first)


@pytest.mark.parametrize(
    "num_shards", [3, 4]
)  # 3: both ranks read all shards and take every other row
@pytest.mark.parametrize("packing", ["wrapped", "bfd_split"])
def test_ranks_and_workers_share_the_stream_out(many, packing, num_shards):
    documents, tokenizer = many
    stream = pack_documents(
        documents.to_iterable_dataset(num_shards=num_shards), tokenizer, 16, packing=packing
    )
    for rows in (stream, stream.shuffle(seed=1, buffer_size=8)):
        seen = Counter()
        for rank in range(2):
            loader = DataLoader(
                split_dataset_by_node(rows, rank, 2),
                batch_size=2,
                num_workers=2,
                collate_fn=as_lists,
            )
            seen.update(
                label
                for batch in loader
                for row in batch
                for label in row[1][1:]
                if label != IGNORED
            )
        assert seen == Counter(targets(pack_documents(documents, tokenizer, 16, packing=packing)))


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split", "none"])
def test_a_stream_resumes_at_the_next_row(many, packing):
    """Without a shuffle buffer by its state. A buffer's rows are not in the state, so there by
    skipping.
    """
    documents, tokenizer = many

    def stream():
        return pack_documents(
            documents.to_iterable_dataset(num_shards=3), tokenizer, 16, packing=packing
        )

    rows = as_lists(stream())
    for done in (1, 4, 5, 6, 30, len(rows) - 1):
        before, after = stream(), stream()
        assert as_lists(islice(before, done)) == rows[:done]
        after.load_state_dict(before.state_dict())
        assert as_lists(after) == rows[done:]
    shuffled = as_lists(stream().shuffle(seed=1, buffer_size=8))
    assert shuffled != rows
    assert as_lists(stream().shuffle(seed=1, buffer_size=8).skip(30)) == shuffled[30:]


def test_truncation_and_padding_in_a_tokenizer_file_do_not_apply(documents, tokenizer):
    rows = pack_documents(documents, tokenizer, 16)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert as_lists(pack_documents(documents, tokenizer, 16)) == as_lists(rows)
