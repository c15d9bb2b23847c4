"""`hfscale <recipe> ...` as `accelerate launch ...`: picks a config, refuses what cannot run, keeps
the status.
"""

import argparse
import contextlib
import logging
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.config import (
    arguments_class,
    check_recipe_args,
    names_of,
    pick_flags,
    read_flags,
    shipped,
)
from hfscale.options import did_you_mean
from hfscale.process import (
    LOST_RANK,
    PLANNED_CONFIG,
    PLANNED_PROCESSES,
    SAID_WHY,
    TYPED_COMMAND,
    ZERO_STAGES,
    InputError,
    read_zero_stage,
    typed_command,
)
from hfscale.stopping import (
    ENDING,
    SignalHandler,
    Stopped,
    describe_signal,
    launcher_environment,
)
from hfscale.strict_yaml import read_yaml

ASSUMED_GPUS = 8  # in a machine that is not this one, where nothing is said
# Of a launch config: the names that are checked outside its parts.
TOP_LEVEL = (
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "use_cpu",
    "mixed_precision",
)
# What is true or false, but any text for accelerate.
BOOLEANS = (
    "use_cpu",
    "zero3_init_flag",
    "zero3_save_16bit_model",
    "fsdp_offload_params",
    "fsdp_reshard_after_forward",
    "fsdp_forward_prefetch",
    "fsdp_use_orig_params",
    "fsdp_cpu_ram_efficient_loading",
    "fsdp_sync_module_states",
    "fsdp_activation_checkpointing",
    "fsdp_activation_checkpointing_offload",
)
# The recipes that compute nothing on a device: no launcher, and torch is not imported.
ALONE = ("compare", "plan", "push", "report", "runs", "scale", "verify")
# The launch configs whose one process needs no launcher.
ONE_PROCESS = ("cpu", "single_gpu")
# Of a child that ended badly, where nothing more has to be said: 2, whose reason the recipe has
# printed, and what a shell gives a program that a pipe or a signal ended.
STOPPED = tuple(128 + number for number in ENDING)
EXPLAINED = (0, 2, 128 + signal.SIGPIPE, *STOPPED)
SECONDS_TO_END = 5  # that the ranks have after a second signal
# The flags that are the launcher's, not the recipe's: type and meaning.
FLAGS = {
    "accelerate": (
        str,
        "launch config (hfscale recipes) or file; default: fits the machine, one process alone",
    ),
    "num_processes": (int, "on all machines together; default: one per GPU"),
    "num_machines": (int, "machines that take part; start the command on each"),
    "machine_rank": (int, "this machine's number, from 0"),
    "main_process_ip": (str, "address of machine 0"),
    "main_process_port": (int, "a free port on machine 0"),
}


def launch(recipe: Path, argv: list[str]) -> int:
    """Run a script: in this process where one is meant and nothing is said of the launcher, else as
    `accelerate launch`. Returns 0 or the first failed rank's status; InputError before anything
    starts.
    """
    if recipe.stem in ALONE:
        # Which write to the Hub, or whose runs read there.
        if recipe.stem not in ("compare", "push", "scale"):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return run_here(recipe, argv)
    flags, recipe_args = split_flags(argv)
    values = check_recipe_args(recipe, recipe_args)
    use_cpu = values.get("use_cpu", False)
    import torch

    gpus = torch.accelerator.device_count()
    threads = torch.get_num_threads()
    if not flags and pick_config(0 if use_cpu else gpus, None, _trains(recipe)) in ONE_PROCESS:
        return run_here(recipe, argv)
    env: dict[str, str] = {}
    if values.get("dry_run") and not use_cpu:
        env = planned_elsewhere(flags, gpus)
    if env:  # one process on this machine's CPU shows what each there will do
        flags = {"accelerate": "cpu"}
        recipe_args = [*recipe_args, "--use_cpu", "true"]
        use_cpu = True
    words, threads_env = accelerate_command(recipe, recipe_args, flags, use_cpu, gpus, threads)
    env |= threads_env
    setting = "".join(f"{name}={shlex.quote(value)} " for name, value in env.items())
    print(f"running: {setting}accelerate launch {shlex.join(words)}", file=sys.stderr, flush=True)
    return run_launcher(words, env | {TYPED_COMMAND: typed_command(str(recipe), argv)})


def run_here(recipe: Path, argv: list[str]) -> int:
    """Run a script in this process."""
    sys.argv = [str(recipe), *argv]
    runpy.run_path(str(recipe), run_name="__main__")  # ours end with SystemExit
    return 0


