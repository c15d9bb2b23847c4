"""What a keyboard, a screen reader and a reader of Chinese need."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

WIDE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f"
SCROLLS = re.compile(r'<pre(?=>)|<div class="table-wrapper[^"]*"')
BROKEN_LINE = re.compile(rf"(?<=[{WIDE}])\n(?=[{WIDE}])")


def is_chinese(docname: str) -> bool:
    """By its name: `tutorial.zh`, `course/zh/...`."""
    return docname.endswith(".zh") or "/zh/" in docname


class JoinChineseLines(SphinxTransform):
    """A line's end between two Chinese characters is no space."""

    default_priority = 900

    def apply(self, **kwargs: Any) -> None:
        """Only on Chinese pages."""
        if not is_chinese(self.env.docname):
            return
        for text in list(self.document.findall(nodes.Text)):
            if not isinstance(text.parent, nodes.literal_block):
                text.parent.replace(text, nodes.Text(BROKEN_LINE.sub("", text.astext())))


def make_readable(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """What scrolls sideways can be reached by keyboard; the page says its language."""
    if body := context.get("body"):
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
