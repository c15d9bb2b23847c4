"""Several machines: two network namespaces joined by a virtual cable, started by the shipped
ssh.sh; and the files for Slurm, Kubernetes and SkyPilot as far as one machine without them can
check.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from hfscale.config import check_recipe_args
from hfscale.launch import accelerate_command, find_accelerate_config, split_flags
from hfscale.process import InputError

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "recipes" / "launch"
NO_NAMESPACES = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2",
)
NO_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="the extra hfscale[deepspeed] is missing"
)
HOSTS = {"hfs-a": "10.77.0.1", "hfs-b": "10.77.0.2"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts with names and addresses of their own; yields a program that stands for ssh: SSH
    HOST COMMAND.
    """
    a, b = HOSTS
    with contextlib.ExitStack() as stack:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)
            subprocess.run(["ip", "netns", "add", host], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", host], capture_output=True)
            names = Path("/etc/netns", host)  # what lies here, processes of the host see in /etc
            names.mkdir(parents=True, exist_ok=True)
            stack.callback(shutil.rmtree, names)
            (names / "hosts").write_text(
                "127.0.0.1 localhost\n" + "".join(f"{ip} {n}\n" for n, ip in HOSTS.items())
            )
        subprocess.run(
            [
                "ip",
                "link",
                "add",
                "veth0",
                "netns",
                a,
                "type",
                "veth",
                "peer",
                "name",
                "veth0",
                "netns",
                b,
            ],
            check=True,
        )
        for host, address in HOSTS.items():
            for words in (
                ["addr", "add", f"{address}/24", "dev", "veth0"],
                ["link", "set", "veth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", host, *words], check=True)
        ssh = tmp_path_factory.mktemp("bin") / "ssh"
        ssh.write_text(
            '#!/bin/bash\nexec ip netns exec "$1" unshare --uts bash -c "hostname $1; $2"\n'
        )
        ssh.chmod(0o755)
        yield ssh


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    words = [
        "the",
        "a",
        "cat",
        "dog",
        "bird",
        "sat",
        "ran",
        "on",
        "under",
        "mat",
        "tree",
        "and",
        "then",
        "saw",
        "one",
    ]
    draw, path = random.Random(0), tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "\n".join(" ".join(draw.choices(words, k=draw.randint(20, 40))) for _ in range(60))
    )
    return str(path)


