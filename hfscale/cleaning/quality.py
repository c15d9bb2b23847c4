"""Whether a text is prose worth training on: what each quality rule measures (docs/cleaning.md)."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from hfscale.cleaning.languages import stop_words
from hfscale.cleaning.rules import QualityRules
from hfscale.data.words import count_letters, find_words, parts_no_words

CHARACTERS_OF_A_WORD = 2  # about, in scripts that part no words by spaces
BULLETS = ("•", "- ", "* ", "●")
ELLIPSES = ("...", "…")
HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so no bit of a key is lost


def quality_problem(
    text: str, rules: QualityRules, languages: Sequence[str] | None = None
) -> tuple[str, float] | None:
    """The first rule broken, in the order of the fields, and the measured value; None for a text
    that passes.

    `languages` are those that are kept: the stop words of one of them are enough, and a text
    without spaces between its words is measured by its characters (docs/cleaning.md). None: as for
    English.
    """
    measured = TextMeasures(text, languages)
    for rule, limit in vars(rules).items():
        if limit is None:
            continue
        value = MEASURES[rule](measured)
        if value is None:
            continue
        is_broken = value < limit if rule.startswith("min_") else value > limit
        if is_broken:
            return rule, round(value, 4)
    return None


class TextMeasures:
    """What the rules measure of one text, each computed when a rule asks for it."""

    def __init__(self, text: str, languages: Sequence[str] | None):
        self.text = text
        self.languages = languages
        self.is_unspaced = languages is not None and parts_no_words(text)
        # There each character is in the place of a word, and words are counted in characters.
        self.words = find_words(text) if self.is_unspaced else text.split()
        self.word_size = CHARACTERS_OF_A_WORD if self.is_unspaced else 1

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word occurs."""
        return Counter(self.words)

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank."""
        return [line.strip() for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between empty lines."""
        parts = self.text.split("\n\n")
        return [part.strip() for part in parts if part and not part.isspace()]

    @cached_property
    def word_ids(self) -> np.ndarray:
        """A number for each word, equal for equal words."""
        number_of = {word: number for number, word in enumerate(self.counts)}
        return np.fromiter(map(number_of.__getitem__, self.words), np.uint64, len(self.words))

    @cached_property
    def word_lengths(self) -> np.ndarray:
        """Characters of each word."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    def num_words(self) -> int:
        """Words, or half the characters of a text without spaces."""
        return len(self.words) // self.word_size

    def mean_word_length(self) -> float | None:
        """Letters per word; None without spaces."""
        if self.is_unspaced:
            return None
        return count_letters(self.words) / max(1, self.num_words())

    def symbol_to_word_ratio(self) -> float:
        """Hash signs or ellipses, whichever are more, per word."""
        num_ellipses = sum(self.text.count(ellipsis) for ellipsis in ELLIPSES)
        return max(self.text.count("#"), num_ellipses) / max(1, self.num_words())

    def bullet_line_share(self) -> float:
        """Share of lines that begin with a bullet."""
        num_bullets = sum(line.startswith(BULLETS) for line in self.lines)
        return num_bullets / max(1, len(self.lines))

    def ellipsis_line_share(self) -> float:
        """Share of lines that end in an ellipsis."""
        num_ellipses = sum(line.endswith(ELLIPSES) for line in self.lines)
        return num_ellipses / max(1, len(self.lines))

    def alphabetic_word_share(self) -> float:
        """Share of words that hold a letter."""
        num_alphabetic = sum(
            count for word, count in self.counts.items() if any(map(str.isalpha, word))
        )
        return num_alphabetic / max(1, len(self.words))

    def num_stop_words(self) -> int | None:
        """Different stop words of the language with most of them; None if those of one language
        are not known.
        """
        words_of_languages = stop_words(self.languages or ["en"])
        if words_of_languages is None:
            return None
        # Without spaces they are looked for anywhere in the text.
        where = self.text if self.is_unspaced else {word.lower() for word in self.counts}
        return max(sum(word in where for word in words) for words in words_of_languages)

    def duplicate_line_share(self) -> float:
        """Share of lines that are copies of other lines."""
        return _copy_share(self.lines)

    def duplicate_paragraph_share(self) -> float:
        """Share of paragraphs that are copies of others."""
        return _copy_share(self.paragraphs)

    def top_2gram_share(self) -> float:
        """Share of the characters in the most frequent pair of words."""
        return self._top_ngram_share(2)

    def top_3gram_share(self) -> float:
        """As `top_2gram_share`, of three words."""
        return self._top_ngram_share(3)

    def top_4gram_share(self) -> float:
        """As `top_2gram_share`, of four words."""
        return self._top_ngram_share(4)

    def _top_ngram_share(self, num_words: int) -> float:
        """0 if none occurs twice."""
        size = num_words * self.word_size
        keys = _ngram_keys(self.word_ids, size)
        different, counts = np.unique(keys, return_counts=True)
        if counts.max(initial=1) == 1:
            return 0.0
        first = np.argmax(keys == different[counts.argmax()])
        length = self.word_lengths[first : first + size].sum()
        return min(1.0, float(counts.max() * length / self.word_lengths.sum()))

    def duplicate_5gram_share(self) -> float:
        """Share of the characters in second and later occurrences of five words."""
        size = 5 * self.word_size
        keys = _ngram_keys(self.word_ids, size)
        _, first_places = np.unique(keys, return_index=True)
        repeated = np.delete(np.arange(len(keys)), first_places)
        is_covered = np.zeros(len(self.words), dtype=bool)
        for offset in range(size):
            is_covered[repeated + offset] = True
        return float(self.word_lengths[is_covered].sum() / max(1, self.word_lengths.sum()))


def _copy_share(items: list[str]) -> float:
    return 1 - max(1, len(set(items))) / max(1, len(items))


def _ngram_keys(ids: np.ndarray, size: int) -> np.ndarray:
    """A polynomial modulo 2**64: equal n-grams have equal keys, others almost surely not."""
    keys = np.zeros(max(0, len(ids) - size + 1), dtype=np.uint64)
    for offset in range(size):
        keys = keys * HASH_MULTIPLIER + ids[offset : offset + len(keys)]
    return keys


# By the rules' names in `QualityRules`.
MEASURES = {
    "min_words": TextMeasures.num_words,
    "max_words": TextMeasures.num_words,
    "min_mean_word_length": TextMeasures.mean_word_length,
    "max_mean_word_length": TextMeasures.mean_word_length,
    "max_symbol_to_word_ratio": TextMeasures.symbol_to_word_ratio,
    "max_bullet_line_share": TextMeasures.bullet_line_share,
    "max_ellipsis_line_share": TextMeasures.ellipsis_line_share,
    "min_alphabetic_word_share": TextMeasures.alphabetic_word_share,
    "min_stop_words": TextMeasures.num_stop_words,
    "max_duplicate_line_share": TextMeasures.duplicate_line_share,
    "max_duplicate_paragraph_share": TextMeasures.duplicate_paragraph_share,
    "max_top_2gram_share": TextMeasures.top_2gram_share,
    "max_top_3gram_share": TextMeasures.top_3gram_share,
    "max_top_4gram_share": TextMeasures.top_4gram_share,
    "max_duplicate_5gram_share": TextMeasures.duplicate_5gram_share,
}
