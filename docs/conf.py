"""The site: `make docs` builds it from these pages, the README and the docstrings."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_site")]

from pygments.lexers.special import TextLexer  # noqa: E402

import hfscale  # noqa: E402 - from this checkout


def tag_of_head() -> str | None:
    """The tag that stands at this commit, if one does."""
    command = ["git", "describe", "--tags", "--exact-match"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


from hfscale.process import hide_bitsandbytes  # noqa: E402

# For the docstrings the library is imported; peft would bring this along with a warning.
hide_bitsandbytes()

project = "hfscale"
author = "the hfscale authors"
tag = tag_of_head()
release = tag.removeprefix("v") if tag else f"{hfscale.__version__}.dev"
version = release
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",  # docs/_site: commands within them
    "course_pages",  # docs/_site: notebooks that `make course` has run
    "links_out",  # docs/_site: links to the README and to files of the repository
    "mathml",  # docs/_site: formulas without JavaScript
    "readable",  # docs/_site: what a keyboard and a screen reader need
]
root_doc = "index"
exclude_patterns = ["_site", "_static", "_templates", "pictures", "course/*.py"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other libraries have no page here

# Pages as GitHub shows them, and notebooks as they were run.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

# Docstrings are short texts with `names`; signatures say the types.
smartquotes = False  # messages stand as they are printed
default_role = "literal"
napoleon_custom_sections = [("Options", "params_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

# External links want a network: `make docs-links`.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_ignore = [r"http://(127\.0\.0\.1|localhost).*"]

html_theme = "furo"
html_title = f"hfscale {release}"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["hfscale.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def setup(app):
    """Called by Sphinx."""
    app.add_lexer("csv", TextLexer)
