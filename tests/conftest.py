"""What all tests share: caches of their own, no network, and where the real texts lie."""

import os
import shutil
import tempfile
from collections import Counter
from importlib.util import find_spec
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
    # Tests fork; a child of a process with OpenMP threads waits for ever at its first operation.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1")


def pytest_unconfigure(config):
    shutil.rmtree(config.stash.get(FOLDER, ""), ignore_errors=True)


FOLDER = pytest.StashKey[str]()


def fail_if_required(report) -> None:
    """Where everything is required, a test or a file of tests that is skipped has failed."""
    is_expected = hasattr(report, "wasxfail")
    if report.skipped and not is_expected and os.environ.get("HFSCALE_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"HFSCALE_REQUIRE_ALL=1, but skipped: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    fail_if_required(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    fail_if_required(report)
    return report


def pytest_collection_modifyitems(items):
    """Let the longest files come first, so that no worker is left alone with one at the end."""
    seconds: Counter = Counter()
    for item in items:
        seconds[item.path] += expected_seconds(item)
    items.sort(key=lambda item: seconds[item.path], reverse=True)


def expected_seconds(item) -> float:
    """What a test takes, roughly: as its mark says, ten seconds where that says nothing."""
    slow = item.get_closest_marker("slow")
    return slow.kwargs.get("seconds", 10) if slow else 0.3


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        if find_spec(marker.args[0]) is None:
            pytest.skip(f"{marker.args[0]} is not installed")


@pytest.fixture(autouse=True)
def one_environment():
    """`datasets` puts a copy in the place of `os.environ` when it maps with several processes; who
    imported it earlier, as rich did, would not see what a later test sets.
    """
    environment = os.environ
    yield
    os.environ = environment  # noqa: B003 - the object itself is put back


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that HFSCALE_DATA names, with public data sets that are too large to come along.

    Without it a test that wants one is skipped; with HFSCALE_REQUIRE_ALL=1 it fails.
    """
    folder = Path(os.environ.get("HFSCALE_DATA", ""))
    if os.environ.get("HFSCALE_DATA") and folder.is_dir():
        return folder
    pytest.skip(f"HFSCALE_DATA={folder} is no folder with the public data sets")


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


@pytest.fixture(scope="session")
def run_warm():
    """`subprocess.run(args, env=..., timeout=...)` of a Python program that need not import."""
    from tests.warm import WarmStarts

    starts = WarmStarts()
    yield starts.run
    starts.end()
