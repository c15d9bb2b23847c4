"""A recipe's way in and out, and what its process was told: ranks, launch, network, versions.

Nothing heavy is imported.
"""

import contextlib
import io
import json
import logging
import os
import platform
import re
import shlex
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from hfscale import __version__
from hfscale.full_disk import NO_SPACE, DiskFull, is_disk_full, pass_over_log_errors
from hfscale.shown import printable, show_text
from hfscale.stopping import (
    ENDING,
    StopAtOnce,
    Stopped,
    describe_signal,
    end_with_launcher,
    end_workers_with_parent,
    received_signal,
    what_is_kept,
)

# Environment variables by which `hfscale` tells a recipe's process what it cannot see.
PLANNED_CONFIG = "HFSCALE_PLANNED_CONFIG"  # see planned_launch
PLANNED_PROCESSES = "HFSCALE_PLANNED_PROCESSES"
TYPED_COMMAND = "HFSCALE_COMMAND"  # see typed_command
EXPECTED_START = "HFSCALE_EXPECTED_START"  # see training.traces.check_start
ZERO_STAGES = (0, 1, 2, 3)
# The status by which a process that has said why it failed tells `hfscale` so, which ends with 1.
SAID_WHY = 101
# That of one that no longer reaches another rank: `hfscale` names that other one.
LOST_RANK = 102
# How gloo and NCCL say so.
LOST = re.compile(
    r"connection (was )?(closed|reset) by (remote )?peer|broken pipe|remote process exited", re.I
)
# Of which `quiet_libraries` lets some lines go, and words of one.
QUIET_LOGGERS = ("DeepSpeed", "transformers.modeling_utils")
NO_MASK = "passing in an `attention_mask`"
# Before a bar is drawn; in a file or a pipe also from one of its lines to the next.
BAR_SECONDS = 1
BAR_SECONDS_IN_FILES = 30
UNSHARDED = "one process or DDP"  # each process holds the whole optimizer state
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "deepspeed", "peft")


class InputError(ValueError):
    """The user's input is wrong: one line with place, value, what is allowed and the next step
    (exit status 2).
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the line, as a terminal does, and no traceback."""
        return [f"error: {printable(str(self))}"]


def run(main: Callable[[], Any]) -> None:
    """Entry of every script. It ends in one line on stderr, and with a status of its own, after an
    `InputError` (2), numbers that are not finite or a full disk (1), or a signal (128 and its
    number); with 1 also where `main` returns False: what it looked at is not as it should be.
    """
    status = 0
    if not sys.warnoptions:  # of names that libraries of others call by what they were
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    quiet_libraries()
    with ending_quietly():
        end_with_launcher()
        end_workers_with_parent()
        try:
            status = failure_status() if main() is False else 0
        except InputError as error:
            _say_error(line_of(error))
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if lost := _lost_rank(error):
                _end_without_others(lost)
            if not is_out_of_memory(error):
                raise
            show_text(f"error: {_about_memory(error)}", file=sys.stderr)
            raise SystemExit(failure_status()) from None
        except FloatingPointError as error:  # a run that diverged, or a model that is broken
            show_text(f"error: {error}", file=sys.stderr)
            raise SystemExit(failure_status()) from None
        finally:
            torch = sys.modules.get("torch")
            if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
                # Gloo's threads else now and then abort a good exit
                torch.distributed.destroy_process_group()
    raise SystemExit(status)


def line_of(error: InputError) -> str:
    """What it says, in one line that a terminal can show."""
    # A data loader's worker puts its traceback, and the error's class, before it.
    line = printable(str(error)).strip().splitlines()[-1]
    return line.removeprefix(f"{InputError.__module__}.InputError: ")


def failure_status() -> int:
    """With what a process ends that has said in a line why it failed."""
    return SAID_WHY if TYPED_COMMAND in os.environ else 1


