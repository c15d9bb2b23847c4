"""A byte-level BPE tokenizer as GGUF describes it: tokens, their types, merges, and the name by
which llama.cpp knows how text is split into words.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from hfscale.data.tokens import leading_ids
from hfscale.process import InputError

# llama.cpp's names for split and special tokens of GPT-2's kind, which train_bpe makes, too.
MODEL = "gpt2"
GPT2_SPLIT = "gpt-2"
UNUSED = "[PAD{}]"  # as llama.cpp's converter calls rows of the embedding that no token has
# GGUFWriter's methods, and the tokenizer's ids.
SPECIAL_IDS = {
    "add_bos_token_id": "bos_token_id",
    "add_eos_token_id": "eos_token_id",
    "add_unk_token_id": "unk_token_id",
    "add_pad_token_id": "pad_token_id",
}


class Vocabulary(NamedTuple):
    """What GGUF says of a tokenizer."""

    tokens: list[str]  # by id, one for each row of the model's embedding
    types: list[int]  # gguf.TokenType
    merges: list[str]  # the two parts with a space between
    pre: str  # llama.cpp's name of the split into words


def vocabulary_as_gguf(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Vocabulary:
    """`vocab_size`: rows of the model's embedding, of which the last can have no token.

    Raises InputError: not byte-level BPE, an unknown split into words, ids that no token has, or
    more tokens than rows.
    """
    if not tokenizer.is_fast:
        raise _cannot(f"{type(tokenizer).__name__} has no tokenizer.json")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _name_of_split(state)
    added = {token["id"]: token for token in state["added_tokens"]}
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _cannot(f"its token {token['content']!r} takes the spaces or words around it")
    token_of = {index: token for token, index in tokenizer.get_vocab().items()}
    _check_ids(token_of, vocab_size)
    return Vocabulary(
        tokens=[token_of.get(index, UNUSED.format(index)) for index in range(vocab_size)],
        types=[_type_of(index, token_of, added) for index in range(vocab_size)],
        merges=[" ".join(pair) for pair in state["model"]["merges"]],
        pre=pre,
    )


def write_vocabulary(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> None:
    """Vocabulary, ids of special tokens, what stands in front of a text, chat template."""
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for method, name in SPECIAL_IDS.items():
        index = getattr(tokenizer, name)
        if index is not None:
            getattr(writer, method)(index)
    writer.add_add_bos_token(_adds_bos(tokenizer))
    writer.add_add_eos_token(False)  # it would end a prompt
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _name_of_split(state: dict[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer.json splits text into words."""
    model = state["model"]
    marks = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(name) for name in marks):
        raise _cannot(f"it is {model['type']} on characters")
    if state["normalizer"]:
        raise _cannot(f"it changes text first ({state['normalizer']['type']})")
    splits = list(_splits(state["pre_tokenizer"]))
    for name, split in ((GPT2_SPLIT, [None]), *_known_splits()):
        if splits == split:
            return name
    raise _cannot("llama.cpp has no name for how it splits text into words")


def _known_splits() -> Iterator[tuple[str, list[str | None]]]:
    for name, pattern in GGUF_PRE_TOKENIZER_SPLITS.items():
        yield name, [pattern]


def _splits(pre_tokenizer: dict[str, Any] | None) -> Iterator[str | None]:
    """Patterns by which text is split; None: GPT-2's, which tokenizers has built in. Anything else
    in a tokenizer.json is given as text that is no pattern.
    """
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    *before, last = steps
    for step in before:
        is_plain = step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
        yield step["pattern"].get("Regex") if is_plain else step["type"]
    if last is None or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        yield str(last)
    elif last["use_regex"]:
        yield None


def _check_ids(token_of: dict[int, str], vocab_size: int) -> None:
    largest = max(token_of)
    if largest >= vocab_size:
        raise InputError(
            f"to gguf: the tokenizer's id {largest} ({token_of[largest]!r}) is outside the model's "
            f"vocabulary of {vocab_size}; give the tokenizer that the model was trained with"
        )
    gaps = [index for index in range(largest) if index not in token_of]
    if gaps:
        raise InputError(
            f"to gguf: no token has the id {gaps[0]} ({len(gaps)} such gaps below {largest}); give "
            "a tokenizer without gaps, or --to safetensors"
        )


def _type_of(index: int, token_of: dict[int, str], added: dict[int, Any]) -> int:
    if index not in token_of:
        return TokenType.UNUSED
    if index not in added:
        return TokenType.NORMAL
    return TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Raises InputError where the tokenizer puts something else than BOS in front of a text."""
    leading = leading_ids(tokenizer)
    if leading not in ([], [tokenizer.bos_token_id]):
        tokens = "".join(map(str, tokenizer.convert_ids_to_tokens(leading)))
        raise _cannot(f"it puts {tokens} in front of a text, which is not its BOS alone")
    return bool(leading)


def _cannot(reason: str) -> InputError:
    return InputError(
        f"to gguf: the tokenizer is none that GGUF can hold here: {reason}; written is byte-level "
        "BPE, as --tokenizer train:8192 makes it; --to safetensors takes any"
    )
