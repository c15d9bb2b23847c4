"""The pipeline over shards on a real Ray cluster of this machine, with two workers at once."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from recipes import prepare_data
from tests.cleaning.shard_runs import result, words

pytestmark = [pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.needs("datatrove")]
ROOT = Path(__file__).parents[2]
# Kills the worker of Ray that reads it, at its first try.
KILLER = """
import time
from pathlib import Path

import psutil

MARK = Path({mark!r})


def documents():
    if not MARK.exists():
        reader = psutil.Process()
        MARK.write_text(str(reader.pid))
        workers = [one for one in reader.parents() if "ray::" in " ".join(one.cmdline())]
        workers[-1].kill()  # the others are forks of it
        time.sleep(60)  # long enough for the second try to end first
    for number in range(9):
        yield f"the sea and that number {{number}} " + "is one of the words here " * (12 + number)
"""


@pytest.fixture
def run_on_ray():
    """Runs the recipe on a cluster of its own, of which no process is left at the end."""
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets want a short name
    environment = os.environ | {"RAY_TMPDIR": folder, "HOME": folder}  # HOME: Ray's own token

    def run(*arguments):
        return subprocess.run(
            [
                *(sys.executable, "recipes/prepare_data_cluster.py", *arguments),
                *("--executor", "ray", "--workers", "2"),
                *("--executor_args", '{"mem_per_cpu_gb": 0.25}'),
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    try:
        yield run
        _, alive = psutil.wait_procs(processes_of(folder), timeout=30)
        assert not alive
    finally:
        for process in processes_of(folder):
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == folder:
                found.append(process)
        except psutil.Error:  # it ended just now, or is somebody else's
            continue
    return found


def test_two_workers_of_ray_give_what_one_machine_gives_though_one_is_killed(
    crawl, tmp_path, run_on_ray
):
    mark = tmp_path / "killed"
    (tmp_path / "killer.py").write_text(KILLER.format(mark=str(mark)))
    sources = [crawl, f"{tmp_path / 'killer.py'}:documents"]
    done = run_on_ray(*words(sources, tmp_path / "many", "--tasks", "2"))
    assert done.returncode == 0, done.stderr
    assert not psutil.pid_exists(int(mark.read_text())), "it would write beside the second try"
    assert "RayActorError" in done.stderr
    assert "job 5 of 5, publish: 1 of 1 tasks to do" in done.stderr
    prepare_data.main(words(sources, tmp_path / "one"))
    assert result(tmp_path / "one") == result(tmp_path / "many")
    assert {p.name for p in (tmp_path / "many.work").iterdir()} == {"logs", "settings.json"}


def test_a_task_that_fails_on_ray_ends_the_run_in_its_line(crawl, tmp_path, run_on_ray):
    whole = (crawl / "4.jsonl.gz").read_bytes()
    (crawl / "4.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    failed = run_on_ray(*words(crawl, tmp_path / "many", "--tasks", "2"))
    last = failed.stderr.splitlines()[-1]
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert last.startswith(f"error: {crawl / '4.jsonl.gz'}: cannot be read: ")
    assert "(job read: 1 of 2 tasks did not finish; run the same command again to go on)" in last
    problems = tmp_path / "many.work" / "logs" / "read" / "problems"
    assert [path.name for path in problems.iterdir()] == ["00001"]
    assert not (tmp_path / "many").exists()
