"""The course's notebooks as pages, as `make course` has run them; nothing is run here."""

import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUN = ROOT / "build" / "course"
TITLES = {"en": "The course", "zh": "课程"}
NOT_RUN = {
    "en": "The chapters were not run before this site was built: `make course` runs them.",
    "zh": "生成本站之前没有运行各章：先执行 `make course`，再执行 `make docs`。",
}


def gather(app: Sphinx, config: Config) -> None:
    """Copy the notebooks to docs/course/en and docs/course/zh, each with an index."""
    for language, title in TITLES.items():
        folder = DOCS / "course" / language
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        notebooks = sorted((RUN / language).glob("*.ipynb"))
        for notebook in notebooks:
            shutil.copyfile(notebook, folder / notebook.name)
        names = "\n".join(notebook.stem for notebook in notebooks)
        chapters = f"```{{toctree}}\n:maxdepth: 1\n\n{names}\n```" if names else NOT_RUN[language]
        (folder / "index.md").write_text(f"# {title}\n\n{chapters}\n", "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", gather)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