def split_flags(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The launcher's flags that are given, by name, and the words left for the recipe."""
    words, recipe_args = pick_flags(argv, FLAGS)
    kinds = {name: kind for name, (kind, _) in FLAGS.items()}
    return read_flags(words, kinds), recipe_args


def find_accelerate_config(name: str) -> Path:
    """Path of a shipped launch config, or of the user's own file."""
    known = shipped("accelerate_configs", "*.yaml")
    name = os.path.expanduser(name)
    if name not in known and not Path(name).is_file():
        raise InputError(f"--accelerate {name}: no such file; shipped: {', '.join(known)}")
    return known.get(name) or Path(name)


def pick_config(gpus: int, processes: int | None, trains: bool) -> str:
    """Name of the config for a machine; without a number of processes, recipes that do not train
    run as one.
    """
    starts_many = processes > 1 if processes else gpus > 1 and trains
    if gpus:
        return "ddp" if starts_many else "single_gpu"
    return "cpu_2proc" if starts_many else "cpu"


def _trains(recipe: Path) -> bool:
    return "training" in names_of(arguments_class(recipe))


def _takes_use_cpu(recipe: Path) -> bool:
    """Whether a script has the flag, its own or upstream's."""
    return not {"training", "use_cpu"}.isdisjoint(names_of(arguments_class(recipe)))


class Launch(NamedTuple):
    """A launch config and how many processes it is meant to start."""

    name: str  # as the user wrote it
    path: Path
    config: Any  # accelerate's, as it read the file
    machines: int
    processes: int  # on all machines together

    @property
    def local(self) -> int:
        """Processes on each machine."""
        return self.processes // self.machines

    @property
    def starts_many(self) -> bool:
        """Whether accelerate starts more than one process for this kind."""
        return self.config.distributed_type.value not in ("NO", "MULTI_CPU")


def read_launch(name: str, flags: dict, *, use_cpu: bool, gpus: int) -> Launch:
    """The launch that a config and the launcher's flags ask for; raises InputError for a file or
    for numbers that cannot work anywhere. `gpus` are those of each machine, for where no number of
    processes is given.
    """
    path = find_accelerate_config(name)
    config = _read_config(path)
    if config.distributed_type == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise InputError(f'{path}: DeepSpeed is not installed: pip install "hfscale[deepspeed]"')
    machines = flags.get("num_machines", config.num_machines)
    total = flags.get("num_processes", config.num_processes)
    if total == -1:  # accelerate's word for not given
        total = 0 if use_cpu or config.use_cpu else max(1, gpus) * machines
    if not isinstance(total, int) or machines < 1 or total < 1 or total % machines:
        raise InputError(
            f"--accelerate {name}: num_processes is {total or 'not given'}; expected a whole "
            f"number, 1 or more and the same on each machine (num_machines is {machines})"
        )
    asked = Launch(name, path, config, machines, total)
    if total > 1 and not asked.starts_many:
        raise InputError(
            f"--accelerate {name}: means one process, not {total}; take cpu_2proc or ddp"
        )
    return asked


def accelerate_command(
    recipe: Path, recipe_args: list[str], flags: dict, use_cpu: bool, gpus: int, threads: int
) -> tuple[list[str], dict[str, str]]:
    """The words after `accelerate launch`, and environment variables; raises InputError if it
    cannot work there.
    """
    takes_use_cpu = _takes_use_cpu(recipe)
    name = flags.get("accelerate")
    if name is None:
        name = pick_config(0 if use_cpu else gpus, flags.get("num_processes"), _trains(recipe))
        reason = "--use_cpu is given" if use_cpu else f"GPUs on this machine: {gpus}"
        print(f"launch config: {name} ({reason}; --accelerate takes another)", file=sys.stderr)
    asked = read_launch(name, flags, use_cpu=use_cpu, gpus=gpus)
    on_cpu = use_cpu or asked.config.use_cpu
    if not on_cpu:
        _check_gpus(asked, gpus, takes_use_cpu)
    port = asked.config.main_process_port or 0
    _check_machines(asked.machines, {"main_process_port": port} | flags)

    words = ["--config_file", str(asked.path)]
    if asked.starts_many:
        words += ["--num_processes", str(asked.processes)]
    elif on_cpu and not asked.config.use_cpu:
        # Only where one process is meant: of a config for several, this would start a single one.
        words.append("--cpu")
    for flag, value in flags.items():
        if flag not in ("accelerate", "num_processes"):
            words += [f"--{flag}", str(value)]
    words += [str(recipe), *recipe_args]
    if on_cpu and takes_use_cpu and not use_cpu:
        # Without the script's own flag each rank would train alone, on all of the data.
        words += ["--use_cpu", "true"]

    env = {}
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        env["OMP_NUM_THREADS"] = str(max(1, threads // asked.local))
    return words, env


def _check_gpus(asked: Launch, gpus: int, takes_use_cpu: bool) -> None:
    """Raise InputError if this machine has fewer GPUs than the launch starts processes on it."""
    if asked.local <= gpus:
        return
    if gpus:
        cure = "lower --num_processes"
    else:
        cure = "add --use_cpu" if takes_use_cpu else "take --accelerate cpu"
    raise InputError(
        f"--accelerate {asked.name}: needs {asked.local} GPU(s) on this machine, which has {gpus}; "
        f"{cure}"
    )


def planned_elsewhere(flags: dict, gpus: int) -> dict[str, str]:
    """Of a dry run for machines that this one is not like (a cluster's, seen from its login node):
    the environment in which one CPU process shows what each process there will do. Empty: the
    launch can start here.

    Raises InputError: as `read_launch`, or a rank that there is not.
    """
    if "accelerate" not in flags:
        return {}
    asked = read_launch(flags["accelerate"], flags, use_cpu=False, gpus=gpus or ASSUMED_GPUS)
    if asked.config.use_cpu or (asked.machines == 1 and asked.local <= gpus):
        return {}
    _check_rank(flags.get("machine_rank", 0), asked.machines)
    guess = ""
    if gpus == 0 and "num_processes" not in flags and asked.starts_many:
        guess = f" (num_processes is not given: {ASSUMED_GPUS} GPUs on each machine are assumed)"
    print(
        f"dry run of {asked.processes} processes on {asked.machines} machine(s), {asked.name}, "
        f"shown by one process on this machine's CPU{guess}",
        file=sys.stderr,
    )
    return {PLANNED_CONFIG: str(asked.path), PLANNED_PROCESSES: str(asked.processes)}


def _read_config(path: Path) -> Any:
    """accelerate's reading of a launch config; raises InputError for a file that is none, for a
    name in it that accelerate would silently pass over, and for a value that only the ranks would
    find wrong.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    read_yaml(path)  # accelerate's own reading has no limits
    try:
        config = load_config_from_file(str(path))
    except Exception as error:  # whatever the file makes accelerate or the YAML reader stumble over
        raise InputError(f"{path}: not a launch config: {' '.join(str(error).split())}") from None
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest: action for action in launch_command_parser()._actions}
    for name in TOP_LEVEL:
        _check_value(f"{path}: {name}", known.get(name), name, getattr(config, name))
    # The launcher's flags for a part of the file begin alike.
    prefixes = {
        "fsdp_config": "fsdp_",
        "deepspeed_config": "",
        "parallelism_config": "parallelism_config_",
    }
    for part, prefix in prefixes.items():
        names = [name for name in known if name.startswith(prefix)]
        for key, value in (getattr(config, part, None) or {}).items():
            if key not in names:
                raise InputError(f"{path}: {part}: unknown name {key}{did_you_mean(key, names)}")
            _check_value(f"{path}: {part}: {key}", known[key], key, value)
    if file := (config.deepspeed_config or {}).get("deepspeed_config_file"):
        read_zero_stage(str(path), file)
    return config


def _check_value(place: str, action: argparse.Action | None, name: str, value: Any) -> None:
    """Raise InputError unless accelerate's launcher takes the value, as text, for its flag of this
    name, and what it hands it on to knows it.
    """
    if value is None:
        return
    allowed = _choices(name)
    if allowed is None and action is not None:
        allowed = action.choices
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if allowed and text not in map(str, allowed):
        raise InputError(f"{place}: got {value!r}, expected one of {', '.join(map(str, allowed))}")
    kind = None if action is None else action.type
    if value == "auto" or kind not in (int, float):
        return
    if isinstance(value, bool) or not isinstance(value, (int,) if kind is int else (int, float)):
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{place}: got {value!r}, expected {expected}")


def _choices(name: str) -> Iterable | None:
    """What may stand for a name where accelerate's own flag does not say it; None: anything, or the
    flag does.
    """
    from accelerate.utils import constants

    if name in BOOLEANS:
        return ("true", "false")
    return {
        "zero_stage": ZERO_STAGES,
        "offload_optimizer_device": ("none", "cpu", "nvme"),
        "offload_param_device": ("none", "cpu", "nvme"),
        "fsdp_sharding_strategy": constants.FSDP_SHARDING_STRATEGY,
        "fsdp_auto_wrap_policy": constants.FSDP_AUTO_WRAP_POLICY,
        "fsdp_backward_prefetch": constants.FSDP_BACKWARD_PREFETCH,
        "fsdp_state_dict_type": constants.FSDP_STATE_DICT_TYPE,
    }.get(name)


def _check_machines(machines: int, flags: dict) -> None:
    """Raise InputError unless the machines can find each other, and machine 0 can listen."""
    rank = flags.get("machine_rank", 0)
    port = flags["main_process_port"]
    if machines > 1 and not {"machine_rank", "main_process_ip"} <= flags.keys():
        raise InputError(
            f"{machines} machines: each needs its own --machine_rank, and all --main_process_ip, "
            "the name or address of machine 0"
        )
    _check_rank(rank, machines)
    if machines > 1 and port == 0:
        raise InputError(
            "several machines: --main_process_port must name one port for all, such as 29500"
        )
    if rank != 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--main_process_port {port}: cannot listen there ({error}); name a free port"
            ) from None


def _check_rank(rank: int, machines: int) -> None:
    if not 0 <= rank < machines:
        raise InputError(
            f"--machine_rank {rank}: expected 0 to {machines - 1}; num_machines is {machines}"
        )


class _PassOn(SignalHandler):
    """Hands each signal on to the ranks, and waits for them: they save, and say so."""

    def on_first(self) -> None:
        """Hand it on; before a rank is there, end."""
        if not _send_to_ranks(self.received):
            raise Stopped(self.received)

    def on_second(self, number: int) -> None:
        """Hand it on, and kill what does not end on it."""
        _send_to_ranks(number)
        threading.Timer(SECONDS_TO_END, _send_to_ranks, [signal.SIGKILL]).start()

    def on_save_signal(self, number: int) -> None:
        """Hand it on."""
        _send_to_ranks(number)


def _first_failed(failures: Mapping[int, Any]) -> int:
    """The rank to name of those that failed (PyTorch's `ProcessFailure` by rank).

    One that was killed goes before others, which failed because they no longer reached it, and
    those that say so go last. SIGTERM is how PyTorch's launcher ends those.
    """
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    killed = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
    first = [rank for rank, code in codes.items() if code != LOST_RANK]
    return min(killed or first or codes, key=lambda rank: failures[rank].timestamp)


def _send_to_ranks(number: int) -> bool:
    """Send them a signal; whether there are any."""
    import psutil

    ranks = psutil.Process().children()
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)
    return bool(ranks)


def run_launcher(words: list[str], env: dict[str, str]) -> int:
    """`accelerate launch <words>` in this process; returns 0 or the status of the first rank that
    failed. Signals are handed on to the ranks.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What it would print is said below.
    launcher_log = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    launcher_log.setLevel(logging.CRITICAL)
    signals = _PassOn()
    signals.install()
    # PyTorch's launcher would give the ranks 30 seconds to save.
    own_env = {"PET_SIGNALS_TO_HANDLE": "SIGQUIT", **launcher_environment()}
    try:
        with patch_environment(**env, **own_env):
            launch_command(launch_command_parser().parse_args(words))
    except subprocess.CalledProcessError as error:
        return _status(0, error.returncode, signals.received)
    except ChildFailedError as error:
        rank = _first_failed(error.failures)
        return _status(rank, error.failures[rank].exitcode, signals.received)
    except SignalException as error:
        return 128 + error.sigval
    finally:
        signals.restore()
    return 0


def _status(rank: int, code: int, received: int = 0) -> int:
    """The exit status for a rank that failed, as a shell would give it; said on stderr unless the
    recipe has said it.

    Args:
        code: below 0 for one that a signal killed, as Python has it.
        received: the signal that this launcher handed on; 0: none.
    """
    if code < 0 and received == -code:  # before it could say so itself
        print(f"stopped by {describe_signal(received)}", file=sys.stderr)
        return 128 - code
    if code < 0:
        print(f"error: rank {rank} was killed by {signal.Signals(-code).name}", file=sys.stderr)
        return 128 - code
    if code in (SAID_WHY, LOST_RANK):
        return 1
    if rank != 0 and code in STOPPED:  # rank 0 alone says it itself
        print(f"stopped by {describe_signal(code - 128)}, which rank {rank} got", file=sys.stderr)
        return code
    if code not in EXPLAINED:
        print(
            f"error: rank {rank} ended with exit status {code}; its messages are above",
            file=sys.stderr,
        )
    return code
