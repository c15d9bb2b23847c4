"""What all tests share: caches of their own, no network, and where the real texts lie."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

CACHES = {
    "HF_HOME": "",
    "HF_HUB_CACHE": "hub",
    "HF_DATASETS_CACHE": "datasets",
    "HF_MODULES_CACHE": "modules",
    "HF_ASSETS_CACHE": "assets",
    "HF_XET_CACHE": "xet",
}


def pytest_configure(config):
    """Before any test module, and so any Hugging Face library, is imported: these read the
    variables once.
    """
    if hasattr(
        config, "workerinput"
    ):  # a worker of pytest-xdist inherits what the main process set
        return
    folder = config.stash[FOLDER] = tempfile.mkdtemp(prefix="hfscale-tests-")
    os.environ.update({name: os.path.join(folder, sub) for name, sub in CACHES.items()})
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1")


def pytest_unconfigure(config):
    shutil.rmtree(config.stash.get(FOLDER, ""), ignore_errors=True)


FOLDER = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts that lies beside the checkout; skipped without it, unless
    CI=true.
    """
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        message = f"the real texts are not at {folder}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """A folder of 40 UTF-8 text files, one short document each: 00.txt, 01.txt, ..."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        text = (
            f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}"
            + " and on the log" * (i % 6)
        )
        (folder / f"{i:02}.txt").write_text(text + " – ö\n", "utf-8")
    return folder


def pytest_runtest_logfinish(nodeid, location):
    import os, sys
    c = sys.modules.get("rich.console")
    if c and c.Console._environ is not os.environ:
        open("/tmp/lead/environ.log", "a").write(nodeid + "\n")
