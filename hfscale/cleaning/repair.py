"""Text with its damage mended: encoding, line ends, control characters, residue of HTML.

Whole pages are read by an extractor (`hfscale.data.web_pages`). What is mended here are the tags
and entities that are left over in lines of prose. An extractor takes every `<word>` for a tag,
parts a sentence at its links and joins paragraphs, so it is no help with those.

Beside each expression stand examples of what it takes («marked») and of what it must leave.
"""

import html
import re
import unicodedata
from functools import partial

import ftfy
from ftfy.badness import is_bad

# A line end that is not \n: of Windows, of old Macs, and Unicode's own.
LINE_END = re.compile(
    r"""
    \r\n?
    | [\x85\u2028\u2029]   # next line; line and paragraph separator
    """,
    re.X,
)
LINE_END_EXAMPLES = ("a«\r\n»b«\r»c«\u2028»d", "a\nb\n\nc")

# What nobody sees or types: terminal colours, control characters but \n and \t, marks of direction
# that are out of use, byte order marks.
UNWANTED = re.compile(
    r"""
    \x1b\[[0-9;]*[A-Za-z]
    | [\x00-\x08\x0b-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffb]
    """,
    re.X,
)
UNWANTED_EXAMPLES = (
    "«\x1b[31m»red«\x1b[0m»",
    "«\ufeff»a«\0»b",
    "tab\tand line\n",
    "zero\u200bwidth",
)

# A character reference of HTML, by name or number; the `;` is what tells it from prose.
ENTITY = re.compile(
    r"""
    & (?:
        [A-Za-z]{2,8}\d{0,2}
        | \# \d{2,7}
        | \# [xX] [0-9a-fA-F]{2,6}
    ) ;
    """,
    re.X,
)
ENTITY_EXAMPLES = (
    "Tom «&amp;» Jerry, «&frac12;» «&#39;» «&#x2014;»",
    "AT&T; R & D; &unknown and &;",
)

# A tag of those that stand in running text, with quoted attributes or none. Those of the group
# `line` end a line where they are closed (or stand alone, as br and hr).
TAG = re.compile(
    r"""
    < (?P<close> /? )
    (?P<name>
        (?P<line> p | br | hr | div | blockquote | h[1-6] | li | tr )
        | ul | ol | table | td | th
        | span | a | b | i | u | em | strong | small | sub | sup | font | center | img
    )
    (?: \s+ [\w-]+ = (?: "[^"<>]*" | '[^'<>]*' ) )*
    \s* /? >
    """,
    re.X | re.I,
)
TAG_EXAMPLES = (
    "«<p>»one«<br />»two«</P>»",
    "see «<a href=\"http://x.org/?a=1\" title='x'>»this«</a>»",
    "He wrote <john> and <mary>, a < b > c, x<y then p<q>r",
    "<script> <p class=plain> <b",
)

# What only whole pages and programs have; there markup is the content.
WEB_PAGE = re.compile(
    r"""
    < (?: !doctype | html | head | body | script | style | \?xml | \?php ) \b
    """,
    re.X | re.I,
)
WEB_PAGE_EXAMPLES = (
    "«<!DOCTYPE» html>«<html» lang='en'>",
    "«<?php» echo 1;",
    "<b>head</b> <header>",
)

# A line of source code: its marks, a call, a comment, or a text in quotes that is all of the line.
# Looked for after tags and entities are gone.
CODE = re.compile(
    r"""
    [{}`\\=<>|]
    | \w\(
    | ^ \s* (?: // | /\* )
    | ^ \s* (["']) [^"']* \1 ,? \s* $
    """,
    re.X,
)
CODE_EXAMPLES = (
    "x «=» 1",
    "prin«t(»1)",
    "«//» a comment",
    "« 'quoted', »",
    "He said 'yes', and (in brackets) no // maybe.",
)

# The same in a whole text, of which each line counts once: in a text with many such lines the tags
# are content.
CODE_LINE = re.compile(
    r"""
    ^ .*? (?: [{}\\=] | \w\( | : $ )
    """,
    re.X | re.M,
)
CODE_LINE_EXAMPLES = ("«if x:»\n«    y =» f(x) + g(x)\nplain words", "Note: this\nis (only) prose.")

CLOSING_TAG = re.compile(r"</ (?P<name> \w{1,10} ) >", re.X)
CLOSING_TAG_EXAMPLES = ("<b>bold«</b>»", "<b> < / b> </averylongname>")

# Tags that are never closed.
STANDING_ALONE = ("br", "hr", "img")
ENDING_A_LINE = ("br", "hr")
BETWEEN_CELLS = ("td", "th")
# One line in five that looks like code makes a text a program.
MOST_CODE_LINES = 1 / 5


def repair_text(text: str) -> str:
    """Without mojibake, residue of HTML, control characters but \\n and \\t, other line ends; in
    Unicode NFC.
    """
    if "<" in text or "&" in text:
        text = _strip_markup(text)
    if not text.isascii() and is_bad(text):
        # By line, so that a bad one neither hides in good ones nor changes them.
        text = "\n".join(map(ftfy.fix_encoding, text.split("\n")))
    text = ftfy.fixes.fix_surrogates(text)  # a lone surrogate has no UTF-8
    text = LINE_END.sub("\n", text)
    text = UNWANTED.sub("", text)
    return unicodedata.normalize("NFC", text)


def _strip_markup(text: str) -> str:
    """Tags and entities out of lines of prose; a whole page or source file stays, there they are
    the content.
    """
    lines = text.split("\n")
    if WEB_PAGE.search(text):
        return text
    num_code_lines = len(CODE_LINE.findall(TAG.sub("", text)))
    if num_code_lines > MOST_CODE_LINES * len(lines):
        return text
    closed = {tag["name"].lower() for tag in CLOSING_TAG.finditer(text)}
    closed.update(STANDING_ALONE)
    return "\n".join(_strip_line(line, closed) for line in lines)


def _strip_line(line: str, closed: set[str]) -> str:
    if "<" not in line and "&" not in line:
        return line
    without_tags = TAG.sub(partial(_replace_tag, closed), line)
    if CODE.search(ENTITY.sub("", without_tags)):
        return line
    return ENTITY.sub(lambda entity: html.unescape(entity[0]), without_tags)


def _replace_tag(closed: set[str], tag: re.Match[str]) -> str:
    """What stands in a tag's place: nothing, a line end or a space; or the tag, where it is only
    spoken of. `closed` are the names of the tags that the text closes somewhere.
    """
    name = tag["name"].lower()
    before = tag.string[max(0, tag.start() - 1) : tag.start()]
    after = tag.string[tag.end() : tag.end() + 1]
    if name not in closed or _is_mentioned(tag, before, after):
        return tag[0]
    ends_line = tag["line"] and (tag["close"] or name in ENDING_A_LINE)
    if ends_line and after:
        return "\n"
    return " " if name in BETWEEN_CELLS else ""


def _is_mentioned(tag: re.Match[str], before: str, after: str) -> bool:
    """Whether the prose is about the tag: markup touches the text that it encloses."""
    if not before or not after:
        return False
    if tag["close"]:
        return before.isspace()
    return after.isspace() or after in ",.;)"
