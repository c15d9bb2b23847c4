"""Tokenizers: any text round-trips, EOS and padding are two tokens, ranks share one copy, and the
report is right.
"""

import json
import os
import random

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hfscale.data.tokenizer import (
    load_model_tokenizer,
    load_pretrained_tokenizer,
    load_tokenizer,
    measure_tokenizer,
    train_bpe,
    train_char,
)
from hfscale.process import InputError
from recipes import train_tokenizer

DOCUMENTS = Dataset.from_dict(
    {"text": ["The cat sat on the mat.\n\n\tThe dog did not. Größe 😀"] * 3}
)
ODD = [
    "",
    " ",
    "  two  spaces ",
    "tab\tnewline\n\r\n",
    "Größe 😀 日本語",
    "\x00\x01\x7f",
    " .,!?'s don't n't",
]


CHAT = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def trained():
    return train_bpe(DOCUMENTS, 300, CHAT)


@pytest.mark.parametrize("text", [*ODD, "".join(map(chr, range(256)))])
def test_any_text_round_trips(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert not set(ids) & set(trained.all_special_ids)


def test_any_bytes_round_trip(trained):
    """Also those that are no UTF-8, which only the model below the text interface takes."""
    letter, model = bytes_to_unicode(), trained.backend_tokenizer.model
    byte = {symbol: value for value, symbol in letter.items()}
    draw = random.Random(0)
    for data in [bytes([i]) for i in range(256)] + [draw.randbytes(64) for _ in range(50)]:
        tokens = model.tokenize("".join(letter[value] for value in data))
        assert [trained.convert_ids_to_tokens(token.id) for token in tokens] == [
            token.value for token in tokens
        ]
        assert bytes(byte[symbol] for token in tokens for symbol in token.value) == data


def test_special_tokens_are_never_split(trained):
    assert trained.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>", *CHAT]) == [0, 1, 2, 3]
    text = "<|im_start|>user\n the cat<|im_end|> \n<|endoftext|>"
    ids = trained.encode(text)
    assert [i for i in ids if i < 4] == [2, 3, 0]
    assert trained.decode(ids) == text
    assert trained.decode(ids, skip_special_tokens=True) == "user\n the cat \n"


def test_training_is_repeatable(trained):
    again = train_bpe(DOCUMENTS, 300, CHAT)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("spec", "instead"),
    [("unigram:4096", "train:4096"), ("unigram", "train:8192")],
)
def test_a_config_that_names_unigram_is_told_what_to_use(spec, instead):
    with pytest.raises(
        InputError, match=rf"^tokenizer {spec}: unigram .* use {instead}, "
    ) as caught:
        load_tokenizer(spec, DOCUMENTS)
    assert "\n" not in str(caught.value)


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
    for loaded in (
        load_pretrained_tokenizer(str(tmp_path)),
        AutoTokenizer.from_pretrained(tmp_path),
    ):
        assert loaded.encode("The cat") == tokenizer.encode("The cat")
        assert loaded.decode(loaded.encode("The cat")) == "The cat"


@pytest.mark.parametrize(
    "spec",
    [
        "train:",
        "train:abc",
        "train:100",
        "train:-5",
        "train",
        "train:257",
        "train:99999999999999",
    ],
)
def test_bad_sizes(spec):
    with pytest.raises(InputError, match="at least 258"):
        load_tokenizer(spec, DOCUMENTS)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="tokenizer"):
        load_pretrained_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2"}'
    )  # upstream loads this as an empty tokenizer
    with pytest.raises(InputError, match="tokenizer"):
        load_pretrained_tokenizer(str(tmp_path))
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_tokenizer_in_place_of_the_models_own(tmp_path):
    """It may know more tokens; one of another text with the same size numbers them in another
    way.
    """
    texts = {
        "own": "the cat sat on the mat and the log",
        "other": "my dogs dig big holes in my garden",
    }
    for name, text in texts.items():
        train_bpe(Dataset.from_dict({"text": [text] * 3}), 265).save_pretrained(tmp_path / name)
    larger = load_pretrained_tokenizer(str(tmp_path / "own"))
    larger.add_tokens(["new"])
    larger.save_pretrained(tmp_path / "larger")
    own, other, more = (str(tmp_path / name) for name in ("own", "other", "larger"))
    assert len(load_pretrained_tokenizer(own)) == len(load_pretrained_tokenizer(other)) == 265
    assert len(load_model_tokenizer(own)) == len(load_model_tokenizer(own, own)) == 265
    assert len(load_model_tokenizer(own, more)) == 266
    assert len(load_model_tokenizer(more, own)) == 265
    with pytest.raises(
        InputError, match=r"^tokenizer .*other: its token \d+ is .*, that of model .*own is "
    ) as error:
        load_model_tokenizer(own, other)
    assert "\n" not in str(error.value)
    (tmp_path / "none").mkdir()  # a model can come without a tokenizer
    assert len(load_model_tokenizer(str(tmp_path / "none"), other)) == 265


