"""`hfscale <recipe> ...` as `accelerate launch ...`: picks a config, refuses what cannot run, keeps the status."""

import argparse
import difflib
import logging
import os
import shlex
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from hfscale.config import InputError, check_recipe_args

FLAGS = {  # name: (type, help)
    "accelerate": (str, "a launch config by name (see hfscale recipes) or file; default: what fits the machine"),
    "num_processes": (int, "processes on all machines together; default: one per GPU"),
    "num_machines": (int, "machines that take part; start the command on each"),
    "machine_rank": (int, "this machine's number, from 0"),
    "main_process_ip": (str, "address of machine 0"),
    "main_process_port": (int, "a free port on machine 0"),
}


def launch(recipe: Path, argv: list[str]) -> int:
    """Run a script through accelerate's launcher; returns 0 or the exit status of the first rank that failed.

    Raises InputError before anything is started; SystemExit with status 0 after `--help`.
    """
    flags, recipe_args = split_flags(argv)
    use_cpu = check_recipe_args(recipe, recipe_args).get("use_cpu", False)
    find_accelerate_config(flags.get("accelerate", "cpu"))  # a wrong name need not wait for the next import
    import torch

    gpus, threads = torch.accelerator.device_count(), torch.get_num_threads()
    words, env = accelerate_command(recipe, recipe_args, flags, use_cpu, gpus, threads)
    setting = "".join(f"{name}={value} " for name, value in env.items())
    print(f"running: {setting}accelerate launch {shlex.join(words)}", file=sys.stderr, flush=True)
    return run_launcher(words, env)


def split_flags(argv: list[str]) -> tuple[dict, list[str]]:
    """The launcher's flags (`--name value` or `--name=value`) by name, and the words left for the recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, (kind, _) in FLAGS.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    try:
        flags, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"command line: {error}") from None
    for word in rest:
        if word.startswith("--") and (near := difflib.get_close_matches(word[2:].partition("=")[0], FLAGS, 1, 0.87)):
            raise InputError(f"command line: unknown name {word}; did you mean --{near[0]}?")
    return vars(flags), rest


def shipped(folder: str, pattern: str) -> dict[str, Path]:
    """Files that come with hfscale, by name: the folder is inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / folder
    outside = Path(__file__).parents[1] / folder
    return {path.stem: path for path in sorted((inside if inside.is_dir() else outside).glob(pattern))}


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
    """The words after `accelerate launch`, and environment variables, for a machine with `gpus` and CPU `threads`.

    Raises InputError when the launch cannot work there.
    """
    name, trains = flags.get("accelerate"), _takes_use_cpu(recipe)
    if name is None:
        name = pick_config(0 if use_cpu else gpus, flags.get("num_processes"), trains)
        why = "--use_cpu is given" if use_cpu else f"GPUs on this machine: {gpus}"
        print(f"launch config: {name} ({why}; --accelerate takes another)", file=sys.stderr)
    config = _load_config(find_accelerate_config(name))
    on_cpu = use_cpu or config.use_cpu
    many = config.distributed_type.value not in ("NO", "MULTI_CPU")  # for these accelerate starts one process
    total, local = _count_processes(name, config, flags, many, 0 if on_cpu else max(1, gpus))
    if not on_cpu and local > gpus:
        cure = "lower --num_processes" if gpus else "add --use_cpu" if trains else "take --accelerate cpu"
        raise InputError(f"--accelerate {name}: needs {local} GPU(s) on this machine, which has {gpus}; {cure}")
    # --cpu only where one process is meant: with a config for several, accelerate would start a single one.
    words = ["--num_processes", str(total)] if many else ["--cpu"] if on_cpu and not config.use_cpu else []
    words += [w for flag in flags if flag in list(FLAGS)[2:] for w in (f"--{flag}", str(flags[flag]))]
    # Without the script's own flag each rank would train alone, on all of the data.
    extra = ["--use_cpu", "true"] if on_cpu and trains and not use_cpu else []
    env = {"OMP_NUM_THREADS": str(max(1, threads // local))} if on_cpu and "OMP_NUM_THREADS" not in os.environ else {}
    return ["--config_file", str(find_accelerate_config(name)), *words, str(recipe), *recipe_args, *extra], env


def _takes_use_cpu(recipe: Path) -> bool:
    try:
        return "use_cpu" in check_recipe_args(recipe, ["--use_cpu", "true"])
    except InputError:
        return False


def _load_config(path: Path):
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        config = load_config_from_file(str(path))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a launch config: {' '.join(str(error).split())}") from None
    known = vars(launch_command_parser().parse_args(["script"]))
    for section, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        for key in getattr(config, section):  # a misspelt one would be ignored
            if key not in known and prefix + key not in known:
                near = ", ".join(difflib.get_close_matches(key, known, 1)) or "see accelerate launch --help"
                raise InputError(f"{path}: {section}: unknown name {key}; the nearest: {near}")
    if config.distributed_type == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise InputError(f'{path}: DeepSpeed is not installed: pip install "hfscale[deepspeed]"')
    return config


def _count_processes(name: str, config, flags: dict, many: bool, per_machine: int) -> tuple[int, int]:
    """(in all, on this machine); `per_machine` where neither flag nor config says."""
    machines = flags.get("num_machines", config.num_machines)
    total = flags.get("num_processes", config.num_processes)
    total = per_machine * machines if total == -1 else total  # accelerate's word for not given
    if not isinstance(total, int) or machines < 1 or total < 1 or total % machines:
        raise InputError(f"--accelerate {name}: num_processes is {total or 'not given'}; expected a whole number, "
                         f"1 or more and the same on each machine (num_machines is {machines})")
    if total > 1 and not many:
        raise InputError(f"--accelerate {name}: means one process, not {total}; take cpu_2proc or ddp")
    if machines > 1 and (missing := [f"--{f}" for f in list(FLAGS)[3:] if f not in flags and not getattr(config, f)]):
        raise InputError(f"--num_machines {machines}: also needs {' '.join(missing)}")
    return total, total // machines


def run_launcher(words: list[str], env: dict[str, str]) -> int:
    """`accelerate launch <words>` in this process; returns 0 or the status of the first rank that failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its report says in a dozen lines what _status says in one.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    previous = signal.signal(signal.SIGTERM, _forward)
    try:
        with patch_environment(**env):
            launch_command(launch_command_parser().parse_args(words))
    except subprocess.CalledProcessError as error:
        return _status(0, error.returncode)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _status(rank, failure.exitcode)
    except (SignalException, KeyboardInterrupt) as error:
        return 128 + getattr(error, "sigval", signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _forward(signum: int, frame) -> None:
    """Hand a signal on to a single process, so that it can save; several get it from PyTorch's launcher."""
    import psutil

    for child in psutil.Process().children():
        child.send_signal(signum)


def _status(rank: int, code: int) -> int:
    """A shell's status for an exit code (killed by signal n: 128 + n); says so, unless the recipe has (2)."""
    if code < 0:
        print(f"error: rank {rank} was killed by {signal.Signals(-code).name}", file=sys.stderr)
    elif code != 2:
        print(f"error: rank {rank} ended with exit status {code}; its messages are above", file=sys.stderr)
    return 128 - code if code < 0 else code