def _lost_rank(error: BaseException) -> str:
    """How torch says that another rank is gone; empty: it says something else."""
    found = LOST.search(str(error)) if _connected_ranks() else None
    return found[0] if found else ""


def _end_without_others(reason: str) -> NoReturn:
    """End as the signal has it that this rank got too, which the other one obeyed at once; else in
    one line.
    """
    if number := received_signal():
        raise Stopped(number, what_is_kept()) from None
    _say_error(f"another rank is gone ({reason})")
    raise SystemExit(LOST_RANK if TYPED_COMMAND in os.environ else 1) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory or a device's did not suffice: Python's own error, or one of
    torch, which has no class for the CPU's.
    """
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _about_memory(error: BaseException) -> str:
    """One line on an error of `is_out_of_memory`."""
    asked = re.search(r"allocate (\d+) bytes|allocate ([\d.]+ [KMGT]iB)", str(error))
    room = ""
    if asked:
        size = asked[2] or f"{int(asked[1]) / 2**30:,.1f} GiB"
        room = f" (no room for {size} more)"
    return (
        f"out of memory{room}; lower the batch size (per_device_train_batch_size, "
        "per_device_eval_batch_size, batch_size), max_length or the model's sizes; hfscale plan "
        "shows what fits"
    )


def _say_error(line: str) -> None:
    if is_main_rank():
        show_text(f"error: {line}", file=sys.stderr)


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """Ends the program without a traceback where nothing is wrong with it: nobody reads its output
    any more (`| head`), with the status that a shell gives SIGPIPE; a signal, with its own; or the
    disk is full.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not a test's own stream
        # For a terminal that has not all of Unicode.
        sys.stdout.reconfigure(errors="backslashreplace")
    pass_over_log_errors("stderr")
    signals = StopAtOnce()
    signals.install()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            signals.restore()
    except BrokenPipeError:
        _end_by(signal.SIGPIPE)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # as rich ends
            _end_by(signal.SIGPIPE)
        raise
    except KeyboardInterrupt as stop:
        _say_stopped(stop)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # All partial files and pools are gone by now. To take torch apart would take seconds.
        os._exit(128 + getattr(stop, "number", signal.SIGINT))
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(f"error: {describe_full_disk(error)}", file=sys.stderr)
        _end_with(failure_status())


def _say_stopped(stop: KeyboardInterrupt) -> None:
    if not is_main_rank():
        return
    after_the_sign = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
    line = f"stopped by {describe_signal(getattr(stop, 'number', signal.SIGINT))}"
    if kept := getattr(stop, "kept", ""):
        line += f"; {kept}"
    print(after_the_sign + line, file=sys.stderr, flush=True)


def describe_full_disk(error: BaseException) -> str:
    """A full disk in one line: which file, what is kept and how to go on."""
    if isinstance(error, DiskFull):
        return str(error)
    file = getattr(error, "filename", None)
    place = f"{file}: " if file else ""
    kept = what_is_kept()
    return f"{place}{NO_SPACE}{'; ' if kept else ''}{kept}; free some space or name another disk"


def _end_by(stopped_by: int) -> None:
    """Exit with the status of a program that this signal ended; what is still unwritten goes
    nowhere.
    """
    _end_with(128 + stopped_by)


def _end_with(status: int) -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a test's own stream has no number
            os.dup2(nowhere, stream.fileno())
    raise SystemExit(status) from None


def is_main_rank() -> bool:
    """Whether this process is rank 0 of its launch (or was not launched by a launcher)."""
    return os.environ.get("RANK", "0") == "0"


