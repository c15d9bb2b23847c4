"""HTML: told from other text, decoded as browsers do, and read for its main text (extra `html`)."""

import codecs
import importlib.metadata
import re

from hfscale.process import InputError

# Characters, or bytes, in which a page says what it is; browsers look at 1,024 bytes.
BEGINNING = 2048

# How a page begins, after a byte order mark, an XML declaration and comments.
PAGE = re.compile(
    r"""
    [\s\ufeff]*
    (?: <\?xml [^>]* > \s* | <!-- .*? --> \s* )*
    < (?: !doctype\s+html | html | head | body ) \b
    """,
    re.X | re.I | re.S,
)
PAGE_EXAMPLES = (
    "«\ufeff\n<!DOCTYPE html»>",
    "«<?xml version='1.0'?><!-- a\nb --> <html» lang=en>",
    "<p>no page</p>, <header>, <!doctype xml>",
)

# A tag of those that pages are made of, with whatever attributes.
TAG = re.compile(
    r"""
    < /?
    (?:
        div | p | span | a | ul | ol | li | table | tr | td | th | h[1-6] | img | br
        | meta | link | script | style | nav | section | article | header | footer | main
        | form | input | button | iframe | figure | font | center
    )
    \b [^<>]* >
    """,
    re.X | re.I,
)
TAG_EXAMPLES = ("«<div class=a>»one«<BR/>»«</div>»", "<b>bold</b> a < p > b <pre> <john>")
# A page has more of them than prose that mentions one, or has some left over in it.
LEAST_TAGS = 4
LEAST_TAG_SHARE = 0.2  # of the characters

# The encoding that a page or an XML declaration names.
CHARSET = re.compile(
    rb"""
    < (?: meta | \?xml ) [^>]*?
    (?: charset | encoding ) \s* = \s* ["']? \s*
    ( [\w.:-]+ )
    """,
    re.X | re.I,
)
CHARSET_EXAMPLES = (
    "«<meta charset=utf-8»>",
    "«<?xml version='1.0' encoding=\"ISO-8859-1»\"?>",
    "«<META http-equiv='Content-Type' content='text/html; charset=koi8-r»'>",
    "<p charset=utf-8> <meta name=charset>",
)
# By the HTML standard these two names mean Windows-1252, and a page that says UTF-16 in ASCII
# letters is none.
READ_AS = {"iso8859-1": "cp1252", "ascii": "cp1252", "utf-16": "utf-8"}


def is_html(text: str) -> bool:
    """Whether a text is an HTML page, or a piece of one with more markup than prose has left over
    in it.

    It begins as a page does, or begins with a tag and tags fill a fifth of its first 2,048
    characters.
    """
    beginning = text[:BEGINNING]
    if PAGE.match(beginning):
        return True
    if not beginning.lstrip().startswith("<"):
        return False
    tags = TAG.findall(beginning)
    num_characters = sum(map(len, tags))
    return len(tags) >= LEAST_TAGS and num_characters >= LEAST_TAG_SHARE * len(beginning)


def decode_page(data: bytes) -> str:
    """A page as text: in the encoding of its byte order mark, or that its `<meta>` names, else
    UTF-8.

    Raises UnicodeDecodeError: the bytes are not in that encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    named = CHARSET.search(data[:BEGINNING])
    if named is None or data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig")
    name = named[1].decode("ascii").lower()
    try:
        return data.decode(READ_AS.get(codecs.lookup(name).name, name))
    except LookupError:  # no such encoding
        return data.decode("utf-8-sig")


def extractor_version(place: str) -> str:
    """The version of the extractor; raises InputError, beginning with `place`, without the
    extra.
    """
    try:
        return importlib.metadata.version("trafilatura")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f'{place}: HTML needs an extra; pip install "hfscale[html]", or leave it out'
        ) from None


def page_text(page: str) -> str:
    """The main text of a page, a line for each paragraph, without menus, scripts and comments; ""
    if it has none.

    Raises InputError: without the extra `html`.
    """
    try:
        import trafilatura
    except ImportError:
        raise InputError('HTML needs an extra; pip install "hfscale[html]"') from None

    # A piece of a page the extractor would not always take.
    if not PAGE.match(page):
        page = f"<html><body>{page}</body></html>"
    return trafilatura.extract(page, include_comments=False) or ""
