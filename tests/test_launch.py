"""Every launch config is started for real, with two CPU processes where it means several, and says what it is."""

import functools
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from hfscale.config import InputError
from hfscale.launch import accelerate_command, find_accelerate_config, pick_config, run_launcher, shipped, split_flags

ROOT = Path(__file__).parents[1]
CONFIGS = shipped("accelerate_configs", "*.yaml")
PRETRAIN = ROOT / "recipes" / "pretrain.py"
SCORE = ROOT / "recipes" / "score.py"
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
       "OMP_NUM_THREADS": "1"}  # several threads wait for each other where the tests share few cores
NO_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra hfscale[deepspeed] is missing")

# config: processes, accelerate's type, the class that wraps the model, where parameters and AdamW's moments lie.
EXPECTED = {
    "cpu": (1, "NO", "GPT2LMHeadModel", "whole", "whole"),
    "single_gpu": (1, "NO", "GPT2LMHeadModel", "whole", "whole"),
    "cpu_2proc": (2, "MULTI_CPU", "DistributedDataParallel", "whole", "whole"),
    "ddp": (2, "MULTI_CPU", "DistributedDataParallel", "whole", "whole"),
    "fsdp2": (2, "FSDP", "FSDPGPT2LMHeadModel", "shards", "shards"),
    "zero1": (2, "DEEPSPEED", "DeepSpeedEngine", "whole", "shards"),
    "zero2": (2, "DEEPSPEED", "DeepSpeedEngine", "whole", "shards"),
    "zero3": (2, "DEEPSPEED", "DeepSpeedEngine", "gathered when used", "shards"),
}

# Those for several machines are the ones above on more of them (test_multi_node.py). Offloading has no meaning without
# a device to take the weights from, and DeepSpeed and FSDP hang or crash there.
NOT_LAUNCHED = {"multi_node_ddp", "multi_node_fsdp2", "multi_node_zero3", "fsdp2_offload", "zero3_offload",
                "zero3_nvme"}