def from_main_rank(work: Callable[[], Any]) -> Any:
    """What `work` returns on rank 0, which alone does it while the others wait. Collective, where
    the ranks are connected by now; before that, others get None.

    Raises:
        Exception: `work` raised it. On the other ranks it is of the same kind where that is
            InputError, else SystemExit: rank 0 shows it.
    """
    outcome: list[Any] = [None, None]
    failure = None
    if is_main_rank():
        try:
            outcome[0] = work()
        except Exception as error:
            failure = error
            outcome[1] = (isinstance(error, InputError), str(error))
    if distributed := _connected_ranks():
        distributed.broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    result, told = outcome
    if told is not None:
        is_input_error, text = told
        raise InputError(text) if is_input_error else SystemExit(failure_status())
    return result


def on_all_ranks(work: Callable[[], Any]) -> Any:
    """What `work` returns, which each rank does on its own. Collective, where the ranks are
    connected by now.

    Raises InputError: on all ranks, what it raised on the first of those where it did.
    """
    result, failure = None, None
    try:
        result = work()
    except InputError as error:
        failure = str(error)
    failures = [failure]
    if distributed := _connected_ranks():
        failures = [None] * distributed.get_world_size()
        distributed.all_gather_object(failures, failure)
    for said in failures:
        if said is not None:
            raise InputError(said)
    return result


