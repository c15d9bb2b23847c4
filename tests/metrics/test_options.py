"""What a metric can be told, and that nothing else is taken without a word."""

import pytest

from hfscale.metrics.options import check_options, rouge_tokens
from hfscale.process import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"f1": {}}, "metric_options: 'f1' is not among the metrics; add it to --metrics"),
        (
            {"rogue": {"tokenizer": "words"}},
            r"'rogue' is not among the metrics; did you mean rouge\?",
        ),
        ({"rouge": "words"}, "metric_options: rouge: got 'words', expected its options by name"),
        ({"rouge": None}, "metric_options: rouge: got None"),
        ({"rouge": ["tokenizer"]}, "metric_options: rouge: got"),
        ({"rouge": {"tokenizer": "word"}}, "rouge: got option tokenizer='word', expected"),
        ({"rouge": {"tokenizer": ["words"]}}, "rouge: got option tokenizer="),
        (
            {"rouge": {"tokenizer": "words", "use_stemmer": True}},
            "rouge: use_stemmer stems English",
        ),
        ({"exact_match": {"squad_version": "2"}}, "exact_match: got option squad_version='2'"),
        ({"accuracy": {"ties": "first"}}, "accuracy: got option ties='first', expected none"),
        ({"bleu": {"tokenise": "zh"}}, r"bleu: sacrebleu does not take .*did you mean tokenize\?"),
        ({"bleu": {"tokenize": "zhh"}}, "bleu: sacrebleu does not take .*zhh"),
        (
            {"bleu": {"tokenize": "ja-mecab"}},
            "bleu: sacrebleu does not take .*Japanese tokenization requires",
        ),
        ({"bleu": {"max_ngram_order": "4"}}, "bleu: sacrebleu does not take .*expected int"),
        ({"bleu": {"max_ngram_order": 0}}, "max_ngram_order: got 0, expected at least 1"),
        ({"bleu": {"lowercase": "yes"}}, "bleu: sacrebleu does not take .*expected bool"),
        ({"bleu": {"smooth_value": -1}}, "smooth_value: got -1, expected at least 0"),
        (
            {"bleu": {"references": [["a"]]}},
            "bleu: sacrebleu does not take .*unknown option references",
        ),
        ({"chrf": {"char_order": 0}}, "char_order: got 0, expected at least 1"),
        ({"chrf": {"word_order": -2}}, "word_order: got -2, expected at least 0"),
        ({"chrf": {"beta": 2.5}}, "chrf: sacrebleu does not take .*expected int"),
    ],
)
def test_options_that_do_nothing_or_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message) as error:
        check_options(options, ("rouge", "bleu", "chrf", "exact_match", "accuracy"))
    assert "\n" not in str(error.value)


def test_options_of_the_metrics_are_taken():
    check_options(
        {
            "bleu": {"tokenize": "zh", "smooth_value": None},
            "chrf": {"word_order": 2},
            "rouge": {"tokenizer": "words"},
            "f1": {"squad_version": 1},
            "exact_match": {},
        },
        ["bleu", "chrf", "rouge", "f1", "exact_match"],
    )


@pytest.mark.parametrize(
    ("text", "words", "characters"),
    [
        ("कि की", ["कि", "की"], ["कि", "की"]),
        ("Don't stop", ["don", "t", "stop"], list("don'tstop")),
        ("今天", ["今", "天"], ["今", "天"]),
        ("Vie\u0323\u0302t", ["việt"], list("việt")),  # in NFD
        ("ดี", ["ดี"], ["ดี"]),
    ],
)
def test_a_word_and_a_character_keep_their_marks(text, words, characters):
    assert rouge_tokens("words")(text) == words and rouge_tokens("character")(text) == characters
