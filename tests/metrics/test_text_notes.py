"""What a metric cannot see in a language is said; where it suits the language nothing is."""

import pytest

from hfscale.metrics.text_notes import text_notes


def notes(texts: list[str], **options) -> dict[str, str]:
    return text_notes([[text] for text in texts], ("bleu", "f1"), options)


@pytest.mark.parametrize(
    ("texts", "advice"),
    [
        (["今天天气很好,我们去公园散步", "北京"], "{tokenize: zh}}"),
        (["今日は天気がいいです", "東京都に住んでいます"], "{tokenize: ja-mecab}}"),
        (["カタカナだけ"], "{tokenize: ja-mecab}}"),
        (["ສະບາຍດີ ທຸກຄົນ"], "{tokenize: char}}"),
        (["สวัสดีครับ ผมชื่อสมชาย ยินดีที่ได้รู้จัก"], "{tokenize: char}}"),
        (["សួស្តី"], "{tokenize: char}}"),
        (["မင်္ဂလာပါ"], "{tokenize: char}}"),
        (["སྐད་ཡིག་འདི"], "{tokenize: char}}"),
        (["我喜欢 GPU 和芯片,它们很快"], "{tokenize: zh}}"),
    ],
)
def test_text_without_spaces_is_named_with_what_to_do(texts, advice):
    found = notes(texts)
    assert (
        found["bleu"].startswith("the tokenizer 13a parts words at spaces")
        and advice in found["bleu"]
    )
    assert "chrf" in found["f1"]
    chosen = notes(texts, bleu={"tokenize": "char"})
    assert "bleu" not in chosen or "no reference has 4 tokens" in chosen["bleu"]
    assert notes(texts, bleu={"tokenize": "intl"})["bleu"].startswith(
        "the tokenizer intl parts words"
    )


def test_korean_has_spaces_between_phrases():
    found = notes(["오늘은 날씨가 정말 좋네요"])
    assert "{tokenize: ko-mecab}}" in found["bleu"] and "f1" not in found


@pytest.mark.parametrize(
    "text",
    [
        "the cat sat on the mat",
        "Кошка спит на окне дома",
        "मेरा नाम राम है और",
        "வணக்கம் என் பெயர் ராம்",
        "مرحبا بكم في بيتنا الجديد",
        "שלום לכל מי שגר כאן",
        "Xin chào các bạn thân mến",
        "1 234 56 78",
        "今天 天气 很 好 , 我们 去 公园",
        "The word 猫 means a cat in Japanese",
    ],
)
def test_text_whose_words_are_parted_needs_no_note(text):
    assert notes([text]) == {}


def test_references_too_short_for_bleu():
    """sacrebleu gives such right answers BLEU 0."""
    assert notes(["yes", "no it is"])["bleu"].startswith("no reference has 4 tokens")
    assert notes(["yes", "no it is"], bleu={"effective_order": True}) == {}
    assert notes(["yes", "no it is"], bleu={"max_ngram_order": 2}) == {}
    assert notes(["yes", "one two three four"]) == {}


def test_letters_that_rouge_scores_tokenizer_leaves_out():
    def rouge(text, **options):
        return text_notes([[text]], ["rouge"], {"rouge": options})

    assert "leaves out 25% of the letters" in rouge("über öde Ähren")["rouge1"]  # 3 of 12
    assert rouge("über öde Ähren", tokenizer="words") == rouge("over bleak ears of corn") == {}
