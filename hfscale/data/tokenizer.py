"""A tokenizer with an EOS and a padding token of its own: trained on the documents, or loaded."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfscale.data.sources import text_fingerprint
from hfscale.models import check_remote_code
from hfscale.process import InputError

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"  # not EOS: a collator that hides padding would hide the end of text too
UNK_TOKEN = "<|unknown|>"
MAX_VOCAB_SIZE = 2**20  # the trainers reserve memory for all of it at once
PIECE_CHARACTERS = 2**16


def load_tokenizer(
    spec: str, documents: Dataset | IterableDataset, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """Trained on these documents (`train:<vocab size>` is BPE, `unigram:<vocab size>`, `char`), or
    a folder or Hub id.

    A trained one is kept beside the documents in the `datasets` cache: every rank and the next run
    share it. It reads all documents, of a stream twice: first for their fingerprint, by which it is
    found again.

    Raises InputError: a vocabulary size that is no number or cannot work; see
    `load_pretrained_tokenizer`.
    """
    kind, _, size = spec.partition(":")
    if spec != "char" and kind not in ("train", "unigram"):
        return load_pretrained_tokenizer(spec, trust_remote_code=trust_remote_code)
    if kind != "char":
        check_vocab_size(
            f"tokenizer {spec}: expected {kind}:<vocab size>,", int(size) if size.isdecimal() else 0
        )
    key = documents._fingerprint if isinstance(documents, Dataset) else text_fingerprint(documents)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hfscale-tokenizers" / f"{key}-{kind}{size}"
    if not (cache / "tokenizer.json").is_file():
        tokenizer = (
            train_char(documents)
            if kind == "char"
            else train_byte_level(documents, kind.replace("train", "bpe"), int(size))
        )
        part = cache.with_name(f"{cache.name}.{os.getpid()}")
        tokenizer.save_pretrained(part)
        if not cache.exists():
            os.replace(part, cache)
        shutil.rmtree(part, ignore_errors=True)  # another process was first
    return AutoTokenizer.from_pretrained(cache)


def check_vocab_size(place: str, vocab_size: int, extra_special_tokens: Sequence[str] = ()) -> None:
    """Raises InputError, beginning with `place`, unless the 256 bytes and the special tokens fit
    in; these must be different ones, of at least one character.
    """
    special = [EOS_TOKEN, PAD_TOKEN, *extra_special_tokens]
    if "" in special or len(set(special)) < len(special):
        raise InputError(
            f"extra_special_tokens: got {list(extra_special_tokens)}, expected different names, "
            f"none empty, beside {EOS_TOKEN} and {PAD_TOKEN}"
        )
    least = 256 + len(special)
    if not least <= vocab_size <= MAX_VOCAB_SIZE:
        raise InputError(
            f"{place} at least {least} (256 bytes and the special tokens), at most {MAX_VOCAB_SIZE}"
        )


def load_pretrained_tokenizer(
    name: str, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or Hub id, checked to be whole (a missing vocabulary loads as an
    empty one upstream). Code that it brings along is run only with `trust_remote_code`.

    Raises InputError: not a tokenizer folder, not reachable, empty, or without an EOS token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # the Hub client's errors have no common base
        check_remote_code(f"tokenizer {name}", error)
        where = (
            "folder holds no tokenizer"
            if os.path.isdir(name)
            else "no such folder, not in the Hub cache"
        )
        if not os.path.isdir(name) and os.environ.get("HF_HUB_OFFLINE") != "1":
            where = " ".join(str(error).split())[:200]
        raise InputError(
            f"tokenizer {name}: {where}; give train:8192, unigram:8192, char, a saved tokenizer "
            "folder or a Hub id"
        ) from None
    if tokenizer.vocab_size == 0 or tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer {name}: {tokenizer.vocab_size} tokens, EOS {tokenizer.eos_token}; it needs "
            "both"
        )
    if (
        tokenizer.pad_token is None
    ):  # rows carry explicit labels, so here EOS as filler hides nothing
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model_tokenizer(
    model: str, tokenizer: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a model's folder or Hub id, or the one given in its place, in which each id
    has to mean the same token; it can know more of them.

    Raises InputError: as `load_pretrained_tokenizer`, or an id means another token than to the
    model's own.
    """
    given = load_pretrained_tokenizer(tokenizer or model, trust_remote_code=trust_remote_code)
    if tokenizer is None or tokenizer == model:
        return given
    try:
        expected = load_pretrained_tokenizer(model, trust_remote_code=trust_remote_code).get_vocab()
    except InputError:  # a model can come without one
        return given
    token_of = {index: token for token, index in given.get_vocab().items()}
    for token, index in sorted(expected.items(), key=lambda pair: pair[1]):
        if token_of.get(index, token) != token:
            raise InputError(
                f"tokenizer {tokenizer}: its token {index} is {token_of[index]!r}, that of model "
                f"{model} is {token!r}; leave --tokenizer out, or give the one that the model was "
                "trained with"
            )
    return given


