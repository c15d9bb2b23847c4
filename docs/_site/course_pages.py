"""The course's notebooks as pages, as `make course` has run them; nothing is run here.

A chapter that was not run is shown without outputs.
"""

import runpy
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "docs" / "course"
RUN = ROOT / "build" / "course"
TITLES = {"en": "Its chapters", "zh": "课程各章"}
NOT_RUN = {
    "en": "These chapters were not run before this site was built, so they have no outputs: {}.",
    "zh": "下列各章在生成本站之前没有运行过，所以没有输出：{}。",
}
INDEX = """# {title}

{note}

```{{toctree}}
:maxdepth: 1

{chapters}
```
"""


def gather(app: Sphinx, config: Config) -> None:
    """Write the notebooks to docs/course/en and docs/course/zh, each with an index."""
    for language in TITLES:
        shutil.rmtree(COURSE / language, ignore_errors=True)
    course = runpy.run_path(str(COURSE / "run.py"))
    names = [path.stem for path in sorted(COURSE.glob("[0-9]*.py"))]
    for name in names:
        notebook = course["read_chapter"](COURSE / f"{name}.py")
        course["write_notebooks"](notebook, COURSE, name)
    for language in TITLES:
        write_index(language, names, take_outputs(language, names))


def take_outputs(language: str, names: list[str]) -> list[str]:
    """Copy the notebooks that were run over the others; the names of those that were not."""
    missing = []
    for name in names:
        executed = RUN / language / f"{name}.ipynb"
        if has_outputs(executed):
            shutil.copyfile(executed, COURSE / language / executed.name)
        else:
            missing.append(name)
    return missing


def has_outputs(notebook: Path) -> bool:
    """`make course ARGS=--no-execute` writes notebooks, too."""
    return notebook.is_file() and '"output_type"' in notebook.read_text("utf-8")


def write_index(language: str, names: list[str], missing: list[str]) -> None:
    """The page that lists the chapters."""
    note = NOT_RUN[language].format(", ".join(missing)) if missing else ""
    text = INDEX.format(title=TITLES[language], note=note, chapters="\n".join(names))
    (COURSE / language / "index.md").write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", gather)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
