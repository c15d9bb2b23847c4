"""The Dockerfile: well made by its linter's rules, and with the files that the package is built of."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def copied() -> set[str]:
    """What of the checkout comes into the image."""
    lines = DOCKERFILE.read_text().splitlines()
    return {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}


def test_the_linter_has_nothing_to_say():
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_package_is_built_of_is_copied_and_sent_to_the_builder():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.split("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    named = {project["project"]["readme"], *project["project"]["license-files"]}
    assert copied() == {"pyproject.toml", "constraints.txt", "hfscale", *folders, *named}
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in sent if line.startswith("!")} == copied()


def test_its_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (line,) = [
        line for line in DOCKERFILE.read_text().splitlines() if line.startswith("ARG EXTRAS")
    ]
    assert set(line.split('"')[1].split(",")) <= extras.keys()