def train_byte_level(
    documents: Dataset, algorithm: str, vocab_size: int, extra_special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """`bpe` as GPT-2 uses it, or `unigram` (Kudo 2018, arXiv:1804.10959), from scratch over the
    bytes of GPT-2's words: any bytes round-trip. Special tokens are never split.
    """
    check_vocab_size(f"vocab_size: got {vocab_size}, expected", vocab_size, extra_special_tokens)
    model, trainer = {
        "bpe": (models.BPE, trainers.BpeTrainer),
        "unigram": (models.Unigram, trainers.UnigramTrainer),
    }[algorithm]
    tokenizer, special = Tokenizer(model()), [EOS_TOKEN, PAD_TOKEN, *extra_special_tokens]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        _pieces(documents),
        trainer(
            vocab_size=vocab_size,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = tokenizer if algorithm == "bpe" else _sort_unigrams(tokenizer, len(special))
    return _wrap(tokenizer, extra_special_tokens=special[2:])


def _sort_unigrams(tokenizer: Tokenizer, num_special: int) -> Tokenizer:
    """The trainer ranks equal pieces, and scores the bytes that it never met, in an order that
    changes by chance.
    """
    state = json.loads(tokenizer.to_str())
    vocab = [(round(score, 9), piece) for piece, score in state["model"]["vocab"]]
    floor, lowest = min(score for score, piece in vocab if len(piece) > 1), min(vocab)[0]
    rest = [
        (lowest if len(piece) == 1 and score < floor else score, piece)
        for score, piece in vocab[num_special:]
    ]
    state["model"]["vocab"] = [
        (piece, score) for score, piece in vocab[:num_special] + sorted(rest, reverse=True)
    ]
    return Tokenizer.from_str(json.dumps(state))


def train_bpe(documents: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE without extra tokens (see `train_byte_level`)."""
    return train_byte_level(documents, "bpe", vocab_size)


def train_char(documents: Dataset) -> PreTrainedTokenizerFast:
    """One token per character that occurs; any other character becomes the unknown token."""
    characters = sorted({c for piece in _pieces(documents) for c in set(piece)})
    vocabulary = {
        token: i for i, token in enumerate([EOS_TOKEN, PAD_TOKEN, UNK_TOKEN, *characters])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token=UNK_TOKEN)


def measure_tokenizer(tokenizer: PreTrainedTokenizerFast, documents: Dataset) -> dict[str, float]:
    """How well it suits these texts: UTF-8 bytes per token, tokens per word (between white space),
    and the share of bytes in lines that come back from encoding and decoding unchanged (an unknown
    character loses its line).
    """
    tokens = words = num_bytes = whole = 0
    for piece in _pieces(documents):
        lines = piece.splitlines(keepends=True)
        all_ids, *ids_of_lines = tokenizer(
            [piece, *lines], add_special_tokens=False, verbose=False
        )["input_ids"]
        tokens, words, num_bytes = (
            tokens + len(all_ids),
            words + len(piece.split()),
            num_bytes + len(piece.encode()),
        )
        for line, ids in zip(lines, ids_of_lines, strict=True):
            whole += len(line.encode()) * (
                tokenizer.decode(ids, clean_up_tokenization_spaces=False) == line
            )
    return {
        "vocab_size": len(tokenizer),
        "bytes_per_token": num_bytes / max(1, tokens),
        "tokens_per_word": tokens / max(1, words),
        "round_trip_share": whole / num_bytes,
    }


def _pieces(documents: Dataset) -> Iterator[str]:
    """The texts, long ones cut: the trainers read 256 pieces ahead, so memory stays flat for books
    as for lines.
    """
    return (
        text[i : i + PIECE_CHARACTERS]
        for batch in documents.iter(10)
        for text in batch["text"]
        for i in range(0, len(text), PIECE_CHARACTERS)
    )


def _wrap(tokenizer: Tokenizer, **special: str | list[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
        **special,
    )
