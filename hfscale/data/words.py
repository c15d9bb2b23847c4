"""What a word is wherever texts are compared by their words: near copies, contamination,
metrics.
"""

import re
import unicodedata
from collections.abc import Iterable

import regex

# Letters and digits with the marks on them (vowel signs, accents, points) and joiners. The \w of
# `re` has no marks, so that words which differ in a vowel sign would look equal.
RUN = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}\u200c\u200d]*+")
# Where marks, joiners and scripts without spaces may stand: not in Latin, Greek, Cyrillic and
# Armenian text.
OTHER_SCRIPTS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0590-\u1dff\u200c\u200d\u20d0-\u20ff\u2c60-\U0010ffff]"
)
PLAIN_RUN = re.compile(r"[^\W_]+")  # what `RUN` finds in the other texts, in half the time
# Thai, Lao, Burmese, Khmer, kana and Chinese characters: no spaces part the words.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
ANY_UNSPACED = re.compile(f"[{UNSPACED}]")
KOREAN = re.compile("[\uac00-\ud7a3]+")
PART = regex.compile(rf"[{UNSPACED}]\p{{M}}*+|[^{UNSPACED}]++")


def find_words(text: str) -> list[str]:
    """The words of a text in their order, in Unicode NFC, without punctuation; upper and lower case
    as they are.

    In scripts that part no words by spaces, each character with its marks is a word.
    """
    text = unicodedata.normalize("NFC", text)
    if not OTHER_SCRIPTS.search(text):
        return PLAIN_RUN.findall(text)
    runs = RUN.findall(text)
    if not ANY_UNSPACED.search(text):
        return runs
    return [word for run in runs for word in PART.findall(run)]


def count_letters(words: Iterable[str]) -> int:
    """Characters of all words; a Korean syllable counts as the two or three letters that it is
    written with.
    """
    text = "".join(words)
    syllables = "".join(KOREAN.findall(text))
    return len(text) - len(syllables) + len(unicodedata.normalize("NFD", syllables))


def parts_no_words(text: str) -> bool:
    """Whether most of a text is in scripts that part no words by spaces."""
    return 2 * len(ANY_UNSPACED.findall(text)) > len("".join(text.split()))
