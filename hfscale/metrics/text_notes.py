"""What a metric of texts cannot see in the language at hand, or in texts so short."""

from collections.abc import Sequence
from typing import Any

import regex

from hfscale.metrics.options import filled_options, rouge_tokens, sacrebleu_metric

# Scripts in which spaces part phrases at most, and what sacrebleu's BLEU should be told.
SCRIPTS = {
    "Japanese": r"\p{Hiragana}\p{Katakana}",
    "Korean": r"\p{Hangul}",
    "Chinese": r"\p{Han}",
    "other": r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}",
}
BLEU_ADVICE = {
    "Japanese": '{bleu: {tokenize: ja-mecab}} (pip install "sacrebleu[ja]") or char',
    "Korean": '{bleu: {tokenize: ko-mecab}} (pip install "sacrebleu[ko]") or char',
    "Chinese": "{bleu: {tokenize: zh}}",
    "other": "{bleu: {tokenize: char}}",
}
LETTER = regex.compile(r"\p{L}")
ANY = "".join(SCRIPTS.values())
# Two letters of these scripts, and the white space between them.
PAIR = regex.compile(rf"[{ANY}](?=([^\S\n]*)[{ANY}])")
# Tokenizers of sacrebleu that part words at spaces.
AT_SPACES = ("13a", "intl", "none")
# A text is of such a script if more than this share of its letters are.
MOST = 0.5
# Where more than this share of the pairs have a space, someone has parted the words already.
SEGMENTED = 0.25
# As many kana beside Chinese characters make a text Japanese; Chinese quotes fewer.
KANA_SHARE = 0.1
# Fewer lost letters than this are accents in names, and worth no note.
LOST = 0.05


def text_notes(
    references: Sequence[Sequence[str]], metrics: Sequence[str], options: dict[str, dict]
) -> dict[str, str]:
    """{name of a value: what its metric leaves out of these references}; empty where all suit."""
    texts = [text for golds in references for text in golds]
    notes = {}
    if "bleu" in metrics:
        notes["bleu"] = _bleu_note(texts, options.get("bleu", {}))
    if "rouge" in metrics:
        notes["rouge1"] = _rouge_note(texts, options.get("rouge", {}))
    if "f1" in metrics:
        notes["f1"] = _f1_note(texts)
    return {name: note for name, note in notes.items() if note}


def _bleu_note(texts: Sequence[str], options: dict[str, Any]) -> str:
    scorer = sacrebleu_metric("bleu", options)
    name = scorer.tokenizer.signature()
    longest = scorer.max_ngram_order
    language = _language(texts)
    if name in AT_SPACES and language:
        return (
            f"the tokenizer {name} parts words at spaces, which in these references part phrases "
            f"at most, so whole phrases are compared: set {BLEU_ADVICE[language]}, or take chrf"
        )
    short = all(len(scorer.tokenizer(text).split()) < longest for text in texts)
    if short and not scorer.effective_order:
        return (
            f"no reference has {longest} tokens, so that right answers have BLEU 0: set {{bleu: "
            "{effective_order: true}}, or take chrf"
        )
    return ""


def _f1_note(texts: Sequence[str]) -> str:
    if _language(texts) in ("", "Korean"):
        return ""
    return (
        "tokens are parted at spaces, which in these references part phrases at most, so a whole "
        "phrase is one token: take chrf, which compares characters"
    )


def _rouge_note(texts: Sequence[str], options: dict[str, Any]) -> str:
    tokenizer = filled_options("rouge", options)["tokenizer"]
    tokens = rouge_tokens(tokenizer)
    letters = sum(sum(map(str.isalnum, text)) for text in texts)
    kept = sum(sum(map(len, tokens(text))) for text in texts)
    if tokenizer != "rouge_score" or kept >= (1 - LOST) * letters:
        return ""
    return (
        f"the tokenizer rouge_score leaves out {1 - kept / letters:.0%} of the letters (all but a "
        "to z and 0 to 9) and parts words there: set {rouge: {tokenizer: words}} to keep them"
    )


def _language(texts: Sequence[str]) -> str:
    """The key of SCRIPTS for texts in which spaces part phrases at most; "" for all others."""
    text = "\n".join(texts)
    counts = {name: len(regex.findall(f"[{script}]", text)) for name, script in SCRIPTS.items()}
    if sum(counts.values()) <= MOST * len(LETTER.findall(text)):
        return ""
    # Japanese is written with Chinese characters, too.
    if counts["Japanese"] > KANA_SHARE * counts["Chinese"]:
        counts["Japanese"] += counts["Chinese"]
    language = max(counts, key=lambda name: counts[name])
    spaces = PAIR.findall(text)
    pairs_with_space = sum(bool(space) for space in spaces)
    # Korean has spaces anyway: they part phrases, and nobody has parted its words.
    if language != "Korean" and pairs_with_space > SEGMENTED * len(spaces):
        return ""
    return language
