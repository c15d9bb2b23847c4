"""A tokenizer with an EOS and a padding token of its own: trained on the documents, or loaded."""

import os
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfscale.config import InputError

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"  # not EOS: a collator that hides padding would hide the end of text too
UNK_TOKEN = "<|unknown|>"


def load_tokenizer(spec: str, documents: Dataset) -> PreTrainedTokenizerFast:
    """`train:<vocab size>` (byte-level BPE) or `char` on these documents, else a folder or Hub id.

    A trained tokenizer is kept beside the documents in the `datasets` cache, so that every rank and the next run
    share it.

    Raises:
        InputError: a vocabulary size below 257 (256 bytes and EOS) or not a number; see `load_pretrained_tokenizer`.
    """
    kind, _, size = spec.partition(":")
    if spec != "char" and kind != "train":
        return load_pretrained_tokenizer(spec)
    if kind == "train" and (not size.isdigit() or int(size) < 258):
        raise InputError(f"tokenizer {spec}: expected train:<vocab size>, at least 258 (256 bytes, EOS, padding)")
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hfscale-tokenizers" / f"{documents._fingerprint}-{kind}{size}"
    if not (cache / "tokenizer.json").is_file():
        tokenizer = train_bpe(documents, int(size)) if kind == "train" else train_char(documents)
        part = cache.with_name(f"{cache.name}.{os.getpid()}")
        tokenizer.save_pretrained(part)
        if not cache.exists():
            os.replace(part, cache)
    return AutoTokenizer.from_pretrained(cache)


def load_pretrained_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or Hub id, checked to be whole (a missing vocabulary loads as an empty one upstream).

    Raises:
        InputError: not a tokenizer folder, not reachable, empty, or without an EOS token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the Hub client's errors have no common base
        where = "folder holds no tokenizer" if os.path.isdir(name) else "no such folder, not in the Hub cache"
        if not os.path.isdir(name) and os.environ.get("HF_HUB_OFFLINE") != "1":
            where = " ".join(str(error).split())[:200]
        raise InputError(f"tokenizer {name}: {where}; give train:8192, char, a saved tokenizer folder "
                         "or a Hub id") from None
    if tokenizer.vocab_size == 0 or tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer {name}: {tokenizer.vocab_size} tokens, EOS {tokenizer.eos_token}; it needs both")
    if tokenizer.pad_token is None:  # rows carry explicit labels, so here EOS as filler hides nothing
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_bpe(documents: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 uses it, from scratch; any bytes round-trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOS_TOKEN, PAD_TOKEN],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(_batches(documents), trainer, length=len(documents))
    return _wrap(tokenizer)


def train_char(documents: Dataset) -> PreTrainedTokenizerFast:
    """One token per character that occurs; any other character becomes the unknown token."""
    characters = sorted({c for batch in _batches(documents) for text in batch for c in set(text)})
    vocabulary = {token: i for i, token in enumerate([EOS_TOKEN, PAD_TOKEN, UNK_TOKEN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token=UNK_TOKEN)


def _batches(documents: Dataset) -> Iterator[list[str]]:
    return (batch["text"] for batch in documents.iter(100))


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS_TOKEN, eos_token=EOS_TOKEN,
                                   pad_token=PAD_TOKEN, clean_up_tokenization_spaces=False, **special)
