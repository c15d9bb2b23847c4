"""The pipeline over shards on a real Slurm: this machine as two nodes. `make test-slurm` runs it,
for it wants Slurm's daemons and root.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from recipes import prepare_data
from tests.cleaning.shard_runs import result, words

pytestmark = [pytest.mark.slurm, pytest.mark.slow]  # slow: `-m "not slow"` leaves it out, too
ROOT = Path(__file__).parents[2]
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch")
LONGEST_SECONDS = 240
CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
MailProg=/bin/true
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=cpu Nodes=node1,node2 Default=YES State=UP
"""
# At its first try it says that it runs, waits for a word, and is killed.
KILLER = """
import os
import signal
import time
from pathlib import Path

PLACE = Path({place!r})


def documents():
    if not (PLACE / "running").exists():
        (PLACE / "running").touch()
        while not (PLACE / "die").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    for number in range(9):
        yield f"the sea and that number {{number}} " + "is one of the words here " * (12 + number)
"""


@pytest.fixture(scope="module")
def slurm():
    """The environment in which Slurm's commands find the cluster, with its daemons."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    assert not missing, f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    assert os.getuid() == 0, "Slurm's daemons want root"
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(host=socket.gethostname(), folder=folder, ports=[free_port() for _ in "123"])
    )
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o600)
    munge = ["munged", "--foreground", "--force"]
    for name in ("socket", "key", "pid", "log", "seed"):
        option = name if name == "socket" else f"{name}-file"
        munge.append(f"--{option}={folder}/munge.{name}")
    environment = os.environ | {"SLURM_CONF": str(config)}
    daemons = []
    try:
        daemons.append(start(munge, environment, folder))
        until((folder / "munge.socket").exists)
        daemons.append(start(["slurmctld", "-D", "-c"], environment, folder))
        daemons.append(start(["slurmd", "-D", "-N", "node1"], environment, folder))
        daemons.append(start(["slurmd", "-D", "-N", "node2"], environment, folder))
        until(lambda: asked(environment, "sinfo", "--noheader", "--format=%T %D") == "idle 2\n")
        yield environment
    finally:
        for daemon in daemons[::-1]:
            daemon.terminate()
        for daemon in daemons[::-1]:
            daemon.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(command, environment, folder):
    with (folder / "daemons.log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def until(is_so):
    """Wait for it; a test has no other clock."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


def asked(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def submit(environment, *arguments, partition="cpu"):
    return subprocess.run(
        [
            *(sys.executable, "recipes/prepare_data_cluster.py", *arguments),
            *("--executor", "slurm", "--executor_args"),
            json.dumps({"partition": partition, "time": "00:10:00", "mem_per_cpu_gb": 1}),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def wait_for_the_queue(environment):
    until(lambda: asked(environment, "squeue", "--noheader") == "")


def test_two_nodes_give_what_one_machine_gives_though_a_task_is_killed(crawl, tmp_path, slurm):
    (tmp_path / "killer.py").write_text(KILLER.format(place=str(tmp_path)))
    sources = [crawl, f"{tmp_path / 'killer.py'}:documents"]
    arguments = words(sources, tmp_path / "many", "--tasks", "3")

    queued = submit(slurm, *arguments)
    assert queued.returncode == 0 and "to see them: squeue --jobs=" in queued.stderr
    assert queued.stdout.rstrip().endswith("(when all jobs are done)")
    until((tmp_path / "running").exists)
    second = submit(slurm, *arguments)
    last = second.stderr.splitlines()[-1]
    assert second.returncode == 2 and "still in Slurm's queue" in last and "scancel" in last

    (tmp_path / "die").touch()
    wait_for_the_queue(slurm)  # nothing waits for what will never be
    assert not (tmp_path / "many").exists()
    read = tmp_path / "many.work" / "logs" / "read" / "completions"
    assert {path.name for path in read.iterdir()} == {"00000", "00001"}

    assert submit(slurm, *arguments).returncode == 0
    wait_for_the_queue(slurm)
    prepare_data.main(words(sources, tmp_path / "one"))
    assert result(tmp_path / "one") == result(tmp_path / "many")
    nodes = asked(slurm, "scontrol", "show", "job", "--oneliner")
    assert " NodeList=node1 " in nodes and " NodeList=node2 " in nodes


def test_what_a_task_says_is_kept_and_said_at_the_next_start(crawl, tmp_path, slurm):
    whole = (crawl / "4.jsonl.gz").read_bytes()
    (crawl / "4.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    arguments = words(crawl, tmp_path / "many", "--tasks", "2")
    assert submit(slurm, *arguments).returncode == 0
    wait_for_the_queue(slurm)
    (crawl / "4.jsonl.gz").write_bytes(whole)
    again = submit(slurm, *arguments)
    problem = f"the last time in job read: {crawl / '4.jsonl.gz'}: cannot be read: "
    assert again.returncode == 0 and problem in again.stderr
    wait_for_the_queue(slurm)
    assert (tmp_path / "many" / "data_card.json").is_file()
    assert not list(tmp_path.glob("many.work/logs/*/problems/*"))


def test_what_slurm_refuses_is_one_line(crawl, tmp_path, slurm):
    refused = submit(slurm, *words(crawl, tmp_path / "many"), partition="none")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "invalid partition specified: none" in refused.stderr
    last = "error: executor slurm: sbatch ended with status 1; what it said stands above"
    assert refused.stderr.splitlines()[-1] == last
