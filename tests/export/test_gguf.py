"""A GGUF says what the model and its tokenizer are, as transformers' own reader finds."""

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import AddedToken

from hfscale.export.formats import check_format
from hfscale.process import InputError
from hfscale.tasks.chat_templates import set_chat_template
from tests.tiny_models import GPT2, LLAMA, VOCAB_SIZE, tiny_model, tiny_tokenizer
from tests.tokenizer_kinds import make_tokenizer

pytest.importorskip("gguf")

from hfscale.export.gguf_file import TYPES, check_as_gguf, read_gguf, write_gguf  # noqa: E402
from hfscale.export.gguf_tokenizer import vocabulary_as_gguf  # noqa: E402

MODELS = {
    "gpt2": ("gpt2", {**GPT2, "layer_norm_epsilon": 1e-3}),
    "gpt2, other inner width": ("gpt2", {**GPT2, "n_inner": 96, "tie_word_embeddings": False}),
    "llama": (
        "llama",
        {
            **LLAMA,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama, tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama, wide heads": ("llama", {**LLAMA, "head_dim": 16}),
    "qwen3": ("qwen3", LLAMA),
}
TEXTS = [
    "the cat  sat's on\n\n the 123 mats\tand é 日本 😀‍🔥 \x00",
    "a<|endoftext|> b<|pad|>c [PAD271]",
    " \r\n   ",
]
TOLERANCES = {"f32": 1e-5, "f16": 0.05, "q8_0": 1.0}  # of logits that spread by 1.7


def written(folder, model, tokenizer, outtype="f32"):
    write_gguf(folder / "model.gguf", model, tokenizer, outtype, "tiny")
    return read_gguf(folder, "model.gguf")


@torch.no_grad()
def logits(model):
    ids = torch.arange(64)[None] % VOCAB_SIZE
    return model(ids).logits


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_back_computes_the_same(name, tmp_path):
    kind, fields = MODELS[name]
    model = tiny_model(kind, fields, VOCAB_SIZE + 3)  # three rows that no token has
    for outtype in TYPES:
        read, _ = written(tmp_path, model, tiny_tokenizer(), outtype)
        difference = (logits(read) - logits(model)).abs().max()
        assert difference <= TOLERANCES[outtype]
        assert (difference == 0) == (outtype == "f32")


def test_the_tokenizer_read_back_gives_the_same_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    set_chat_template(tokenizer, "chatml")
    _, read = written(tmp_path, tiny_model("llama", LLAMA, len(tokenizer) + 3), tokenizer)
    for text in [*TEXTS, "<|im_start|>user"]:
        ids = tokenizer(text)["input_ids"]
        assert read(text)["input_ids"] == ids
        assert read.decode(ids) == tokenizer.decode(ids)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(read, name) == getattr(tokenizer, name), name


@pytest.mark.parametrize("kind", ["BOS", "nothing (GPT-2)"])
def test_a_bos_in_front_is_there_again(kind, tmp_path):
    tokenizer = make_tokenizer(kind)
    _, read = written(tmp_path, tiny_model("llama", LLAMA, len(tokenizer)), tokenizer)
    assert read("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]


def test_rows_without_a_token_are_unused(tmp_path):
    vocabulary = vocabulary_as_gguf(tiny_tokenizer(), VOCAB_SIZE + 2)
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == VOCAB_SIZE + 2
    assert vocabulary.types[:2] == [3, 3] and vocabulary.types[-3:] == [1, 5, 5]
    assert vocabulary.pre == "gpt-2"


CANNOT_BE_HELD = {
    "gpt_neox": (
        "gpt_neox",
        {"num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 1},
        "kind gpt_neox",
    ),
    "relu": ("gpt2", {**GPT2, "activation_function": "relu"}, "activation_function is 'relu'"),
    "scaled": (
        "gpt2",
        {**GPT2, "scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx",
    ),
    "bias": ("llama", {**LLAMA, "attention_bias": True}, "attention_bias is True"),
    "yarn": (
        "llama",
        {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        "'linear'",
    ),
}


@pytest.mark.parametrize("name", CANNOT_BE_HELD)
def test_a_model_that_gguf_cannot_hold_is_refused(name):
    kind, fields, words = CANNOT_BE_HELD[name]
    with pytest.raises(InputError, match=words):
        check_as_gguf(tiny_model(kind, fields, VOCAB_SIZE), tiny_tokenizer())


def normalized():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def otherwise_split():
    tokenizer = tiny_tokenizer()
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    return tokenizer


def stripping():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, special=True)])
    return tokenizer


TOKENIZERS = {
    "changes text first": normalized,
    "no name for how it splits": otherwise_split,
    "takes the spaces": stripping,
    "WordPiece": lambda: make_tokenizer("BOS and SEP (BERT)"),
    "on characters": lambda: make_tokenizer("sentencepiece with BOS (Llama)"),
}


@pytest.mark.parametrize("words", TOKENIZERS)
def test_a_tokenizer_that_gguf_cannot_hold_is_refused(words):
    with pytest.raises(InputError, match=words):
        vocabulary_as_gguf(TOKENIZERS[words](), 1000)


def test_ids_without_a_token_and_tokens_without_a_row_are_refused(monkeypatch):
    tokenizer = tiny_tokenizer()
    with pytest.raises(InputError, match="id 269 .* outside the model's vocabulary of 269"):
        vocabulary_as_gguf(tokenizer, 269)
    vocabulary = {token: index for token, index in tokenizer.get_vocab().items() if index != 100}
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: vocabulary)
    with pytest.raises(InputError, match="no token has the id 100 "):
        vocabulary_as_gguf(tokenizer, 270)


def test_a_number_type_that_the_format_has_not_is_refused():
    with pytest.raises(InputError, match="safetensors has no q8_0"):
        check_format("safetensors", "q8_0")
