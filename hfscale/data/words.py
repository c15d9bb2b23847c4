"""What a word is wherever texts are compared by their words: near copies, contamination,
metrics.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable

import regex

# Letters and digits with the marks on them (vowel signs, accents, points) and joiners. The \w of
# `re` has no marks, so that words which differ in a vowel sign would look equal.
RUN = regex.compile(
    r"""
    [\p{L}\p{N}]
    [\p{L}\p{N}\p{M}\u200c\u200d]*+   # the last two: zero width (non-)joiner
    """,
    regex.X,
)
RUN_EXAMPLES = ("«don»'«t» «stop»_«at» «3»", "«हिन्दी» «می\u200cروم»", "... -_-")

# Where marks, joiners and scripts without spaces may stand: not in Latin, Greek, Cyrillic and
# Armenian text.
OTHER_SCRIPTS = re.compile(
    r"""
    [\u0300-\u036f\u0483-\u0489\u0590-\u1dff\u200c\u200d\u20d0-\u20ff\u2c60-\U0010ffff]
    """,
    re.X,
)
OTHER_SCRIPTS_EXAMPLES = ("e«\u0301» «न»«म»", "café Ωmega Привет “quoted” — and")

PLAIN_RUN = re.compile(r"[^\W_]+")  # what `RUN` finds in the other texts, in half the time
PLAIN_RUN_EXAMPLES = ("«don»'«t» «stop»_«at» «3»", "... -_-")

# Characters of scripts that part no words by spaces.
UNSPACED = (
    r"\u0e00-\u0eff"  # Thai, Lao
    r"\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    r"\u3005-\u3007\u3040-\u30ff\uff66-\uff9f"  # Japanese syllables
    r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
ANY_UNSPACED = re.compile(f"[{UNSPACED}]")
ANY_UNSPACED_EXAMPLES = ("a «東»«京»", "서울 and Москва")

KOREAN = re.compile(r"[\uac00-\ud7a3]+")
KOREAN_EXAMPLES = ("in «서울»!", "東京 and Москва")

# A run is cut here: one such character with its marks is a word, and what lies between is another.
PART = regex.compile(rf"[{UNSPACED}]\p{{M}}*+ | [^{UNSPACED}]++", regex.X)
PART_EXAMPLES = ("«Tokyo»«東»«京»«2020»", "")


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
    return list(itertools.chain.from_iterable(map(PART.findall, runs)))


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
