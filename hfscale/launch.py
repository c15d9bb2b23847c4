"""`hfscale <recipe> ...` as `accelerate launch ...`: picks a config, refuses what cannot run, keeps the status."""

import logging
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from hfscale.config import InputError, arguments_class, check_recipe_args, pick_flags, read_flags, shipped
from hfscale.options import did_you_mean

ALONE = ("plan",)  # recipes that compute nothing on a device: no launcher, and torch is not imported
# The flags that are the launcher's, not the recipe's: type and meaning.
FLAGS = {
    "accelerate": (str, "launch config (see hfscale recipes) or file; default: fits the machine"),
    "num_processes": (int, "on all machines together; default: one per GPU"),
    "num_machines": (int, "machines that take part; start the command on each"),
    "machine_rank": (int, "this machine's number, from 0"),
    "main_process_ip": (str, "address of machine 0"),
    "main_process_port": (int, "a free port on machine 0"),
}


def launch(recipe: Path, argv: list[str]) -> int:
    """Run a script as `accelerate launch`: 0 or the first failed rank's status; InputError before anything starts."""
    if recipe.stem in ALONE:
        sys.argv = [str(recipe), *argv]
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is asked of the Hub
        runpy.run_path(str(recipe), run_name="__main__")  # ours end with SystemExit
        return 0
    flags, recipe_args = split_flags(argv)
    use_cpu = check_recipe_args(recipe, recipe_args).get("use_cpu", False)
    import torch

    gpus, threads = torch.accelerator.device_count(), torch.get_num_threads()
    words, env = accelerate_command(recipe, recipe_args, flags, use_cpu, gpus, threads)
    setting = "".join(f"{name}={value} " for name, value in env.items())
    print(f"running: {setting}accelerate launch {shlex.join(words)}", file=sys.stderr, flush=True)
    return run_launcher(words, env)


def split_flags(argv: list[str]) -> tuple[dict, list[str]]:
    """The launcher's flags that are given, by name, and the words left for the recipe."""
    own, rest = pick_flags(argv, FLAGS)
    return read_flags(own, {name: kind for name, (kind, _) in FLAGS.items()}), rest


def find_accelerate_config(name: str) -> Path:
    """Path of a shipped launch config, or of the user's own file."""
    known = shipped("accelerate_configs", "*.yaml")
    if name not in known and not Path(name).is_file():
        raise InputError(f"--accelerate {name}: no such file; shipped: {', '.join(known)}")
    return known.get(name) or Path(name)


def pick_config(gpus: int, processes: int | None, trains: bool) -> str:
    """Name of the config for a machine; without a number of processes, recipes that do not train run as one."""
    many = processes > 1 if processes else gpus > 1 and trains
    return ("ddp" if many else "single_gpu") if gpus else ("cpu_2proc" if many else "cpu")


