"""What a keyboard, a screen reader and a reader of Chinese need."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

# Chinese characters, and the punctuation that is as wide as they are.
WIDE = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")
PUNCTUATION = re.compile("[\u3000-\u303f\uff00-\uffef]")
EMPTY_HEADER = re.compile(r'<th class="head[^"]*"><p></p></th>')
SCROLLS = re.compile(r'<pre(?=>)|<div class="table-wrapper[^"]*"')


def is_chinese(docname: str) -> bool:
    """By its name: `tutorial.zh`, `course/zh/...`."""
    return docname.endswith(".zh") or "/zh/" in docname


class JoinChineseLines(SphinxTransform):
    """On Chinese pages a line's end beside a Chinese character is no space."""

    default_priority = 900

    def apply(self, **kwargs: Any) -> None:
        """MyST makes a text of its own of each line's end."""
        if not is_chinese(self.env.docname):
            return
        texts = list(self.document.findall(nodes.Text))
        for before, end, after in zip(texts, texts[1:], texts[2:], strict=False):
            if end == "\n" and is_joined(before[-1:], after[:1]):
                end.parent.remove(end)


def is_joined(left: str, right: str) -> bool:
    """Whether two characters stand side by side without a space in Chinese text."""
    if PUNCTUATION.match(left) or PUNCTUATION.match(right):
        return True
    return bool(WIDE.match(left) and WIDE.match(right))


def make_readable(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """What scrolls sideways can be reached by keyboard; the page says its language."""
    if body := context.get("body"):
        body = EMPTY_HEADER.sub("<td></td>", body)  # a corner is no header
        context["body"] = SCROLLS.sub(r'\g<0> tabindex="0"', body)
    tree = context["furo_navigation_tree"]
    context["furo_navigation_tree"] = tree.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )
    if is_chinese(page):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_transform(JoinChineseLines)
    app.connect("html-page-context", make_readable, priority=900)  # after the theme
    return {"parallel_read_safe": True, "parallel_write_safe": True}
