"""The thresholds that a document is judged by; light, since recipes read their arguments before anything heavy."""

from dataclasses import dataclass


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
