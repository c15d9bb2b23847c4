"""How `hfscale` picks, checks and starts a launch: its words, its refusals, its exit status, its
signals.
"""

import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hfscale.config import shipped
from hfscale.launch import (
    _first_failed,
    _status,
    accelerate_command,
    find_accelerate_config,
    pick_config,
    planned_elsewhere,
    read_launch,
    run_launcher,
    split_flags,
)
from hfscale.planning.flops import Shape
from hfscale.planning.memory import Sharding, Step, step_memory_bytes
from hfscale.process import (
    LOST_RANK,
    TYPED_COMMAND,
    InputError,
    failure_status,
    launched_engine,
    launched_processes,
    planned_launch,
)

ROOT = Path(__file__).parents[2]
CONFIGS = shipped("accelerate_configs", "*.yaml")
PRETRAIN = ROOT / "recipes" / "pretrain.py"
SCORE = ROOT / "recipes" / "score.py"
ENV = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}  # several threads wait for each other where the tests share few cores

# Launched in test_equivalence.py, which tells what each is.
LAUNCHED = {"cpu", "single_gpu", "cpu_2proc", "ddp", "fsdp2", "zero1", "zero2", "zero3"}
# Those for several machines are the ones above on more of them (test_multi_node.py). Offloading has
# no meaning without a device to take the weights from, and DeepSpeed and FSDP hang or crash there.
NOT_LAUNCHED = {
    "multi_node_ddp",
    "multi_node_fsdp2",
    "multi_node_zero3",
    "fsdp2_offload",
    "zero3_offload",
    "zero3_nvme",
}