def hfscale(*words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "hfscale.cli", *words], cwd=ROOT, env=ENV | env, text=True,
                          capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """launched(config): the notes of each rank and the run folder of one short training, started once per config."""
    folder = tmp_path_factory.mktemp("launched")
    words = "the a cat dog bird sat ran on under mat tree and then saw one".split()
    draw = random.Random(0)
    lines = (" ".join(draw.choices(words, k=draw.randint(20, 40))) for _ in range(60))
    (folder / "text.txt").write_text("\n".join(lines))
    shape = "--tokenizer char --n_layer 2 --n_head 2 --n_embd 192 --n_positions 32"  # wide enough for ZeRO-3 to shard
    steps = "--max_steps 6 --learning_rate 1e-3 --save_strategy no --eval_strategy no --report_to none --bf16 false"

    @functools.cache
    def launch(config: str) -> tuple[list[dict], Path]:
        notes, processes = folder / config, EXPECTED[config][0]
        notes.mkdir()
        batch = str(4 // processes)
        result = hfscale(
            "tests/launched_pretrain.py", "--accelerate", config, f"--num_processes={processes}", "--source",
            str(folder / "text.txt"), "--sample_by", "line", *shape.split(), *steps.split(), "--output_dir",
            str(notes / "run"), "--per_device_train_batch_size", batch, "--per_device_eval_batch_size", batch,
            "--use_cpu", RANK_NOTES=str(notes))
        assert result.returncode == 0, result.stderr[-3000:]
        assert (notes / "run" / "run.json").is_file(), result.stderr[-3000:]
        return [json.loads(path.read_text()) for path in sorted(notes.glob("rank*.json"))], notes / "run"

    return launch


@pytest.mark.slow
@pytest.mark.parametrize("config", [pytest.param(c, marks=NO_DEEPSPEED) if "zero" in c else c for c in EXPECTED])
def test_config_is_what_it_says(config, launched):
    ranks, folder = launched(config)
    processes, distributed_type, wrapper, parameters, moments = EXPECTED[config]
    assert [rank["world_size"] for rank in ranks] == [processes] * processes
    assert {(rank["distributed_type"], rank["wrapper"]) for rank in ranks} == {(distributed_type, wrapper)}
    assert {rank["steps"] for rank in ranks} == {6}

    whole = ranks[0]["parameters"]
    share = {"whole": [whole] * processes, "shards": [whole // 2] * processes}
    assert [rank["local_moments"] for rank in ranks] == pytest.approx(share[moments], rel=0.01)
    if parameters == "gathered when used":  # between uses only what is too small to be worth sharding stays
        assert all(0 < rank["local_parameters"] < 0.2 * whole for rank in ranks)
    else:
        assert [rank["local_parameters"] for rank in ranks] == pytest.approx(share[parameters], rel=0.01)
    assert {rank["dtensors"] for rank in ranks} == {ranks[0]["tensors"] if config == "fsdp2" else 0}
    stage = int(config[-1]) if "zero" in config else None
    assert {rank["zero_stage"] for rank in ranks} == {stage}
    if stage in (1, 2):
        assert {rank["partition_gradients"] for rank in ranks} == {stage == 2}


@pytest.mark.slow
@pytest.mark.parametrize("config", [pytest.param(c, marks=NO_DEEPSPEED) if "zero" in c else c for c in EXPECTED])
def test_same_batches_give_the_same_model(config, launched):
    """One process with batches of 4 and two with 2 each: the losses, the saved weights and the record agree."""
    from safetensors.numpy import load_file

    _, reference = launched("cpu")
    _, folder = launched(config)
    expected, record = (json.loads((path / "run.json").read_text()) for path in (reference, folder))
    for name in ("eval_loss", "eval_perplexity", "eval_bits_per_byte"):
        assert record["metrics"][name] == pytest.approx(expected["metrics"][name], abs=1e-4)
    assert record["metrics"]["eval_loss"] < 0.8 * math.log(20)  # it has learned: untrained, near log(vocabulary)
    assert record["metrics"]["eval_tokens"] == expected["metrics"]["eval_tokens"]
    assert record["model"] == expected["model"]
    assert record["train"]["tokens"] == expected["train"]["tokens"]
    assert record["hardware"]["world_size"] == EXPECTED[config][0]
    weights, same = load_file(folder / "model.safetensors"), load_file(reference / "model.safetensors")
    tied = weights.pop("lm_head.weight", weights["transformer.wte.weight"])  # FSDP and ZeRO write it twice
    assert (tied == weights["transformer.wte.weight"]).all()
    assert weights.keys() == same.keys()
    assert max(abs(weights[name] - same[name]).max() for name in same) < 1e-4


@pytest.mark.slow
def test_fsdp_is_refused_where_accelerate_would_not_shard(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a few words\n" * 100)
    result = hfscale("pretrain", "--accelerate", "fsdp2", "--num_processes", "2", "--use_cpu", "--source", str(text),
                     "--sample_by", "line", "--tokenizer", "char", "--n_layer", "1", "--n_head", "1", "--n_embd", "8",
                     "--n_positions", "16", "--output_dir", str(tmp_path / "run"), "--report_to", "none")
    assert result.returncode == 2, result.stderr
    assert "FSDP" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_leaves_the_recipe_its_settings(name):
    config = yaml.safe_load(CONFIGS[name].read_text())
    assert "mixed_precision" not in config
    sharding = config.get("deepspeed_config", {})
    assert {v for k, v in sharding.items() if k.startswith("gradient_")} <= {"auto"}
    assert set(EXPECTED) | NOT_LAUNCHED == set(CONFIGS)


def command(words: str, gpus: int, use_cpu: bool = False, recipe: Path = PRETRAIN) -> tuple[list[str], dict]:
    flags, rest = split_flags(words.split())
    return accelerate_command(recipe, rest, flags, use_cpu, gpus, 8)


def test_picks_the_config_for_the_machine():
    assert [pick_config(gpus, None, True) for gpus in (0, 1, 4)] == ["cpu", "single_gpu", "ddp"]
    assert [pick_config(gpus, 2, True) for gpus in (0, 4)] == ["cpu_2proc", "ddp"]
    assert pick_config(4, 1, True) == pick_config(4, None, False) == "single_gpu"


def test_command_for_gpus():
    words, env = command("--learning_rate 1e-3", gpus=4)
    assert words == ["--config_file", str(CONFIGS["ddp"]), "--num_processes", "4", str(PRETRAIN),
                     "--learning_rate", "1e-3"]
    assert env == {}
    assert command("", gpus=4, recipe=SCORE)[0] == ["--config_file", str(CONFIGS["single_gpu"]), str(SCORE)]
    words, _ = command("--accelerate fsdp2 --num_machines 2 --machine_rank=1 --main_process_ip 10.0.0.1 "
                       "--main_process_port 29500", gpus=8)
    assert words[2:-1] == ["--num_processes", "16", "--num_machines", "2", "--machine_rank", "1",
                           "--main_process_ip", "10.0.0.1", "--main_process_port", "29500"]


def test_command_for_cpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert command("", gpus=0) == (
        ["--config_file", str(CONFIGS["cpu"]), str(PRETRAIN), "--use_cpu", "true"], {"OMP_NUM_THREADS": "8"})
    words, env = command("--accelerate ddp --num_processes 2 --use_cpu", gpus=0, use_cpu=True)
    assert "--cpu" not in words  # with it accelerate starts one process
    assert env == {"OMP_NUM_THREADS": "4"}
    assert "--cpu" in command("--accelerate single_gpu --use_cpu", gpus=1, use_cpu=True)[0]
    assert command("", gpus=0, recipe=SCORE)[0][-1] == str(SCORE)  # it has no --use_cpu to be given
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command("", gpus=0)[1] == {}
    with pytest.raises(InputError, match="num_processes is not given"):
        command("--accelerate ddp --use_cpu", gpus=4, use_cpu=True)


@pytest.mark.parametrize(("words", "gpus", "says"), [
    ("--accelerate ddp", 0, "add --use_cpu"),
    ("--accelerate ddp --num_processes 8", 4, "needs 8 GPU(s) on this machine, which has 4; lower --num_processes"),
    ("--accelerate cpu --num_processes 2", 0, "take cpu_2proc"),
    ("--accelerate single_gpu --num_processes 2", 2, "means one process"),
    ("--accelerate ddp --num_processes 3 --num_machines 2", 2, "num_processes is 3; expected a whole number"),
    ("--accelerate ddp --num_machines 0", 2, "num_machines is 0"),
    ("--accelerate cpu_2proc --num_processes 0", 0, "num_processes is not given"),
    ("--accelerate zero9", 2, "shipped: cpu, cpu_2proc, ddp"),
    ("--num_processes two", 2, "invalid int value: 'two'"),
    ("--num_processes", 2, "expected one argument"),
    ("--num_processes -2", 2, "num_processes is -2"),
    ("--accelerate ddp --num_machines 2 --machine_rank 0", 2, "2 machines: each needs its own --machine_rank"),
    ("--accelerate ddp --num_machines 2 --machine_rank 0 --main_process_ip a", 2, "--main_process_port must name"),
    ("--accelerate ddp --num_machines 2 --machine_rank 2 --main_process_ip a", 2, "--machine_rank 2: expected 0 to 1"),
    ("--accelerate ddp --main_process_port 70000", 2, "--main_process_port 70000: cannot listen there"),
])
def test_launches_that_cannot_work_are_refused(words, gpus, says):
    with pytest.raises(InputError) as error:
        command(words, gpus)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "says"), [
    ("distributed_type: MULTI_CPU\nnum_processes: 2", "means one process"),
    ("distributed_type: MULTI_GPUS", "MULTI_GPUS"),
    ("distributed_type: MULTI_GPU\nnum_proceses: 2", "num_proceses"),
    ("distributed_type: MULTI_GPU\nnum_processes: two", "num_processes is two"),
    ("num_processes: [2", "not a launch config"),
    ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stge: 2}",
     "deepspeed_config: unknown name zero_stge; did you mean zero_stage?"),
    ("distributed_type: FSDP\nfsdp_config: {fsdp_ofload_params: true}",
     "fsdp_config: unknown name fsdp_ofload_params; did you mean fsdp_offload_params?"),
    ("distributed_type: FSDP\nfsdp_config: {zero_stage: 3}", "fsdp_config: unknown name zero_stage"),
    ("", "not a launch config"),
])
def test_broken_launch_configs_are_refused(text, says, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        command(f"--accelerate {path}", gpus=2)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_port_in_use_is_refused():
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--main_process_port {port}: cannot listen there"):
            command(f"--accelerate ddp --main_process_port {port}", gpus=2)
        # machine 1 listens nowhere
        command(f"--accelerate ddp --num_machines 2 --machine_rank 1 --main_process_ip a --main_process_port {port}",
                gpus=2)


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


@pytest.mark.parametrize(("end", "status", "says"), [
    (0, 0, ""), (1, 1, "error: rank 0 ended with exit status 1; its messages are above\n"), (2, 2, ""), (75, 75, "75"),
    (-9, 137, "error: rank 0 was killed by SIGKILL\n")])
def test_exit_status_of_one_process(end, status, says, script, capfd):
    words = ["--config_file", str(find_accelerate_config("cpu")), str(script), "--end", str(end)]
    assert run_launcher(words, {"OMP_NUM_THREADS": "1"}) == status
    assert says in (error := capfd.readouterr().err)
    assert "Traceback" not in error and (says or not error)


@pytest.mark.parametrize(("end", "status", "says"), [
    (2, 2, None), (3, 3, "error: rank 1 ended with exit status 3; its messages are above"),
    (-9, 137, "error: rank 1 was killed by SIGKILL")])
def test_exit_status_of_two_processes(end, status, says, script):
    result = hfscale(str(script), "--accelerate", "cpu_2proc", "--end", str(end), LAST="1")
    assert result.returncode == status
    first, *rest = result.stderr.splitlines()
    assert first.startswith("running: ") and f"accelerate launch --config_file {CONFIGS['cpu_2proc']}" in first
    assert rest == ([says] if says else [])


def test_sigterm_reaches_the_recipe(tmp_path):
    path = tmp_path / "wait.py"
    path.write_text("import signal, sys, time\nfrom dataclasses import dataclass\n"
                    "@dataclass\nclass WaitArguments:\n    x: int = 0\n"
                    "if __name__ == '__main__':\n    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
                    "    print('ready', flush=True)\n    time.sleep(60)\n")
    process = subprocess.Popen([sys.executable, "-m", "hfscale.cli", str(path)], cwd=ROOT, env=ENV, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143 and time.monotonic() - start < 10