def on_hosts(ssh: Path, config: str, text: str, folder: Path, *words: str) -> subprocess.Popen:
    """Start tests/launched_pretrain.py on both hosts, one process each, the way a user would."""
    hfscale = folder.parent / "hfscale"
    hfscale.write_text(f'#!/bin/bash\nexec {sys.executable} -m hfscale.cli "$@"\n')
    hfscale.chmod(0o755)
    env = {
        **os.environ,
        "GPUS": "1",
        "SSH": str(ssh),
        "HFSCALE": str(hfscale),
        "REMOTE_DIR": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "RANK_NOTES": str(folder.parent),
    }
    return subprocess.Popen(
        [
            LAUNCH / "ssh.sh",
            *HOSTS,
            "--",
            "tests/launched_pretrain.py",
            "--accelerate",
            config,
            "--use_cpu",
            "--source",
            text,
            "--sample_by",
            "line",
            "--tokenizer",
            "char",
            "--num_hidden_layers",
            "2",
            "--num_attention_heads",
            "2",
            "--hidden_size",
            "32",
            "--max_position_embeddings",
            "32",
            "--bf16",
            "false",
            "--report_to",
            "none",
            "--disable_tqdm",
            "--logging_steps",
            "1",
            "--per_device_train_batch_size",
            "4",
            "--output_dir",
            str(folder),
            *words,
        ],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@NO_NAMESPACES
@pytest.mark.slow
@pytest.mark.parametrize("config", ["multi_node_ddp", pytest.param("zero2", marks=NO_DEEPSPEED)])
def test_two_hosts_train_one_model(config, hosts, text, tmp_path):
    process = on_hosts(
        hosts, config, text, tmp_path / "run", "--max_steps", "5", "--save_strategy", "no"
    )
    log = finish(process, 240)
    assert process.returncode == 0, log[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world_size"] for rank in ranks] == [2, 2] and {
        rank["steps"] for rank in ranks
    } == {5}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["hardware"]["world_size"] == 2
    for host, rank in (("hfs-a", 0), ("hfs-b", 1)):
        assert re.search(
            rf"^\[{host}\] running: .*--machine_rank {rank} --main_process_ip hfs-a", log, re.M
        )


@NO_NAMESPACES
@pytest.mark.slow
def test_a_host_that_dies_ends_the_job_and_is_named(hosts, text, tmp_path):
    folder = tmp_path / "run"
    process = on_hosts(
        hosts,
        "multi_node_ddp",
        text,
        folder,
        "--max_steps",
        "100000",
        "--save_steps",
        "20",
        "--save_total_limit",
        "1",
    )
    deadline = time.monotonic() + 200
    while not any(folder.glob("checkpoint-*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    pids = subprocess.run(
        ["ip", "netns", "pids", "hfs-b"], capture_output=True, text=True
    ).stdout.split()
    assert pids, "the second host runs nothing"
    for pid in map(int, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    log = finish(process, 60)  # fails after as many seconds
    assert process.returncode != 0
    assert "error: hfs-b ended with exit status 137; stopping the others" in log
    assert not subprocess.run(
        ["ip", "netns", "pids", "hfs-a"], capture_output=True, text=True
    ).stdout


@NO_NAMESPACES
@pytest.mark.slow
def test_hosts_with_unlike_code_do_not_start(hosts, text, tmp_path):
    """The second host has a script of its own: rank 0 would wait for steps that never come."""
    other = tmp_path / "ssh"
    other.write_text(
        f'#!/bin/bash\n[[ $1 == hfs-b ]] && set -- "$1" "${{2/launched_pretrain/launched_other}}"\n'
        f'exec {hosts} "$@"\n'
    )
    other.chmod(0o755)
    script = ROOT / "tests" / "launched_other.py"
    script.write_text((ROOT / "tests" / "launched_pretrain.py").read_text() + "# changed\n")
    try:
        process = on_hosts(other, "multi_node_ddp", text, tmp_path / "run", "--max_steps", "5")
        log = finish(process, 200)
    finally:
        script.unlink()
    assert process.returncode == 2, log[-3000:]
    assert re.search(
        r"error: rank 1 \(hfs-b\) differs from rank 0: the script is \w+ there and \w+ on rank 0 "
        r"\(hfs-a\)",
        log,
    )
    assert not (tmp_path / "run").exists()


# ---- the files


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_sound(path):
    found = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), path], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    assert os.access(path, os.X_OK)


def check_words(words: list[str]) -> dict:
    """What `hfscale` makes of a launch file's command: both the launcher's and the recipe's words
    are known ones.
    """
    recipe, *rest = words
    path = ROOT / "recipes" / f"{recipe}.py"
    flags, own = split_flags(rest)
    check_recipe_args(path, own)
    accelerate_command(path, own, flags, False, 8, 8)
    return flags


def wrong_by_schema(manifest: dict) -> list[str]:
    """Places in a JobSet that its published schema, with Kubernetes' own for the pods, does not
    know or allow.

    The schema's classes take no value for a quantity (`8`, `16Gi`), so that its form is looked at
    here.
    """
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
    from pydantic import ValidationError

    try:
        JobsetV1alpha2JobSet.model_validate(manifest, extra="forbid")
        return []
    except ValidationError as error:
        return [
            ".".join(map(str, found["loc"]))
            for found in error.errors()
            if "ResourceQuantity" not in found["msg"]
            or not re.fullmatch(r"\d+([KMGT]i?)?", str(found["input"]))
        ]


def test_kubernetes_manifest_fits_the_published_schema():
    assert wrong_by_schema(yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())) == []


@pytest.mark.parametrize(
    ("right", "wrong", "place"),
    [
        ("maxRestarts", "maxRestart", "spec.failurePolicy.maxRestart"),
        ("enableDNSHostnames", "enableDnsHostnames", "spec.network.enableDnsHostnames"),
        ("backoffLimit", "backofLimit", "template.spec.backofLimit"),
        ("completionMode: Indexed", "completionMode: indexed", "template.spec.completionMode"),
        ("parallelism: 2", "parallelism: two", "template.spec.parallelism"),
        ("terminationGracePeriodSeconds", "gracePeriodSeconds", "template.spec.gracePeriodSeconds"),
        ("workingDir", "workdir", "containers.0.workdir"),
        ("16Gi", "16 GB", "volumes.1.emptyDir.sizeLimit"),
        ("claimName", "claim", "volumes.0.persistentVolumeClaim.claim"),
    ],
)
def test_schema_finds_a_misspelt_manifest(right, wrong, place):
    text = (LAUNCH / "kubernetes.yaml").read_text()
    assert right in text
    assert any(
        found.endswith(place)
        for found in wrong_by_schema(yaml.safe_load(text.replace(right, wrong)))
    )


