"""The site: every page has its place, every link leads somewhere, and what is built can be read by all."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hfscale.api import public_names
from tests.browser import chromium

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
LOOKED_AT = ("index", "tutorial.zh", "old_examples")


def links(page: Path) -> list[tuple[str, str]]:
    """Targets and anchors, but those of code."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.M | re.S)
    return LINK.findall(text)


def test_the_configuration_is_read():
    path = list(sys.path)
    try:
        settings = runpy.run_path(str(DOCS / "conf.py"))
    finally:
        sys.path[:] = path
    assert settings["html_theme"] == "furo" and settings["nb_execution_mode"] == "off"
    assert settings["release"] in settings["html_title"]


def test_every_page_has_its_place_in_the_contents():
    index = (DOCS / "index.md").read_text("utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.M | re.S)
    named = [line for block in blocks for line in block.splitlines() if line and line[0] != ":"]
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert pages == {name for name in named if "/" not in name and "<" not in name}
    assert {"course/README", "course/en/index", "course/zh/index"} <= set(named)
    assert len(named) == len(set(named))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target, anchor in links(page):
        path = (page.parent / target).resolve() if target else page
        assert path.exists() and path.is_relative_to(ROOT), f"{page.name}: {target}"
        if path.suffix == ".py" and anchor:
            text = path.read_text("utf-8")
            assert re.search(rf"^(def|class) {anchor}\b", text, re.M), f"{target}#{anchor}"


def test_every_answer_names_its_test_and_its_threads():
    text = (DOCS / "answered.md").read_text("utf-8")
    answers = re.split(r"^### ", text, flags=re.M)[1:]
    assert len(answers) > 15
    for answer in answers:
        held, _, asked = answer.partition("- Asked in")
        assert re.search(r"- Held by\s+\[.*?\]\(\.\./tests/\S+\.py#test_", held, re.S), answer[:60]
        numbers = re.findall(r"\[[\w./-]+#(\d+)\]\((https://github\.com/\S+)\)", asked)
        assert numbers, answer[:60]
        assert all(address.endswith(f"/{number}") for number, address in numbers)


def test_the_reference_has_every_public_name_once():
    named = re.findall(r"auto\w+:: hfscale\.(\w+)", (DOCS / "api.md").read_text("utf-8"))
    assert sorted(named) == public_names()


def test_pictures_are_small_and_shown():
    pictures = [path for path in (DOCS / "pictures").iterdir() if path.suffix in (".png", ".svg")]
    shown = " ".join(page.read_text("utf-8") for page in PAGES)
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture.name
        assert f"pictures/{picture.name}" in shown, picture.name


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.mark.slow
@pytest.mark.needs("sphinx")
def test_the_site_is_built_without_a_warning_and_can_be_read_by_all(site):
    """In light and dark, without a network; the text also without JavaScript."""
    from axe_playwright_python.sync_playwright import Axe

    asked = []
    with chromium() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": 1200, "height": 900}
            )
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            for name in LOOKED_AT:
                page.goto((site / f"{name}.html").as_uri())
                found = Axe().run(page).response["violations"]
                assert not found, f"{name}, {scheme}: {json.dumps(found, indent=1)[:3000]}"
            context.close()
        plain = browser.new_context(java_script_enabled=False).new_page()
        plain.goto((site / "tutorial.html").as_uri())
        assert "What is wrong in the original" in plain.locator("article").inner_text()
        assert plain.locator("article math").count() > 5
        assert plain.locator(".sidebar-tree a").count() > len(list(DOCS.glob("*.md"))) - 2
    assert all(address.startswith("file:") for address in asked)
