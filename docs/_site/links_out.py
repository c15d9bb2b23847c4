"""Links that leave docs/ work on the site as they do on GitHub.

`../README.md` and its kin are pages here. Any other file or folder of the repository gets a page
that shows it, with an anchor for each function and class: `../tests/test_x.py#test_name`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Files of the repository that are pages themselves; these include them.
PAGES = {
    "README.md": "index",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "CHANGELOG.md": "changelog",
}
LEXERS = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml"}
CHAPTER = re.compile(r"course/(\d\d_\w+)\.py")
# MyST drops the anchor of a link to a file, but not what follows this sign.
ANCHORED = re.compile(r"(\]\(\.\./[^)#\s]+\.py)#(\w+\))")
NAMED = re.compile(r"(?:async )?(?:def|class) (\w+)")

logger = logging.getLogger(__name__)


def keep_anchors(app: Sphinx, docname: str, source: list[str]) -> None:
    """Of links to functions and classes in files."""
    source[0] = ANCHORED.sub(r"\1?\2", source[0])


def file_of(target: str, docname: str) -> Path | None:
    """The file or folder outside of docs/ that a link of the page means, or None."""
    page = DOCS / f"{docname}.md"
    folders = [page.parent, *([ROOT] if docname in PAGES.values() else [])]
    for folder in folders:
        path = (folder / target).resolve()
        if path.exists() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS):
            return path
    return None


def page_of(path: Path) -> str:
    """Name of the page that shows a file or folder."""
    name = path.relative_to(ROOT).as_posix()
    return f"source/{name}/index" if path.is_dir() else f"source/{name}"


class LinksOut(SphinxTransform):
    """Turn links to files outside of docs/ into links to pages."""

    default_priority = 100

    def apply(self, **kwargs: Any) -> None:
        """Look at each link that MyST read."""
        for kind in (addnodes.download_reference, addnodes.pending_xref):
            for node in list(self.document.findall(kind)):
                if node.get("reftype") == "myst" and node.get("refdomain") is None:
                    self.follow(node)

    def follow(self, node: nodes.Element) -> None:
        """Replace the link if it leaves docs/."""
        target, _, anchor = re.sub(r"[?#]", "\n", node["reftarget"]).partition("\n")
        if chapter := CHAPTER.fullmatch(target):
            self.replace(node, chapter_page(chapter[1], self.env.docname), None)
            return
        path = file_of(target, self.env.docname) if target else None
        if path is None:
            return
        name = path.relative_to(ROOT).as_posix()
        if name in PAGES:
            self.replace(node, PAGES[name], anchor or None)
            return
        if anchor and anchor not in names_in(path):
            logger.warning("%s has no %s", name, anchor, location=node)
        shown(self.env).setdefault(self.env.docname, set()).add(name)
        up = "../" * self.env.docname.count("/")
        uri = f"{up}{page_of(path)}.html" + (f"#{anchor}" if anchor else "")
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))

    def replace(self, node: nodes.Element, page: str, anchor: str | None) -> None:
        """Put a link to a page of the site in its place."""
        link = addnodes.pending_xref(
            "",
            *node.children,
            refdomain="doc",
            reftype="myst",
            refexplicit=True,
            refdoc=self.env.docname,
            reftarget=page,
            reftargetid=anchor,
            classes=["xref", "myst"],
        )
        node.replace_self(link)


def chapter_page(name: str, docname: str) -> str:
    """The page of a chapter in the language of the page that names it."""
    language = "zh" if docname.endswith(".zh") else "en"
    return f"course/{language}/{name}"


def names_in(path: Path) -> set[str]:
    """Functions and classes of a Python file that stand at its margin."""
    if path.suffix != ".py":
        return set()
    return {
        found[1] for line in path.read_text("utf-8").splitlines() if (found := NAMED.match(line))
    }


def shown(env: Any) -> dict[str, set[str]]:
    """Which page links to which files, kept from one build to the next."""
    if not hasattr(env, "hfscale_shown_files"):
        env.hfscale_shown_files = {}
    return env.hfscale_shown_files


def forget(app: Sphinx, env: Any, docname: str) -> None:
    """Before a page is read again."""
    shown(env).pop(docname, None)


def merge(app: Sphinx, env: Any, docnames: list[str], other: Any) -> None:
    """After pages were read by several processes."""
    shown(env).update({name: found for name, found in shown(other).items() if name in docnames})


def file_page(app: Sphinx, path: Path) -> tuple[str, dict[str, Any], str]:
    """A page with the text of a file."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text("utf-8")
    lexer = LEXERS.get(path.suffix, "text")
    block = app.builder.highlighter.highlight_block(text, lexer, force=True)
    opening, code = block.split("<pre>", 1)
    lines = code.removeprefix("<span></span>").split("\n")
    for place, line in enumerate(text.splitlines()):
        if path.suffix == ".py" and (found := NAMED.match(line)):
            lines[place] = f'<span id="{found[1]}">{lines[place]}</span>'
    body = f"<h1>{name}</h1>\n{opening}<pre>" + "\n".join(lines)
    return page_of(path), {"title": name, "body": body, "meta": {"hide-toc": True}}, "page.html"


def folder_page(app: Sphinx, path: Path) -> tuple[str, dict[str, Any], str]:
    """A page with the names of a folder's files."""
    name = path.relative_to(ROOT).as_posix()
    files = sorted(file.name for file in path.iterdir() if not file.name.startswith(("_", ".")))
    items = "".join(f"<li><code>{file}</code></li>" for file in files)
    body = f"<h1>{name}/</h1>\n<ul>{items}</ul>"
    return page_of(path), {"title": f"{name}/", "body": body}, "page.html"


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file and folder that a page of docs/ links to."""
    for name in sorted(set().union(*shown(app.env).values())):
        path = ROOT / name
        yield folder_page(app, path) if path.is_dir() else file_page(app, path)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_transform(LinksOut)
    app.connect("source-read", keep_anchors)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