def test_kubernetes_manifest():
    """The parts fit each other, and the command is one that hfscale takes."""
    manifest = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = manifest["spec"]
    assert (
        spec.keys() == {"failurePolicy", "network", "replicatedJobs"}
        and spec["network"]["enableDNSHostnames"]
    )
    (replicated,) = spec["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == 2
    assert (
        job["backoffLimit"] == 0
    )  # one failed pod ends the job, and the set's policy restarts all of them
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert all(isinstance(word, str) for word in container["command"])
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container["command"]]
    flags = check_words(words[1:])
    name = manifest["metadata"]["name"]
    assert flags["main_process_ip"] == f"{name}-{replicated['name']}-0-0.{name}"
    assert flags["num_machines"] == job["completions"]
    assert (
        flags["num_processes"]
        == job["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert flags["main_process_port"] == container["ports"][0]["containerPort"]


def test_skypilot_task(tmp_path):
    """The keys of a SkyPilot task; its `run`, executed with the variables that SkyPilot sets, gives
    a good command.
    """
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task.keys() == {
        "name",
        "num_nodes",
        "resources",
        "workdir",
        "file_mounts",
        "setup",
        "run",
    }
    for part in ("setup", "run"):
        found = subprocess.run(
            [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "-"],
            input=task[part],
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stdout
    stub = tmp_path / "hfscale"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    words = subprocess.run(
        ["bash", "-c", task["run"]], env=env, capture_output=True, text=True, check=True
    )
    flags = check_words(words.stdout.split("\n")[:-1])
    assert flags == {
        "accelerate": "multi_node_ddp",
        "num_machines": 2,
        "num_processes": 16,
        "machine_rank": 1,
        "main_process_ip": "10.0.0.4",
        "main_process_port": 29500,
    }


def stubs(folder: Path, **programs: str) -> dict[str, str]:
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "gpu[1-2]",
        "SLURM_JOB_ID": "71",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }


@pytest.mark.parametrize(("ends", "requeued"), [(0, False), (1, False), (143, True)])
def test_slurm_script_by_stand_ins(ends, requeued, tmp_path):
    """srun starts both tasks, scontrol expands names and notes requests: each rank's command, what
    a stop leads to.
    """
    env = stubs(
        tmp_path,
        hfscale=f'printf "%s\\n" "$@" > {tmp_path}/words$SLURM_NODEID; exit {ends}',
        scontrol=f'[[ $1 == show ]] && printf "gpu1\\ngpu2\\n" || echo "$@" >> {tmp_path}/asked',
        srun='shift; SLURM_NODEID=0 "$@" && SLURM_NODEID=1 "$@"',
    )
    words = [
        "pretrain",
        "--config",
        "gpt2_small",
        "--accelerate",
        "multi_node_ddp",
        "--resume",
        "auto",
    ]
    result = subprocess.run([LAUNCH / "slurm.sh", *words], env=env, capture_output=True, text=True)
    assert result.returncode == ends, result.stderr
    for rank in (0, 1) if ends == 0 else (0,):
        flags = check_words((tmp_path / f"words{rank}").read_text().split("\n")[:-1])
        assert flags == {
            "accelerate": "multi_node_ddp",
            "num_machines": 2,
            "num_processes": 16,
            "machine_rank": rank,
            "main_process_ip": "gpu1",
            "main_process_port": 20071,
        }
    asked = tmp_path / "asked"
    assert (asked.read_text().strip() if asked.exists() else None) == (
        "requeue 71" if requeued else None
    )


@pytest.mark.parametrize("script", ["slurm.sh", "ssh.sh"])
def test_scripts_say_how_they_are_used(script):
    result = subprocess.run([LAUNCH / script], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("usage: ")


@pytest.mark.needs("deepspeed")
@pytest.mark.parametrize("name", ["multi_node_ddp", "multi_node_fsdp2", "multi_node_zero3"])
def test_machines_need_to_find_each_other(name):
    flags, rest = split_flags(
        f"--accelerate {name} --num_machines 2 --num_processes 4 --machine_rank 1".split()
    )
    with pytest.raises(InputError, match="--main_process_ip"):
        accelerate_command(ROOT / "recipes" / "pretrain.py", rest, flags, False, 2, 8)
    config = yaml.safe_load(find_accelerate_config(name).read_text())
    single = yaml.safe_load(find_accelerate_config(name.removeprefix("multi_node_")).read_text())
    differing = {key for key in config | single if config.get(key) != single.get(key)}
    assert differing == {
        "rdzv_backend",
        "main_process_port",
    }  # else what runs on one machine runs on several