def accelerate_command(recipe: Path, recipe_args: list[str], flags: dict, use_cpu: bool, gpus: int, threads: int
                       ) -> tuple[list[str], dict[str, str]]:
    """The words after `accelerate launch`, and environment variables; raises InputError if it cannot work there."""
    from accelerate.commands.config.config_args import load_config_from_file

    name, trains = flags.get("accelerate"), "training" in arguments_class(recipe).__dataclass_fields__
    if name is None:
        name = pick_config(0 if use_cpu else gpus, flags.get("num_processes"), trains)
        why = "--use_cpu is given" if use_cpu else f"GPUs on this machine: {gpus}"
        print(f"launch config: {name} ({why}; --accelerate takes another)", file=sys.stderr)
    path = find_accelerate_config(name)
    try:
        config = load_config_from_file(str(path))
    except Exception as error:  # whatever the file makes accelerate or the YAML reader stumble over
        raise InputError(f"{path}: not a launch config: {' '.join(str(error).split())}") from None
    _check_keys(path, config)
    if config.distributed_type == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise InputError(f'{path}: DeepSpeed is not installed: pip install "hfscale[deepspeed]"')
    on_cpu = use_cpu or config.use_cpu
    many = config.distributed_type.value not in ("NO", "MULTI_CPU")  # for these accelerate starts one process
    machines = flags.get("num_machines", config.num_machines)
    total = flags.get("num_processes", config.num_processes)
    if total == -1:  # accelerate's word for not given
        total = 0 if on_cpu else max(1, gpus) * machines
    if not isinstance(total, int) or machines < 1 or total < 1 or total % machines:
        raise InputError(f"--accelerate {name}: num_processes is {total or 'not given'}; expected a whole number, "
                         f"1 or more and the same on each machine (num_machines is {machines})")
    if total > 1 and not many:
        raise InputError(f"--accelerate {name}: means one process, not {total}; take cpu_2proc or ddp")
    local = total // machines
    if not on_cpu and local > gpus:
        cure = "lower --num_processes" if gpus else "add --use_cpu" if trains else "take --accelerate cpu"
        raise InputError(f"--accelerate {name}: needs {local} GPU(s) on this machine, which has {gpus}; {cure}")
    _check_machines(machines, {"main_process_port": config.main_process_port or 0} | flags)
    # --cpu only where one process is meant: with a config for several, accelerate would start a single one.
    words = ["--num_processes", str(total)] if many else ["--cpu"] if on_cpu and not config.use_cpu else []
    words += [w for f in flags if f not in ("accelerate", "num_processes") for w in (f"--{f}", str(flags[f]))]
    # Without the script's own flag each rank would train alone, on all of the data.
    extra = ["--use_cpu", "true"] if on_cpu and trains and not use_cpu else []
    env = {"OMP_NUM_THREADS": str(max(1, threads // local))} if on_cpu and "OMP_NUM_THREADS" not in os.environ else {}
    return ["--config_file", str(path), *words, str(recipe), *recipe_args, *extra], env


def launched_engine() -> str:
    """What accelerate's launcher told this process to train with: ZeRO-1, ZeRO-2, ZeRO-3, FSDP, one process or DDP."""
    told = {name for name in ("DEEPSPEED", "FSDP") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"}
    if "DEEPSPEED" not in told:
        return "FSDP" if told else "one process or DDP"
    from transformers.integrations.deepspeed import deepspeed_config  # there once TrainingArguments are made

    stage = (deepspeed_config() or {}).get("zero_optimization", {}).get("stage")  # also of the user's own file
    return f"ZeRO-{stage or os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"


def _check_keys(path: Path, config) -> None:
    """Raise InputError for a name inside one of the file's parts that accelerate would silently pass over."""
    from accelerate.commands.launch import launch_command_parser

    known = [action.dest for action in launch_command_parser()._actions]
    for part, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", ""),
                         ("parallelism_config", "parallelism_config_")):
        names = [name for name in known if name.startswith(prefix)]
        if wrong := [key for key in getattr(config, part, None) or {} if key not in names]:
            raise InputError(f"{path}: {part}: unknown name {wrong[0]}{did_you_mean(wrong[0], names)}")


def _check_machines(machines: int, flags: dict) -> None:
    """Raise InputError unless the machines can find each other, and machine 0 can listen."""
    rank, port = flags.get("machine_rank", 0), flags["main_process_port"]
    if machines > 1 and not {"machine_rank", "main_process_ip"} <= flags.keys():
        raise InputError(f"{machines} machines: each needs its own --machine_rank, and all --main_process_ip, the "
                         "name or address of machine 0")
    if not 0 <= rank < machines:
        raise InputError(f"--machine_rank {rank}: expected 0 to {machines - 1}; num_machines is {machines}")
    if machines > 1 and port == 0:
        raise InputError("several machines: --main_process_port must name one port for all, such as 29500")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if rank == 0:
                probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--main_process_port {port}: cannot listen there ({error}); name a free port") from None


def run_launcher(words: list[str], env: dict[str, str]) -> int:
    """`accelerate launch <words>` in this process; returns 0 or the status of the first rank that failed."""
    import psutil
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def forward(signum: int, frame) -> None:  # to a single process; several get it from PyTorch's launcher
        for child in psutil.Process().children():
            child.send_signal(signum)

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # said below
    previous, rank, code = signal.signal(signal.SIGTERM, forward), 0, 0
    try:
        with patch_environment(**env):
            launch_command(launch_command_parser().parse_args(words))
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
    except (SignalException, KeyboardInterrupt) as error:
        return 128 + getattr(error, "sigval", signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code < 0:
        print(f"error: rank {rank} was killed by {signal.Signals(-code).name}", file=sys.stderr)
    elif code not in (0, 2):  # 2: the recipe has said why
        print(f"error: rank {rank} ended with exit status {code}; its messages are above", file=sys.stderr)
    return 128 - code if code < 0 else code
