"""Small tokenizers of the kinds that models come with: what they put in front of a text, behind it,
between words.
"""

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the cat sat on the mat and the dog sat on the log",
    "def f(x):\n    return x\n",
    "Say yes, no.",
] * 4
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "[SEP]", "en_XX"]


def _bytes(add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return tokenizer


def _metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    _train(tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """As Llama's first ones: a space in front of every text, bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        "▁", "merged_with_next"
    )  # no token goes over two words
    parts = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(parts)
    _train(tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))
    tokenizer.add_tokens([f"<0x{byte:02X}>" for byte in range(256)])
    return tokenizer


def _word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    )
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(TEXTS, trainer)


def _framed(tokenizer: Tokenizer, front: list[str], back: list[str]) -> Tokenizer:
    frame = [(token, tokenizer.token_to_id(token)) for token in {*front, *back}]
    if frame:
        single = " ".join([*front, "$A", *back])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=frame
        )
    return tokenizer


# kind: the tokenizer, what it puts in front, what behind, its BOS
KINDS = {
    "nothing (GPT-2)": (_bytes, [], [], "</s>"),
    "BOS that is its EOS (OPT)": (_bytes, ["</s>"], [], "</s>"),
    "a BOS that it never adds (BLOOM)": (_bytes, [], [], "<s>"),
    "BOS": (_bytes, ["<s>"], [], "<s>"),
    "BOS and EOS": (_bytes, ["<s>"], ["</s>"], "<s>"),
    "EOS (T5)": (_bytes, [], ["</s>"], None),
    "BOS and SEP (BERT)": (_word_pieces, ["<s>"], ["[SEP]"], "<s>"),
    "a language and EOS (mBART)": (_bytes, ["en_XX", "<s>"], ["</s>"], "<s>"),
    "a space in front (RoBERTa)": (lambda: _bytes(add_prefix_space=True), ["<s>"], ["</s>"], "<s>"),
    "a space in front of each part": (lambda: _metaspace("always"), ["<s>"], [], "<s>"),
    "a space in front of the first part": (lambda: _metaspace("first"), ["<s>"], [], "<s>"),
    "no space in front (Gemma)": (lambda: _metaspace("never"), ["<s>"], [], "<s>"),
    "sentencepiece with BOS (Llama)": (_sentencepiece, ["<s>"], [], "<s>"),
    "sentencepiece with BOS and EOS": (_sentencepiece, ["<s>"], ["</s>"], "<s>"),
}


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A new tokenizer of one of `KINDS`."""
    make, front, back, bos = KINDS[kind]
    return PreTrainedTokenizerFast(
        tokenizer_object=_framed(make(), front, back),
        bos_token=bos,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