def start(*words: str) -> subprocess.Popen:
    """`hfscale` with words, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "hfscale.cli", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def hfscale(*words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hfscale.cli", *words],
        cwd=ROOT,
        env=ENV | env,
        text=True,
        capture_output=True,
        timeout=300,
    )


@pytest.mark.slow
def test_fsdp_is_refused_where_accelerate_would_not_shard(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a few words\n" * 100)
    result = hfscale(
        "pretrain",
        "--accelerate",
        "fsdp2",
        "--num_processes",
        "2",
        "--use_cpu",
        "--source",
        str(text),
        "--sample_by",
        "line",
        "--tokenizer",
        "char",
        "--num_hidden_layers",
        "1",
        "--num_attention_heads",
        "1",
        "--hidden_size",
        "8",
        "--max_position_embeddings",
        "16",
        "--output_dir",
        str(tmp_path / "run"),
        "--report_to",
        "none",
    )
    assert result.returncode == 2, result.stderr
    assert "FSDP" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_leaves_the_recipe_its_settings(name):
    config = yaml.safe_load(CONFIGS[name].read_text())
    assert "mixed_precision" not in config
    sharding = config.get("deepspeed_config", {})
    assert {v for k, v in sharding.items() if k.startswith("gradient_")} <= {"auto"}
    assert set(CONFIGS) == LAUNCHED | NOT_LAUNCHED


def command(
    words: str, gpus: int, use_cpu: bool = False, recipe: Path = PRETRAIN
) -> tuple[list[str], dict]:
    flags, rest = split_flags(words.split())
    return accelerate_command(recipe, rest, flags, use_cpu, gpus, 8)


def test_picks_the_config_for_the_machine():
    assert [pick_config(gpus, None, True) for gpus in (0, 1, 4)] == ["cpu", "single_gpu", "ddp"]
    assert [pick_config(gpus, 2, True) for gpus in (0, 4)] == ["cpu_2proc", "ddp"]
    assert pick_config(4, 1, True) == pick_config(4, None, False) == "single_gpu"


def test_command_for_gpus():
    words, env = command("--learning_rate 1e-3", gpus=4)
    assert words == [
        "--config_file",
        str(CONFIGS["ddp"]),
        "--num_processes",
        "4",
        str(PRETRAIN),
        "--learning_rate",
        "1e-3",
    ]
    assert env == {}
    assert command("", gpus=4, recipe=SCORE)[0] == [
        "--config_file",
        str(CONFIGS["single_gpu"]),
        str(SCORE),
    ]
    words, _ = command(
        "--accelerate fsdp2 --num_machines 2 --machine_rank=1 --main_process_ip 10.0.0.1 "
        "--main_process_port 29500",
        gpus=8,
    )
    assert words[2:-1] == [
        "--num_processes",
        "16",
        "--num_machines",
        "2",
        "--machine_rank",
        "1",
        "--main_process_ip",
        "10.0.0.1",
        "--main_process_port",
        "29500",
    ]


def test_command_for_cpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert command("", gpus=0) == (
        ["--config_file", str(CONFIGS["cpu"]), str(PRETRAIN), "--use_cpu", "true"],
        {"OMP_NUM_THREADS": "8"},
    )
    words, env = command("--accelerate ddp --num_processes 2 --use_cpu", gpus=0, use_cpu=True)
    assert "--cpu" not in words  # with it accelerate starts one process
    assert env == {"OMP_NUM_THREADS": "4"}
    assert "--cpu" in command("--accelerate single_gpu --use_cpu", gpus=1, use_cpu=True)[0]
    assert command("", gpus=0, recipe=SCORE)[0][-1] == str(SCORE)  # it has no --use_cpu to be given
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command("", gpus=0)[1] == {}
    with pytest.raises(InputError, match="num_processes is not given"):
        command("--accelerate ddp --use_cpu", gpus=4, use_cpu=True)


@pytest.mark.parametrize(
    ("words", "gpus", "says"),
    [
        ("--accelerate ddp", 0, "add --use_cpu"),
        (
            "--accelerate ddp --num_processes 8",
            4,
            "needs 8 GPU(s) on this machine, which has 4; lower --num_processes",
        ),
        ("--accelerate cpu --num_processes 2", 0, "take cpu_2proc"),
        ("--accelerate single_gpu --num_processes 2", 2, "means one process"),
        (
            "--accelerate ddp --num_processes 3 --num_machines 2",
            2,
            "num_processes is 3; expected a whole number",
        ),
        ("--accelerate ddp --num_machines 0", 2, "num_machines is 0"),
        ("--accelerate cpu_2proc --num_processes 0", 0, "num_processes is not given"),
        ("--accelerate zero9", 2, "shipped: cpu, cpu_2proc, ddp"),
        ("--num_processes two", 2, "--num_processes: got 'two', expected int"),
        ("--num_processes", 2, "--num_processes: got '', expected int"),
        ("--num_processes -2", 2, "num_processes is -2"),
        (
            "--accelerate ddp --num_machines 2 --machine_rank 0",
            2,
            "2 machines: each needs its own --machine_rank",
        ),
        (
            "--accelerate ddp --num_machines 2 --machine_rank 0 --main_process_ip a",
            2,
            "--main_process_port must name",
        ),
        (
            "--accelerate ddp --num_machines 2 --machine_rank 2 --main_process_ip a",
            2,
            "--machine_rank 2: expected 0 to 1",
        ),
        (
            "--accelerate ddp --main_process_port 70000",
            2,
            "--main_process_port 70000: cannot listen there",
        ),
    ],
)
def test_launches_that_cannot_work_are_refused(words, gpus, says):
    with pytest.raises(InputError) as error:
        command(words, gpus)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2", "means one process"),
        ("distributed_type: MULTI_GPUS", "MULTI_GPUS"),
        ("distributed_type: MULTI_GPU\nnum_proceses: 2", "num_proceses"),
        ("distributed_type: MULTI_GPU\nnum_processes: two", "num_processes is two"),
        ("num_processes: [2", "not readable as YAML"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stge: 2}",
            "deepspeed_config: unknown name zero_stge; did you mean zero_stage?",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_ofload_params: true}",
            "fsdp_config: unknown name fsdp_ofload_params; did you mean fsdp_offload_params?",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: {zero_stage: 3}",
            "fsdp_config: unknown name zero_stage",
        ),
        (
            "distributed_type: MULTI_GPU\nparallelism_config: {parallelism_config_tp_sise: 2}",
            "parallelism_config: unknown name parallelism_config_tp_sise; did you mean "
            "parallelism_config_tp_size?",
        ),
        ("", "not a launch config"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 7}",
            "deepspeed_config: zero_stage: got 7, expected one of 0, 1, 2, 3",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: two}",
            "zero_stage: got 'two', expected one of 0,",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {offload_optimizer_device: disk}",
            "offload_optimizer_device: got 'disk', expected one of none, cpu, nvme",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero3_init_flag: perhaps}",
            "zero3_init_flag: got 'perhaps', expected one of true, false",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {gradient_clipping: lots}",
            "got 'lots', expected a number",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {gradient_accumulation_steps: 1.5}",
            "expected a whole number",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: none.json}",
            "deepspeed_config_file none.json: not a JSON file of DeepSpeed's settings",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 3}",
            "fsdp_version: got 3, expected one of 1, 2",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_state_dict_type: WHOLE}",
            "got 'WHOLE', expected one of FULL_STATE_DICT",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_auto_wrap_policy: 3}",
            "got 3, expected one of TRANSFORMER_BASED_WRAP",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_offload_params: 2}",
            "fsdp_offload_params: got 2, expected one of true",
        ),
        (
            "distributed_type: MULTI_GPU\nnum_machines: two",
            "num_machines: got 'two', expected a whole number",
        ),
        (
            "distributed_type: MULTI_GPU\nmain_process_port: http",
            "main_process_port: got 'http', expected a whole number",
        ),
        (
            "distributed_type: MULTI_GPU\nuse_cpu: perhaps",
            "use_cpu: got 'perhaps', expected one of true, false",
        ),
        (
            "distributed_type: MULTI_GPU\nmixed_precision: int4",
            "mixed_precision: got 'int4', expected one of no, fp16",
        ),
    ],
)
def test_broken_launch_configs_are_refused(text, says, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        command(f"--accelerate {path}", gpus=2)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_stage_in_a_file_of_deepspeeds_own_is_refused(tmp_path, monkeypatch):
    own, path = tmp_path / "ds.json", tmp_path / "mine.yaml"
    monkeypatch.setattr("hfscale.launch.find_spec", lambda name: True)
    path.write_text(
        f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {own}}}"
    )
    own.write_text('{"zero_optimization": {"stage": 5}}')
    with pytest.raises(
        InputError, match="zero_optimization: stage: got 5, expected one of 0, 1, 2, 3"
    ):
        command(f"--accelerate {path}", gpus=2)
    own.write_text('{"zero_optimization": {"stage": 3}}')
    assert command(f"--accelerate {path}", gpus=2)[0][:2] == ["--config_file", str(path)]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_shipped_config_is_refused(name, monkeypatch):
    monkeypatch.setattr("hfscale.launch.find_spec", lambda name: True)
    assert read_launch(name, {"num_processes": 1}, use_cpu=False, gpus=1).path == CONFIGS[name]


# ---- a dry run for machines that this one is not like


def planned(words: str, gpus: int = 0) -> dict[str, str]:
    return planned_elsewhere(split_flags(words.split())[0], gpus)


@pytest.mark.parametrize(
    ("words", "gpus", "processes", "engine"),
    [
        (
            "--accelerate multi_node_ddp --num_machines 2 --num_processes 16",
            0,
            16,
            "one process or DDP",
        ),
        (
            "--accelerate multi_node_zero3 --num_machines 2 --num_processes 16 --machine_rank 1",
            0,
            16,
            "ZeRO-3",
        ),
        (
            "--accelerate multi_node_fsdp2 --num_machines 4",
            0,
            32,
            "FSDP",
        ),  # eight GPUs in each are assumed
        (
            "--accelerate multi_node_ddp --num_machines 2",
            4,
            8,
            "one process or DDP",
        ),  # as many as here
        ("--accelerate zero2 --num_processes 8", 0, 8, "ZeRO-2"),
        ("--accelerate zero1 --num_processes 8", 2, 8, "ZeRO-1"),
        ("--accelerate single_gpu", 0, 1, "one process or DDP"),
    ],
)
def test_a_dry_run_for_a_cluster_needs_no_gpu(words, gpus, processes, engine, monkeypatch):
    monkeypatch.setattr("hfscale.launch.find_spec", lambda name: True)
    for name, value in planned(words, gpus).items():
        monkeypatch.setenv(name, value)
    config, number = planned_launch()
    assert number == launched_processes(1) == processes and launched_engine() == engine
    assert config == yaml.safe_load(CONFIGS[words.split()[1]].read_text())


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        ("", 0),
        ("--accelerate cpu", 0),
        ("--accelerate cpu_2proc --num_processes 2", 0),
        ("--accelerate ddp", 4),
        ("--accelerate zero2 --num_processes 4", 4),
    ],
)
def test_a_dry_run_that_can_start_here_does(words, gpus, monkeypatch):
    monkeypatch.setattr("hfscale.launch.find_spec", lambda name: True)
    assert planned(words, gpus) == {} and planned_launch() is None and launched_processes(3) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--accelerate multi_node_ddp --num_machines 2 --num_processes 15", "num_processes is 15"),
        (
            "--accelerate multi_node_ddp --num_machines 2 --machine_rank 2",
            "--machine_rank 2: expected 0 to 1",
        ),
        ("--accelerate zero9", "shipped: cpu"),
    ],
)
def test_a_dry_run_refuses_what_no_machine_could_start(words, says):
    with pytest.raises(InputError, match=says):
        planned(words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sharding"),
    [("multi_node_ddp", Sharding("ddp", 0, 4)), ("multi_node_zero3", Sharding("deepspeed", 3, 4))],
)
def test_the_dry_run_of_a_cluster_shows_its_steps_and_memory(config, sharding, tmp_path):
    """Settings that only GPUs have (tf32, fp16) are no hindrance, and no model is built."""
    pytest.importorskip("deepspeed") if "zero" in config else None
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 400)
    shape = Shape(2, 2, 64, 32, 300)
    flags = f"--accelerate {config} --num_machines 2 --num_processes 4 --dry_run --tf32 true --fp16 true"
    sizes = "--num_hidden_layers 2 --num_attention_heads 2 --hidden_size 64 --max_position_embeddings 32 --tokenizer char --sample_by line"
    batches = "--per_device_train_batch_size 4 --per_device_eval_batch_size 4"
    result = hfscale(
        "pretrain",
        *f"{flags} {sizes} {batches}".split(),
        "--source",
        str(tmp_path / "text.txt"),
        "--output_dir",
        str(tmp_path / "run"),
        COLUMNS="120",
    )
    assert result.returncode == 0 and not (tmp_path / "run").exists(), result.stderr
    assert "dry run of 4 processes on 2 machine(s)" in result.stderr
    shown = dict(re.findall(r"^│ (.+?) +│ (.+?) +│$", result.stdout, re.M))
    words = int(shown["parameters"].replace(",", "")) - shape._replace(vocab_size=0).parameters()
    memory = step_memory_bytes(
        shape._replace(vocab_size=words // 64), Step(4, 32, 4, bf16=True), sharding
    )
    for part, size in memory.items():
        assert shown[f"memory: {part}"] == f"{size / 2**20:,.0f} MiB"
    rows = int(shown["train rows x tokens"].split()[0].replace(",", ""))
    assert int(shown["steps"].replace(",", "")) == 3 * math.ceil(
        math.ceil(rows / 4) / 4
    )  # three epochs, four ranks


def test_a_port_in_use_is_refused():
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--main_process_port {port}: cannot listen there"):
            command(f"--accelerate ddp --main_process_port {port}", gpus=2)
        # machine 1 listens nowhere
        command(
            "--accelerate ddp --num_machines 2 --machine_rank 1 --main_process_ip a "
            f"--main_process_port {port}",
            gpus=2,
        )


def test_deepspeed_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr("hfscale.launch.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "hfscale\[deepspeed\]"'):
        command("--accelerate zero2", gpus=2)


SCRIPT = """
    import os, signal, sys, time
    from dataclasses import dataclass

    @dataclass
    class TryArguments:
        end: int = 0  # exit status of the last rank; below 0: killed by that signal

    if __name__ == "__main__":
        end = int(sys.argv[sys.argv.index("--end") + 1])
        if os.environ.get("RANK", "0") == os.environ.get("LAST", "0"):
            os.kill(os.getpid(), -end) if end < 0 else sys.exit(end)
        time.sleep(60)
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "try.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        (0, 0, ""),
        (1, 1, "error: rank 0 ended with exit status 1; its messages are above\n"),
        (2, 2, ""),
        (75, 75, "75"),
        (-9, 137, "error: rank 0 was killed by SIGKILL\n"),
    ],
)
def test_exit_status_of_one_process(end, status, says, script, capfd):
    words = ["--config_file", str(find_accelerate_config("cpu")), str(script), "--end", str(end)]
    assert run_launcher(words, {"OMP_NUM_THREADS": "1"}) == status
    assert says in (error := capfd.readouterr().err)
    assert "Traceback" not in error and (says or not error)


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        (2, 2, None),
        (141, 141, None),
        (3, 3, "error: rank 1 ended with exit status 3; its messages are above"),
        (-9, 137, "error: rank 1 was killed by SIGKILL"),
    ],
)
def test_exit_status_of_two_processes(end, status, says, script):
    result = hfscale(str(script), "--accelerate", "cpu_2proc", "--end", str(end), LAST="1")
    assert result.returncode == status
    first, *rest = result.stderr.splitlines()
    assert (
        first.startswith("running: ")
        and f"accelerate launch --config_file {CONFIGS['cpu_2proc']}" in first
    )
    assert rest == ([says] if says else [])


