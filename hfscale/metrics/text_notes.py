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
PAIR = regex.compile(rf"[{ANY}](?=([^\S\n]*)[{ANY}])")  # two letters of them, and what parts them
AT_SPACES = ("13a", "intl", "none")  # tokenizers of sacrebleu that part words there
MOST = 0.5  # of the letters
SEGMENTED = 0.25  # of the pairs of letters have a space between them: someone has parted the words
KANA_SHARE = 0.1  # beside Chinese characters, from which a text is Japanese
LOST = 0.05  # of the letters, from which it is worth a word


def text_notes(
    references: Sequence[Sequence[str]], metrics: Sequence[str], options: dict[str, dict]
) -> dict[str, str]:
    """{name of a value: what its metric leaves out of these references}; empty where all suit."""
    finders = {"bleu": _bleu_note, "rouge": _rouge_note, "f1": _f1_note}
    texts = [text for golds in references for text in golds]
    notes = {}
    for metric, find in finders.items():
        note = find(texts, options.get(metric, {})) if metric in metrics else ""
        if note:
            notes["rouge1" if metric == "rouge" else metric] = note
    return notes


def _bleu_note(texts: Sequence[str], options: dict[str, Any]) -> str:
    scorer = sacrebleu_metric("bleu", options)
    name, longest = scorer.tokenizer.signature(), scorer.max_ngram_order
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


def _f1_note(texts: Sequence[str], options: dict[str, Any]) -> str:
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
    if counts["Japanese"] > KANA_SHARE * counts["Chinese"]:
        counts["Japanese"] += counts["Chinese"]
    language = max(counts, key=counts.get)
    parted = [bool(space) for space in PAIR.findall(text)]
    segmented = sum(parted) > SEGMENTED * len(parted) and language != "Korean"
    return "" if segmented else language
