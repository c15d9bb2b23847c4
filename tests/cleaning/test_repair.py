"""Damage is mended, and right text stays as it is."""

import json
import sysconfig
import unicodedata
import zipfile
from pathlib import Path

import pytest

from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.repair import repair_text


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
