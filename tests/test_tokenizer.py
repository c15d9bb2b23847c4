"""Tokenizers: any text round-trips, EOS and padding are two tokens, and ranks share one copy."""

import os

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from hfscale.config import InputError
from hfscale.data.tokenizer import load_pretrained_tokenizer, load_tokenizer, train_bpe, train_char

DOCUMENTS = Dataset.from_dict({"text": ["The cat sat on the mat.\n\n\tThe dog did not. Größe 😀"] * 3})
ODD = ["", " ", "  two  spaces ", "tab\tnewline\n\r\n", "Größe 😀 日本語", "\x00\x01\x7f", " .,!?'s don't n't"]


@pytest.mark.parametrize("text", ODD)
def test_bpe_round_trips_anything(text):
    tokenizer = train_bpe(DOCUMENTS, 300)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids and tokenizer.pad_token_id not in ids


def test_vocabulary_size_and_special_tokens():
    tokenizer = train_bpe(DOCUMENTS, 290)
    assert len(tokenizer) == 290
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    assert tokenizer.pad_token_id == 1


def test_char_is_one_token_per_character():
    tokenizer = train_char(DOCUMENTS)
    text = "The cat\n\tGröße 😀"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("Z") == [tokenizer.unk_token_id]
    assert len(tokenizer) == len(set(DOCUMENTS["text"][0])) + 3


def test_a_trained_tokenizer_is_shared_through_the_cache():
    first, second = load_tokenizer("train:280", DOCUMENTS), load_tokenizer("train:280", DOCUMENTS)
    assert first.get_vocab() == second.get_vocab()
    assert len(load_tokenizer("train:270", DOCUMENTS)) == 270
    assert load_tokenizer("char", DOCUMENTS).encode("cat") == train_char(DOCUMENTS).encode("cat")


def test_saved_folder_loads_alike(tmp_path):
    tokenizer = train_char(DOCUMENTS)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (load_pretrained_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.encode("The cat") == tokenizer.encode("The cat")
        assert loaded.decode(loaded.encode("The cat")) == "The cat"


@pytest.mark.parametrize("spec", ["train:", "train:abc", "train:100", "train:-5"])
def test_bad_sizes(spec):
    with pytest.raises(InputError, match="at least 258"):
        load_tokenizer(spec, DOCUMENTS)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="tokenizer"):
        load_pretrained_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')  # upstream loads this as an empty tokenizer
    with pytest.raises(InputError, match="tokenizer"):
        load_pretrained_tokenizer(str(tmp_path))
    assert os.listdir(tmp_path) == ["config.json"]
