"""A tokenizer with an EOS and a padding token of its own: trained on the documents, or loaded."""

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from datasets import Dataset, IterableDataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfscale.data.caches import kept
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.verified import check_written_folder
from hfscale.folders import TOKENIZER_FILES, TOKENIZER_REPORT
from hfscale.models import check_remote_code
from hfscale.process import InputError

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"  # not EOS: a collator that hides padding would hide the end of text too
UNK_TOKEN = "<|unknown|>"
MAX_VOCAB_SIZE = 2**20  # the trainer reserves memory for all of it at once
PIECE_CHARACTERS = 2**16  # small enough for 256 of them in memory, long enough to lose no time


def load_tokenizer(
    spec: str, documents: Dataset | IterableDataset, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """Trained on these documents (`train:<vocab size>` or `char`), or a folder or Hub id.

    A trained one is kept in the cache of `datasets`: every rank and the next run
    share it. It reads all documents, of a stream twice: first for their fingerprint, by which it is
    found again.

    Raises InputError: a vocabulary size that is no number or cannot work; see
    `load_pretrained_tokenizer`.
    """
    kind, _, size = spec.partition(":")
    if kind == "unigram":
        raise InputError(
            f"tokenizer {spec}: unigram tokenizers are not trained any more; use "
            f"train:{size or 8192}, a BPE, which writes the same text in fewer tokens"
        )
    if spec == "char":
        return _cached_tokenizer("char", documents, train_char)
    if kind == "train":
        vocab_size = int(size) if size.isascii() and size.isdecimal() else 0
        check_vocab_size(f"tokenizer {spec}: expected train:<vocab size>,", vocab_size)
        return _cached_tokenizer(
            f"train{size}", documents, lambda texts: train_bpe(texts, vocab_size)
        )
    return load_pretrained_tokenizer(spec, trust_remote_code=trust_remote_code)


def _cached_tokenizer(
    name: str,
    documents: Dataset | IterableDataset,
    train: Callable[[Dataset | IterableDataset], PreTrainedTokenizerFast],
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on these documents, now if none is kept yet."""
    if isinstance(documents, Dataset):
        fingerprint = documents._fingerprint
    else:
        fingerprint = text_fingerprint(documents)

    def load(folder: Path) -> PreTrainedTokenizerFast:
        if not (folder / "tokenizer.json").is_file():
            train(documents).save_pretrained(folder)
        return cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(folder))

    return kept("tokenizer", [name, fingerprint], load)


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

    Raises InputError: not a tokenizer folder, damaged, not reachable, empty, or without an EOS
    token.
    """
    written = (*TOKENIZER_FILES, TOKENIZER_REPORT)
    check_written_folder(f"tokenizer {name}", Path(name), written)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # the Hub client's errors have no common base
        check_remote_code(f"tokenizer {name}", error)
        raise InputError(
            f"tokenizer {name}: {_why_not_loaded(name, error)}; give train:8192, char, a saved "
            "tokenizer folder or a Hub id"
        ) from None
    if tokenizer.vocab_size == 0 or tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer {name}: {tokenizer.vocab_size} tokens, EOS {tokenizer.eos_token}; it needs "
            "both"
        )
    # Rows carry explicit labels, so here EOS as filler hides nothing.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerFast, tokenizer)


def _why_not_loaded(name: str, error: Exception) -> str:
    if os.path.isdir(name):
        return "folder holds no tokenizer"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "no such folder, not in the Hub cache"
    return " ".join(str(error).split())[:200]


def load_model_tokenizer(
    model: str, tokenizer: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a model's folder or Hub id, or the one given in its place, in which each id
    has to mean the same token; it can know more of them.

    Raises InputError: as `load_pretrained_tokenizer`, or an id means another token than to the
    model's own.
    """
    if tokenizer is None or tokenizer == model:
        return load_pretrained_tokenizer(model, trust_remote_code=trust_remote_code)
    replacement = load_pretrained_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    try:
        expected = load_pretrained_tokenizer(model, trust_remote_code=trust_remote_code).get_vocab()
    except InputError:  # a model can come without one
        return replacement
    token_of = {index: token for token, index in replacement.get_vocab().items()}
    for token, index in sorted(expected.items(), key=operator.itemgetter(1)):
        if token_of.get(index, token) != token:
            raise InputError(
                f"tokenizer {tokenizer}: its token {index} is {token_of[index]!r}, that of model "
                f"{model} is {token!r}; leave --tokenizer out, or give the one that the model was "
                "trained with"
            )
    return replacement


def train_bpe(
    documents: Dataset | IterableDataset,
    vocab_size: int,
    extra_special_tokens: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 uses it (Radford et al. 2019, section 2.2), from scratch.

    It works on the bytes of GPT-2's words, and all 256 bytes are tokens: any text round-trips.
    `vocab_size` counts them and the special tokens, which are never split; a short text may give
    fewer tokens.

    Raises InputError: see `check_vocab_size`.
    """
    check_vocab_size(f"vocab_size: got {vocab_size}, expected", vocab_size, extra_special_tokens)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN, *extra_special_tokens],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_pieces(documents), trainer)
    return _wrap(tokenizer, extra_special_tokens=list(extra_special_tokens))


def train_char(documents: Dataset | IterableDataset) -> PreTrainedTokenizerFast:
    """One token per character that occurs; any other character becomes the unknown token."""
    characters: set[str] = set()
    for piece in _pieces(documents):
        characters.update(piece)
    tokens = [EOS_TOKEN, PAD_TOKEN, UNK_TOKEN, *sorted(characters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token=UNK_TOKEN)


def measure_tokenizer(tokenizer: PreTrainedTokenizerFast, documents: Dataset) -> dict[str, float]:
    """How well it suits these texts: UTF-8 bytes per token, tokens per word (between white space),
    and the share of bytes in lines that come back from encoding and decoding unchanged (an unknown
    character loses its line).
    """
    num_tokens = 0
    num_words = 0
    num_bytes = 0
    unchanged_bytes = 0
    for piece in _pieces(documents):
        lines = piece.splitlines(keepends=True)
        encoded = tokenizer([piece, *lines], add_special_tokens=False, verbose=False)
        ids_of_piece, *ids_of_lines = encoded["input_ids"]
        num_tokens += len(ids_of_piece)
        num_words += len(piece.split())
        num_bytes += len(piece.encode())
        for line, ids in zip(lines, ids_of_lines, strict=True):
            if tokenizer.decode(ids, clean_up_tokenization_spaces=False) == line:
                unchanged_bytes += len(line.encode())
    return {
        "vocab_size": len(tokenizer),
        "bytes_per_token": num_bytes / max(1, num_tokens),
        "tokens_per_word": num_tokens / max(1, num_words),
        "round_trip_share": unchanged_bytes / num_bytes,
    }


def _pieces(documents: Dataset | IterableDataset) -> Iterator[str]:
    """The texts, long ones cut: the trainers read 256 pieces ahead, so memory stays flat for books
    as for lines.
    """
    for batch in documents.iter(10):
        for text in batch["text"]:
            for start in range(0, len(text), PIECE_CHARACTERS):
                yield text[start : start + PIECE_CHARACTERS]


def _wrap(tokenizer: Tokenizer, **special: str | list[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
        **special,
    )
