"""The pipeline over shards gives what one machine gives: the same data set, card and dropped
documents.
"""

import importlib.util
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hfscale.cleaning import engines
from hfscale.process import InputError
from recipes import prepare_data, prepare_data_cluster
from tests.cleaning.shard_runs import prose, result, words

pytest.importorskip("datatrove", reason="the extra cluster-data")


@pytest.mark.parametrize(
    "more",
    [
        ("--tasks", "3"),
        ("--tasks", "7"),  # whole files; parts of files, and more tasks than documents in some
        pytest.param(
            ("--tasks", "3", "--workers", "2"), marks=pytest.mark.slow
        ),  # a pool of processes
        ("--tasks", "2", "--near_duplicates", "false"),
        pytest.param(("--tasks", "2", "--exact_duplicates", "false"), marks=pytest.mark.slow),
    ],
)
def test_shards_give_what_one_machine_gives(crawl, tmp_path, more):
    own = [word for word in more if word not in ("--tasks", "--workers") and not word.isdecimal()]
    prepare_data.main(words(crawl, tmp_path / "one", *own))
    prepare_data_cluster.main(words(crawl, tmp_path / "many", "--workers", "1", *more))
    assert result(tmp_path / "one") == result(tmp_path / "many")
    card = json.loads((tmp_path / "many" / "data_card.json").read_text("utf-8"))
    stages = {
        stage["stage"]: stage["documents_in"] - stage["documents_out"] for stage in card["stages"]
    }
    assert stages["quality"] == 1 and card["stages"][0]["empty"] == 5
    if not own:
        assert stages["exact duplicates"] == 8 and stages["near duplicates"] >= 15
    assert {p.name for p in (tmp_path / "many.work").iterdir()} == {"logs", "settings.json"}


@pytest.mark.slow
def test_the_end_shows_the_counts_and_a_dry_run_those_of_the_first_part(crawl, tmp_path, capsys):
    prepare_data_cluster.main(words(crawl, tmp_path / "many", "--workers", "1", "--tasks", "5"))
    shown = capsys.readouterr().out
    card = json.loads((tmp_path / "many" / "data_card.json").read_text("utf-8"))
    stages = {stage["stage"]: stage["documents_out"] for stage in card["stages"]}
    for name, kept in stages.items():
        assert re.search(rf"│ {name} +│ [0-9]+ +│ {kept} +│", shown), name
    before = sorted(tmp_path.rglob("*"))
    prepare_data_cluster.main(words(crawl, tmp_path / "new", "--tasks", "5", "--dry_run"))
    first = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "the first of 5 tasks reads, by itself; nothing was written" in first
    prepare_data.main(words(crawl / "0.jsonl.gz", tmp_path / "new", "--dry_run"))
    assert first.splitlines()[:-1] == capsys.readouterr().out.splitlines()[:-1]


def test_more_tasks_than_documents(tmp_path):
    rows = [json.dumps({"text": prose(random.Random(i))}) + "\n" for i in range(3)]
    (tmp_path / "few.jsonl").write_text("".join(rows))
    prepare_data.main(words(tmp_path / "few.jsonl", tmp_path / "one"))
    prepare_data_cluster.main(
        words(tmp_path / "few.jsonl", tmp_path / "many", "--workers", "1", "--tasks", "5")
    )
    assert result(tmp_path / "one") == result(tmp_path / "many")


@pytest.mark.slow
def test_only_unfinished_tasks_run_again(crawl, tmp_path):
    whole, broken = (crawl / "4.jsonl.gz").read_bytes(), tmp_path / "data.work"
    (crawl / "4.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    arguments = words(crawl, tmp_path / "data", "--tasks", "5", "--workers", "1")
    with pytest.raises(InputError, match="4.jsonl.gz"):
        prepare_data_cluster.main(arguments)
    assert not (tmp_path / "data").exists()
    done = broken / "logs" / "read" / "completions"
    assert {p.name for p in done.iterdir()} == {f"0000{i}" for i in range(4)}
    before = {i: (broken / "read" / f"0000{i}" / "state.json").stat().st_mtime_ns for i in range(4)}
    with pytest.raises(InputError, match="begun with other settings .seed"):
        prepare_data_cluster.main([*arguments, "--seed", "1"])
    (crawl / "4.jsonl.gz").write_bytes(whole)
    seen = []
    original = shutil.rmtree
    keep = pytest.MonkeyPatch()
    with keep.context() as patch:  # the shards are looked at before they are cleared away
        patch.setattr(
            "hfscale.cleaning.shards.shutil.rmtree",
            lambda path, **how: (
                seen.append(
                    {
                        i: (broken / "read" / f"0000{i}" / "state.json").stat().st_mtime_ns
                        for i in range(4)
                    }
                )
                if Path(path) == broken / "read"
                else None,
                original(path, **how),
            ),
        )
        prepare_data_cluster.main(arguments)
    assert seen == [before]
    prepare_data.main(words(crawl, tmp_path / "one"))
    assert result(tmp_path / "one") == result(tmp_path / "data")
    with pytest.raises(InputError, match="exists"):
        prepare_data_cluster.main(arguments)
    prepare_data_cluster.main(
        [*arguments, "--overwrite", "--seed", "1"]
    )  # a finished run's shards stand in no way


def test_what_is_missing_is_one_line(crawl, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "ray" else find_spec(name, *more),
    )
    with monkeypatch.context() as patch:  # Ray is there, its cluster is not
        patch.setattr(importlib.util, "find_spec", lambda name, *more: find_spec("json"))
        for address in ("127.0.0.1:1", "host:port"):
            patch.setenv("RAY_ADDRESS", address)
            with pytest.raises(InputError, match=f"RAY_ADDRESS .?{address}") as error:
                prepare_data_cluster.main(words(crawl, tmp_path / "data", "--executor", "ray"))
            assert "\n" not in str(error.value)
    for more, match in (
        (["--executor", "slurm"], "no command sbatch"),
        (["--executor", "ray"], r"pip install .hfscale\[ray\]"),
        (["--tasks", "0"], "at least 1"),
        (["--executor_args", '{"partition": "cpu"}'], "partition"),
    ):
        with pytest.raises(InputError, match=match) as error:
            prepare_data_cluster.main(words(crawl, tmp_path / "data", *more))
        assert "\n" not in str(error.value)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "datatrove" else find_spec(name, *more),
    )
    with pytest.raises(InputError, match=r"hfscale\[cluster-data\]"):
        prepare_data_cluster.main(words(crawl, tmp_path / "data"))
    assert {path.name for path in tmp_path.iterdir()} == {"crawl"}