def test_measures_are_those_of_the_definition():
    documents = Dataset.from_dict(
        {"text": ["ab cd\nGr\u00f6\u00dfe\n", "x" * 70_000]}
    )  # longer than one piece
    measured = measure_tokenizer(
        train_char(Dataset.from_dict({"text": ["ab cd\n", "x"]})), documents
    )
    num_bytes, tokens, words = 14 + 70_000, 12 + 70_000, 3 + 2
    assert measured["bytes_per_token"] == pytest.approx(num_bytes / tokens)
    assert measured["tokens_per_word"] == pytest.approx(tokens / words)
    assert measured["round_trip_share"] == pytest.approx(
        (num_bytes - 8) / num_bytes
    )  # the line with unknown letters
    assert measured["vocab_size"] == 7 + 3
    assert measure_tokenizer(train_bpe(DOCUMENTS, 270), documents)["round_trip_share"] == 1


# ---- the recipe


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(
        "\n".join(
            f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}" for i in range(60)
        )
    )
    return str(path)


def train(text, folder, *more):
    train_tokenizer.main(
        [
            "--source",
            text,
            "--sample_by",
            "line",
            "--vocab_size",
            "300",
            "--output_dir",
            str(folder),
            *more,
        ]
    )


def test_recipe_saves_a_tokenizer_and_its_report(tmp_path, text, capsys):
    folder = tmp_path / "a" / "tokenizer"
    train(text, folder, "--compare", "char", "train:280")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert (
        tokenizer.decode(tokenizer.encode("<|im_start|>Gr\u00f6\u00dfe"))
        == "<|im_start|>Gr\u00f6\u00dfe"
    )
    report = json.loads((folder / "tokenizer_report.json").read_text("utf-8"))
    assert report["recipe"] == "train_tokenizer"
    assert report["command"].startswith("hfscale train_tokenizer --source ")
    assert report["special_tokens"] == {
        "<|endoftext|>": 0,
        "<|pad|>": 1,
        "<|im_start|>": 2,
        "<|im_end|>": 3,
    }
    own, char, smaller = report["tokenizers"]
    assert [row["name"] for row in report["tokenizers"]] == [str(folder), "char", "train:280"]
    assert char["bytes_per_token"] == 1 < own["bytes_per_token"]
    assert own["vocab_size"] == len(tokenizer) == 300
    assert own["round_trip_share"] == smaller["round_trip_share"] == 1
    assert len(load_tokenizer(str(folder), DOCUMENTS)) == 300
    shown = capsys.readouterr().out
    assert "bytes/token" in shown and f"{own['bytes_per_token']:.3f}" in shown
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]


def test_recipe_replaces_only_when_told_and_only_its_own(tmp_path, text):
    folder = tmp_path / "tokenizer"
    train(text, folder)
    with pytest.raises(InputError, match="exists"):
        train(text, folder)
    train(text, folder, "--overwrite", "--extra_special_tokens", "[]")
    assert "<|im_end|>" not in AutoTokenizer.from_pretrained(folder).get_vocab()
    (folder / "tokenizer_report.json").unlink()
    with pytest.raises(InputError, match="exists"):
        train(text, folder, "--overwrite")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--vocab_size 259", r"^vocab_size: got 259, expected at least 260 \(256 bytes and"),
        ("--vocab_size 2000000", "at most 1048576"),
        (
            "--extra_special_tokens <a> <b> <a>",
            r"\['<a>', '<b>', '<a>'\], expected different names",
        ),
        ("--extra_special_tokens <a> <|pad|>", "different names, none empty, beside"),
        ("--extra_special_tokens=", "different names, none empty"),
        ("--compare unigram:300", "tokenizer unigram:300: unigram .* use train:300, a BPE"),
        ("--compare missing-folder", "tokenizer missing-folder: no such folder"),
        ("--compare train:1", "at least 258"),
        ("--validation_source missing.txt", "no such file"),
        ("--output_dir text.txt/tokenizer", "text.txt is not a folder"),
    ],
)
def test_recipe_refuses_in_one_line_and_leaves_nothing(tmp_path, text, monkeypatch, words, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=match) as caught:
        train("text.txt", "out", *words.split())
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["text.txt"]
