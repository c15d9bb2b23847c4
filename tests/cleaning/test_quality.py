"""Each quality rule measures what it says, in the languages that are kept."""

import pytest

from hfscale.cleaning.quality import MEASURES, quality_problem
from hfscale.cleaning.rules import QualityRules

OFF = dict.fromkeys(vars(QualityRules()))
PROSE = """It was a bright cold day in April, and the clocks that people have in their halls began to strike one after
the other. The old man, who had been asleep with his dog beside the fire, woke and went to the window. Nobody was to be
seen in the street; a thin snow lay on the roofs, and far away a bell answered, as if it had been waiting for them.
"""


def only(**rule) -> QualityRules:
    return QualityRules(**{**OFF, **rule})


def test_every_rule_has_its_measure():
    assert list(MEASURES) == list(OFF)


@pytest.mark.parametrize(
    ("rules", "text", "value"),
    [
        ({"min_words": 3}, "two words", 2),
        ({"max_words": 1}, "two words", 2),
        ({"min_words": 1}, "", 0),
        ({"min_mean_word_length": 3}, "a bb c dd", 1.5),
        ({"max_mean_word_length": 5}, "abcdef ghijkl", 6),
        ({"max_symbol_to_word_ratio": 0.4}, "# one # two", 0.5),
        ({"max_symbol_to_word_ratio": 0.4}, "one… two", 0.5),
        ({"max_bullet_line_share": 0.5}, "- a\n\n* b\nc\n• d", 0.75),
        ({"max_ellipsis_line_share": 0.4}, "a...\nb…\nc", 0.6667),
        ({"min_alphabetic_word_share": 0.8}, "12 == word 3a", 0.5),
        ({"min_stop_words": 2}, "The cat theatre", 1),
        ({"max_duplicate_line_share": 0.3}, "a\nb\na\n\na", 0.5),
        ({"max_duplicate_paragraph_share": 0.3}, "a\n\nb\n\na", 0.3333),
        ({"max_top_2gram_share": 0.2}, "ab cd xx ab cd yyyy", 0.5714),
        ({"max_top_3gram_share": 0.2}, "a b c d a b c e", 0.75),
        ({"max_top_4gram_share": 0.1}, "a b c d e a b c d f", 0.8),
        ({"max_duplicate_5gram_share": 0.1}, "a b c d e f g a b c d e f h", 0.4286),
    ],
)
def test_each_rule_measures_what_it_says(rules, text, value):
    assert quality_problem(text, only(**rules)) == (next(iter(rules)), value)
    limit = {
        name: limit * (0.1 if name.startswith("min_") else 10) for name, limit in rules.items()
    }
    if value:
        assert quality_problem(text, only(**limit)) is None


def test_defaults_pass_prose_and_stop_what_is_none():
    assert quality_problem(PROSE, QualityRules()) is None
    assert quality_problem("", QualityRules()) == ("min_words", 0)
    assert quality_problem("", only()) is None
    assert (
        quality_problem(PROSE + (PROSE[:60] + "\n") * 30, QualityRules())[0]
        == "max_duplicate_line_share"
    )
    assert quality_problem("x = 1\n" * 100, QualityRules())[0] == "min_mean_word_length"
    assert (
        quality_problem("one two", only(max_top_2gram_share=0.0, max_duplicate_5gram_share=0.0))
        is None
    )


GERMAN = """Am Morgen gingen die Kinder mit ihrem Großvater über die Brücke in die Stadt, weil dort ein Markt war, auf
dem man Äpfel, Brot und Käse kaufen konnte. Der alte Mann erzählte ihnen unterwegs von der Zeit, in der er selbst noch
ein Kind gewesen war und jeden Tag zwei Stunden zur Schule laufen musste, auch im Winter, wenn der Schnee hoch lag.
"""
CHINESE = """春天来了，村子里的人都到田里去干活。老人坐在门口，看着孩子们在河边玩水，
心里想起了自己小时候的事情。那时候家里没有电灯，晚上大家围着火炉听爷爷讲故事。
现在的生活好多了，可是他有时还是会想念那些安静的夜晚，和满天的星星。
明天是女儿回家的日子，他打算一早去市场买鱼，再做几样她爱吃的菜。
"""
KOREAN = """봄이 오면 그 마을 사람들은 모두 밭에 나가 일을 한다. 할아버지는 문 앞에 앉아
강가에서 노는 아이들을 보며 어린 시절을 떠올린다. 그때는 집에 불이 없어서 저녁이면 온 식구가
난로 옆에 모여 옛 이야기를 듣곤 했다. 이제는 사는 것이 훨씬 좋아졌지만, 그 조용한 밤과
하늘의 많은 별이 가끔 그립다. 내일은 딸이 집에 오는 날이라 아침 일찍 시장에 갈 생각이다.
"""


@pytest.mark.parametrize("text", [PROSE.upper(), PROSE.lower(), PROSE.title(), PROSE.swapcase()])
def test_stop_words_count_in_any_letters(text):
    assert quality_problem(text, QualityRules()) is None


@pytest.mark.parametrize(("text", "language"), [(GERMAN, "de"), (CHINESE, "zh"), (KOREAN, "ko")])
def test_rules_follow_the_languages_that_are_kept(text, language):
    assert quality_problem(text, QualityRules(), [language]) is None
    assert quality_problem(text, QualityRules(), ["en", language]) is None
    assert (
        quality_problem(text, QualityRules(), [language, "gn"]) is None
    )  # no stop words of one of them are known
    assert quality_problem(text, QualityRules()) is not None
    assert quality_problem(text, only(min_stop_words=2), ["en", "el"]) == ("min_stop_words", 0)


def test_text_without_spaces_is_measured_by_its_characters():
    """Two characters count as a word."""
    characters = sum(map(str.isalpha, CHINESE))
    assert quality_problem(CHINESE, only(max_words=1), ["zh"]) == ("max_words", characters // 2)
    assert quality_problem(CHINESE, only(min_mean_word_length=99), ["zh"]) is None
    assert quality_problem(CHINESE[:80], QualityRules(), ["zh"]) == ("min_words", 35)
    rule, share = quality_problem("".join(CHINESE.split()) * 3, QualityRules(), ["zh"])
    assert rule == "max_duplicate_5gram_share" and 0.6 < share < 0.7