def test_a_refused_job_is_one_line(crawl, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(InputError, match="sbatch ended with status 1; what it said stands above"):
        prepare_data_cluster.main(
            words(
                crawl,
                tmp_path / "data",
                "--executor",
                "slurm",
                "--executor_args",
                '{"partition": "none", "time": "01:00:00"}',
            )
        )
    script = (tmp_path / "data.work" / "logs" / "read" / "launch_script.slurm").read_text()
    assert "#SBATCH --partition=none" in script and "launch_pickled_pipeline" in script


SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
open({log!r}, "a").write(" ".join(sys.argv[1:-1]) + "\\n" + text)
tasks = re.search(r"--array=0-(\\d+)", text)
for i in range(int(tasks[1]) + 1 if tasks and "launch_pickled_pipeline" in text else 0):
    environment = os.environ | {{"SLURM_ARRAY_TASK_ID": str(i), "SLURM_NODELIST": "here"}}
    subprocess.run(["bash", script], env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job", os.getpid())
"""
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n'


@pytest.mark.slow
def test_slurm_scripts_do_the_work(crawl, tmp_path):
    """`sbatch` and `srun` stand-ins run each script at once, as Slurm would in the order of the
    dependencies.
    """
    tools = {
        "sbatch": SBATCH.format(python=sys.executable, log=str(tmp_path / "sbatch.log")),
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho here\n",
    }
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [
        sys.executable,
        "recipes/prepare_data_cluster.py",
        *words(crawl, tmp_path / "many", "--tasks", "2"),
        "--executor",
        "slurm",
        "--executor_args",
    ]
    run = {
        "cwd": Path(__file__).parents[2],
        "env": environment,
        "capture_output": True,
        "text": True,
    }
    missing = subprocess.run([*command, '{"partition": "cpu"}'], **run)
    assert (
        missing.returncode == 2 and "'time'" in missing.stderr and missing.stderr.count("\n") <= 2
    )
    done = subprocess.run(
        [*command, '{"partition": "cpu", "time": "01:00:00", "qos": null}'], **run
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "sbatch.log").read_text()
    assert log.count("#SBATCH --array=0-1") == 4 and log.count("#SBATCH --partition=cpu") == 10
    assert "--dependency=afterok:" in log and str(Path(sys.executable).parent) in log
    prepare_data.main(words(crawl, tmp_path / "one"))
    assert result(tmp_path / "one") == result(tmp_path / "many")


def test_a_second_start_waits_for_the_jobs_of_the_first(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho $* > $0.asked\nprintf '12\\n12\\n9\\n'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    engines.check_queue(tmp_path)  # nothing was queued before
    (tmp_path / engines.SLURM_JOBS).write_text('{"read": "9", "clean": "12"}')
    with pytest.raises(InputError, match="queue: 9, 12; wait for them, .*: scancel 9 12"):
        engines.check_queue(tmp_path)
    assert "--jobs=9,12" in (tmp_path / "squeue.asked").read_text()


def test_too_small_a_cluster_is_said(capsys):
    executor = SimpleNamespace(cpus_per_task=2, mem_per_cpu_gb=1.5)
    large = {"Alive": True, "Resources": {"CPU": 2.0, "memory": 3.0 * engines.GIB}}
    small = {"Alive": True, "Resources": {"CPU": 8.0, "memory": 2.0 * engines.GIB}}
    engines.say_if_no_node_is_large_enough(executor, [small, large])
    assert capsys.readouterr().err == ""
    engines.say_if_no_node_is_large_enough(executor, [small, large | {"Alive": False}])
    assert "no node has 2 CPUs and 3 GiB of memory" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2])
def test_a_process_of_the_pool_that_is_killed_is_begun_once_more(crawl, tmp_path, kills):
    """A pool that is left alone waits for it for ever."""
    (tmp_path / "killer.py").write_text(KILLER.format(place=str(tmp_path), kills=kills))
    sources = [crawl, f"{tmp_path / 'killer.py'}:documents"]
    arguments = words(sources, tmp_path / "many", "--tasks", "2", "--workers", "2")
    problem = tmp_path / "many.work" / "logs" / "read" / "problems" / "00001"
    if kills == 2:
        line = "job read, task 1: its process was killed 2 times"
        with pytest.raises(InputError, match=line):
            prepare_data_cluster.main(arguments)
        assert problem.read_text().startswith(line)
    prepare_data_cluster.main(arguments)
    assert not problem.exists()
    prepare_data.main(words(sources, tmp_path / "one"))
    assert result(tmp_path / "one") == result(tmp_path / "many")


KILLER = """
import os
import signal
from pathlib import Path

PLACE = Path({place!r})


def documents():
    for number in range({kills}):
        if not (PLACE / str(number)).exists():
            (PLACE / str(number)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    for number in range(9):
        yield f"the sea and that number {{number}} " + "is one of the words here " * (12 + number)
"""
