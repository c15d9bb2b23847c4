"""Text -> token ids and back, in one way for every recipe."""

import copy
from collections.abc import Iterable, Iterator, Sequence

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

# Text given to the tokenizer at once: bounds its memory for long documents.
SLICE_CHARACTERS = 500_000
# After one of these a text is read as it is inside a longer one.
ANCHORS = ("\n", ".", "a")


def encode_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Ids of each text without special tokens."""
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= SLICE_CHARACTERS:
            yield from _ids(batch, tokenizer)
            batch = []
            num_characters = 0
    if batch:
        yield from _ids(batch, tokenizer)


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids without special tokens, however long the text. The fast way leaves out offsets, half of
    the time.
    """
    if not tokenizer.is_fast:
        return tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json can ask for both
    backend.no_padding()
    # Else it depends on what was called before.
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts in front of a text, such as BOS; often
    none.

    What it puts behind one (EOS, [SEP]) would end a prompt, so nothing here ever adds that.
    """
    for probe in _probes(tokenizer):
        [ids] = encode_texts([probe], tokenizer)
        if not ids:
            continue
        if tokenizer.is_fast:  # the tokenizer itself takes ten times as long
            whole = tokenizer.backend_tokenizer.encode(probe).ids
        else:
            whole = tokenizer(probe)["input_ids"]
        for start in range(len(whole) - len(ids) + 1):
            if whole[start : start + len(ids)] == ids:
                return whole[:start]
    return []


def _probes(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Texts of which a tokenizer makes tokens: some know no "a"."""
    yield "a"
    yield from tokenizer.get_vocab()


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands in front of a document: the tokenizer's own `leading_ids`, else BOS, else EOS;
    none if it has none of them.
    """
    leading = leading_ids(tokenizer)
    if leading:
        return leading
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    return []


def nothing_behind(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy that puts nothing behind a text, for a tool that encodes prompts by
    itself.
    """
    front = leading_ids(tokenizer)
    if not tokenizer.is_fast or tokenizer.num_special_tokens_to_add() == len(front):
        return tokenizer
    bare = copy.deepcopy(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(front)
    bare.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, "$A"], special_tokens=list(zip(tokens, front, strict=True))
    )
    return bare


def encode_prompts(
    prompts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True
) -> list[list[int]]:
    """Ids of each text that is to be continued: the tokenizer's `leading_ids` once, also where the
    text has them written in front, and none behind. An empty text becomes `start_ids`.

    A text that a chat template wrote has all its special tokens: give it with
    `add_special_tokens=False`.
    """
    leading = leading_ids(tokenizer) if add_special_tokens else []
    return [
        after_once(leading, ids) or start_ids(tokenizer) for ids in encode_texts(prompts, tokenizer)
    ]


def after_once(leading: list[int], ids: list[int]) -> list[int]:
    """`ids` with `leading` in front, of which they may have some or all already."""
    for count in range(len(leading), 0, -1):
        if ids[:count] == leading[-count:]:
            return [*leading, *ids[count:]]
    return [*leading, *ids]


def encode_continuations(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Ids of each text as it follows other text: without the space that some tokenizers put in
    front of a text.
    """
    if not _adds_space(tokenizer):
        yield from encode_texts(texts, tokenizer)
        return
    for text in texts:
        yield _encode_continuation(text, tokenizer)


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text alone begins with another token than after a line break."""
    alone, after = encode_texts(["a", "\na"], tokenizer)
    return after[-len(alone) :] != alone


def _encode_continuation(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    for anchor in ANCHORS:
        before, whole = encode_texts([anchor, anchor + text], tokenizer)
        if whole[: len(before)] != before:
            continue  # anchor and text share a token
        ids = whole[len(before) :]
        if decode_continuation(ids, tokenizer, before[-1]) == text:
            return ids
    return next(encode_texts([text], tokenizer))  # no tokens mean this text there


def decode_continuation(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, before: int) -> str:
    """The text of `ids` that follow the token `before`, without special tokens: with the space
    between two words that some tokenizers leave out where a text begins.
    """
    text_before = _decode([before], tokenizer)
    whole = _decode([before, *ids], tokenizer)
    if whole.startswith(text_before):
        return whole[len(text_before) :]
    return _decode(list(ids), tokenizer)


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)  # a list only for lists of lists
    return text