@pytest.mark.slow
def test_one_process_starts_without_the_launcher_unless_it_is_asked_for(tmp_path):
    path = tmp_path / "who.py"
    path.write_text(
        "import os\nfrom dataclasses import dataclass\n@dataclass\nclass WhoArguments:\n"
        "    x: int = 0\nif __name__ == '__main__':\n    print(os.getpid(), flush=True)\n"
    )
    here = start(str(path))
    out, error = here.communicate(timeout=60)
    assert (out, error, here.returncode) == (f"{here.pid}\n", "", 0)
    launched = start(str(path), "--accelerate", "cpu")
    out, error = launched.communicate(timeout=60)
    assert launched.returncode == 0 and out.strip().isdigit() and out != f"{launched.pid}\n"
    assert f"accelerate launch --config_file {CONFIGS['cpu']}" in error


@pytest.mark.slow
def test_sigterm_reaches_the_recipe(tmp_path):
    path = tmp_path / "wait.py"
    path.write_text(
        "import signal, sys, time\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass WaitArguments:\n    x: int = 0\n"
        "if __name__ == '__main__':\n    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hfscale.cli", str(path)],
        cwd=ROOT,
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


@pytest.mark.slow
@pytest.mark.parametrize("reaches", ["all, as from a terminal", "the command alone"])
def test_ctrl_c_ends_the_recipe_too_in_one_line(tmp_path, reaches):
    path = tmp_path / "wait.py"
    path.write_text(
        "import time\nfrom dataclasses import dataclass\nfrom hfscale.process import run\n"
        "@dataclass\nclass WaitArguments:\n    x: int = 0\n"
        "def main():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    run(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hfscale.cli", str(path)],
        cwd=ROOT,
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    (os.killpg if reaches.startswith("all") else os.kill)(process.pid, signal.SIGINT)
    out, error = process.communicate(
        timeout=40
    )  # which waits until the recipe has closed them, too
    assert process.returncode == 128 + signal.SIGINT
    lines = [
        line for line in error.splitlines() if not line.startswith(("launch config: ", "running: "))
    ]
    assert lines == ["stopped by Ctrl-C"] and out == ""


