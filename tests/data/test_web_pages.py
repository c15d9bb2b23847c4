"""HTML is told from text about it, decoded as the page says, and read for its main text."""

import importlib.metadata
import sys

import pytest

from hfscale.data.web_pages import decode_page, extractor_version, is_html, page_text
from hfscale.process import InputError

PAGE = """<!doctype html><html><head><title>Bees</title><script>var x='not text';</script><style>p{}</style></head>
<body><nav>Home | About</nav><article><h1>Bees</h1><p>A colony of bees lives through the winter as a cluster.</p>
<p>On the first warm days of &quot;spring&quot; some of them fly out to look for <b>water</b> and early pollen.</p>
</article><footer>&copy; example</footer></body></html>"""


@pytest.mark.parametrize(
    "text",
    [
        PAGE,
        "\ufeff \n<HTML lang=en>",
        "<!-- made by hand --><!-- twice -->\n<html>",
        '<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
        "<head><title>x</title></head>",
        "<body class='a'>text",
        '<div class="post"><p>Hello</p><a href="/x">more</a><span>!</span></div>',
        "<table><tr><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr></table>",
    ],
)
def test_pages_and_pieces_of_pages(text):
    assert is_html(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A house.",
        "The <html> tag opens a page, and <body> its text.",
        "print('<!doctype html><html><body>')",
        "<p>"
        + "In <b>bold</b> type there is little markup and much text, as it should be. " * 5
        + "</p>",
        "<|im_start|>user\nHello<|im_end|>",
        "<doc>\n" + "Wikipedia's plain text. " * 20 + "</doc>",
        "<?xml version='1.0'?><rss><item>text</item></rss>",
        "<3 " * 100,
        "<header>News</header>",
    ],
)
def test_text_that_is_no_page(text):
    assert not is_html(text)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("grün".encode(), "grün"),
        ("\ufeffgrün".encode(), "grün"),
        ("grün".encode("utf-16"), "grün"),
        ("<meta charset='latin-1'>“grün”".encode("cp1252"), "<meta charset='latin-1'>“grün”"),
        (
            '<META http-equiv=Content-Type content="text/html; charset=windows-1251">Привет'.encode(
                "cp1251"
            ),
            '<META http-equiv=Content-Type content="text/html; charset=windows-1251">Привет',
        ),
        ("<meta charset=Shift_JIS>日本".encode("shift_jis"), "<meta charset=Shift_JIS>日本"),
        (
            '<?xml version="1.0" encoding="iso-8859-15"?>€'.encode("iso8859-15"),
            '<?xml version="1.0" encoding="iso-8859-15"?>€',
        ),
        (b"<meta charset=utf-16>ok", "<meta charset=utf-16>ok"),
        (b"<meta charset=nothing-known>ok", "<meta charset=nothing-known>ok"),
        (b"<meta charset=zlib>ok", "<meta charset=zlib>ok"),
    ],
)
def test_a_page_says_its_encoding(data, text):
    assert decode_page(data) == text


def test_bytes_of_another_encoding_are_no_page():
    with pytest.raises(UnicodeDecodeError):
        decode_page("grün".encode("latin-1"))


def test_the_main_text_of_a_page():
    pytest.importorskip("trafilatura", reason="the extra html")
    assert page_text(PAGE) == (
        "Bees\nA colony of bees lives through the winter as a cluster.\n"
        'On the first warm days of "spring" some of them fly out to look for water and early '
        "pollen."
    )
    assert page_text("<html><body></body></html>") == ""
    assert page_text("<p>A piece of a page, which is some prose with a mark around it.</p>") == (
        "A piece of a page, which is some prose with a mark around it."
    )


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(InputError, match=r'^HTML needs an extra; pip install "hfscale\[html\]"$'):
        page_text(PAGE)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        InputError, match=r"^a.html: HTML needs an extra; pip install .hfscale\[html\]., or leave"
    ):
        extractor_version("a.html")