def _connected_ranks() -> Any:
    """`torch.distributed`, if this process trains with others by now; else None."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    is_connected = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return torch.distributed if is_connected else None


def planned_launch() -> tuple[dict[str, Any], int] | None:
    """The content of the launch config and the number of processes of a dry run for other machines
    (`planned_elsewhere`); None: this process runs where it is."""
    path = os.environ.get(PLANNED_CONFIG)
    if not path:
        return None
    import yaml

    config = yaml.safe_load(Path(path).read_text("utf-8"))
    deepspeed = config.get("deepspeed_config") or {}
    if "deepspeed_config_file" in deepspeed:
        deepspeed["zero_stage"] = read_zero_stage(path, deepspeed["deepspeed_config_file"])
    return config, int(os.environ[PLANNED_PROCESSES])


def launched_engine() -> str:
    """What accelerate's launcher told this process to train with: ZeRO-1, ZeRO-2, ZeRO-3, FSDP, one
    process or DDP; of a dry run for other machines, what they will be told.
    """
    if planned := planned_launch():
        config, _ = planned
        kind = config.get("distributed_type")
        if kind == "DEEPSPEED":
            stage = (config.get("deepspeed_config") or {}).get("zero_stage", 2)
            return f"ZeRO-{stage}"
        return "FSDP" if kind == "FSDP" else UNSHARDED
    if _accelerate_uses("DEEPSPEED"):
        return f"ZeRO-{_launched_zero_stage()}"
    return "FSDP" if _accelerate_uses("FSDP") else UNSHARDED


def _accelerate_uses(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true"


def _launched_zero_stage() -> str:
    """Of DeepSpeed's configuration, also of a file of the user's own, which is there once
    TrainingArguments are made; before that, what accelerate was told.
    """
    from transformers.integrations.deepspeed import deepspeed_config

    stage = (deepspeed_config() or {}).get("zero_optimization", {}).get("stage")
    return stage or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")


def launched_processes(world_size: int) -> int:
    """How many processes train together: those of this launch, or those that a dry run is for."""
    planned = planned_launch()
    return planned[1] if planned else world_size


def read_zero_stage(place: str, file: str) -> int:
    """The ZeRO stage in a file of DeepSpeed's own; raises InputError, beginning with `place`: it is
    none.
    """
    try:
        content = json.loads(Path(file).read_text("utf-8"))
        stage = content.get("zero_optimization", {}).get("stage", 0)
    except (OSError, ValueError, AttributeError, TypeError):
        raise InputError(
            f"{place}: deepspeed_config_file {file}: not a JSON file of DeepSpeed's settings"
        ) from None
    if stage not in ZERO_STAGES:
        raise InputError(
            f"{place}: deepspeed_config_file {file}: zero_optimization: stage: got {stage!r}, "
            f"expected one of {', '.join(map(str, ZERO_STAGES))}"
        )
    return stage


def typed_command(recipe: str, argv: list[str] | None) -> str:
    """The command as it can be typed again: with the launcher's flags where `hfscale` started this
    process, else the recipe's own. `recipe` is the script's `__file__`.
    """
    if argv is None and TYPED_COMMAND in os.environ:
        return os.environ[TYPED_COMMAND]
    script = Path(recipe)
    package = Path(__file__).parent
    # The recipes lie inside the package in a wheel, beside it in a checkout.
    is_shipped = script.absolute().parent in (package / "recipes", package.parent / "recipes")
    name = script.stem if is_shipped else str(script)
    words = sys.argv[1:] if argv is None else argv
    return shlex.join(["hfscale", name, *words])


def hardware() -> dict[str, Any]:
    """On what this process computes, and with how many others; a GPU only where torch is loaded."""
    device = "cpu"
    device_name = platform.processor() or platform.machine()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        device = "cuda"
        device_name = torch.cuda.get_device_name()
    return {
        "device": device,
        "device_name": device_name,
        "cpu_cores": os.cpu_count(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def versions() -> dict[str, str | None]:
    """Of Python, hfscale and the libraries that decide the numbers; None: not installed."""
    installed: dict[str, str | None] = {
        "python": platform.python_version(),
        "hfscale": __version__,
        **dict.fromkeys(LIBRARIES),
    }
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def hub_reachable(timeout_seconds: float = 1.0) -> bool:
    """Whether the Hub answers a TCP connection within the limit."""
    return host_answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout_seconds)


def host_answers(url: str, timeout_seconds: float = 1.0) -> bool:
    """Whether the host of a URL answers a TCP connection within the limit."""
    address = urlsplit(url)
    port = address.port or (80 if address.scheme == "http" else 443)
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((address.hostname, port), timeout_seconds).close()
            answered.set()

    # In a thread: the look-up of the name has no limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return answered.is_set()


def go_offline_if_unreachable() -> None:
    """Set the offline switches unless the Hub answers: its libraries read them once, at import, and
    else retry for most of a minute. What the user set stays.
    """
    if "HF_HUB_OFFLINE" not in os.environ and not hub_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")


def quiet_libraries() -> None:
    """Keep from the terminal what says nothing to the user: DeepSpeed, which peft loads wherever it
    lies, that it sees no GPU (a run names its device itself); transformers, that a padding token
    without a mask may be padding (a model may write one, and our masks are tested); bars of work
    that is done at once. Before tqdm is imported, which reads its settings then.
    """
    for name in QUIET_LOGGERS:
        logging.getLogger(name).addFilter(_is_news)  # once, however often it is asked for
    # In a file each state of a bar is a line.
    seconds = BAR_SECONDS if sys.stderr.isatty() else BAR_SECONDS_IN_FILES
    os.environ.setdefault("TQDM_DELAY", str(seconds))
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(seconds))
        os.environ.setdefault("TQDM_MAXINTERVAL", str(seconds))


def _is_news(record: logging.LogRecord) -> bool:
    return record.module != "real_accelerator" and NO_MASK not in str(record.msg)


def hide_bitsandbytes() -> None:
    """Keep peft from importing bitsandbytes wherever it lies, as peft does at each start: on CPUs
    with bf16 instructions that prints a warning, and it costs a second. `show_bitsandbytes` brings
    it back.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("bitsandbytes", None)  # to Python's import system: not there


def show_bitsandbytes() -> None:
    """Let peft and transformers, which asked once and remember the answer, find bitsandbytes
    again.
    """
    from peft import import_utils
    from transformers.utils import is_bitsandbytes_available

    if sys.modules.get("bitsandbytes", True) is None:
        del sys.modules["bitsandbytes"]
    for check in (
        is_bitsandbytes_available,
        import_utils.is_bnb_available,
        import_utils.is_bnb_4bit_available,
    ):
        check.cache_clear()