@pytest.mark.parametrize(
    ("exit_codes", "named"),
    [
        ({0: 1, 1: 1}, 1),  # the earlier one
        ({0: 1, 1: -signal.SIGKILL}, 1),
        ({0: -signal.SIGKILL, 1: 1}, 0),
        ({0: -signal.SIGTERM, 1: 1}, 1),
        ({0: 129, 1: LOST_RANK}, 0),
        ({0: LOST_RANK, 1: LOST_RANK}, 1),
    ],
)
def test_a_killed_rank_is_named_before_those_that_missed_it(exit_codes, named):
    failures = {
        rank: SimpleNamespace(exitcode=code, timestamp=10 - rank)
        for rank, code in exit_codes.items()
    }
    assert _first_failed(failures) == named


def test_what_a_rank_has_explained_is_not_said_again(monkeypatch, capsys):
    monkeypatch.delenv(TYPED_COMMAND, raising=False)
    assert failure_status() == 1  # started by hand
    monkeypatch.setenv(TYPED_COMMAND, "hfscale pretrain")
    assert (_status(0, failure_status()), capsys.readouterr().err) == (1, "")
    assert _status(1, 1) == 1 and "rank 1 ended with exit status 1" in capsys.readouterr().err
    assert (_status(0, LOST_RANK), capsys.readouterr().err) == (1, "")


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGHUP)", 129, "stopped by SIGHUP, which rank 1 got"),
        ("os._exit(3)", 3, "error: rank 1 ended with exit status 3; its messages are above"),
    ],
)
@pytest.mark.slow(seconds=6)
def test_who_misses_a_rank_says_so_in_a_line(end, status, says, tmp_path, run_warm):
    """Whoever ended it: the launcher names the rank and its reason, and no traceback is shown."""
    path = tmp_path / "miss.py"
    path.write_text(
        "import os, signal\nfrom dataclasses import dataclass\nfrom hfscale.process import run\n"
        "@dataclass\nclass MissArguments:\n    use_cpu: bool = False\n"
        "def main():\n    from accelerate import PartialState\n    state = PartialState(cpu=True)\n"
        f"    if state.process_index == 1:\n        {end}\n    state.wait_for_everyone()\n"
        "if __name__ == '__main__':\n    run(main)\n"
    )
    command = [sys.executable, "-m", "hfscale.cli", str(path), "--accelerate", "cpu_2proc"]
    result = run_warm(command, cwd=ROOT, env=ENV, timeout=120)
    lost, last = result.stderr.splitlines()[-2:]
    assert (result.returncode, last) == (status, says)
    assert re.fullmatch(r"error: another rank is gone \(.*by peer\)", lost)
    assert "Traceback" not in result.stderr
