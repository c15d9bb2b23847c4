"""Signals end a process where it is, once, and it ends with whoever started it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hfscale.full_disk import is_disk_full
from hfscale.stopping import LAUNCHED, StopAtOnce, Stopped, note_when_stopped, what_is_kept


@pytest.fixture
def handler():
    handler = StopAtOnce()
    handler.install()
    yield handler
    handler.restore()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_stops_and_its_echo_does_not(handler, number):
    note_when_stopped("three texts are kept")
    assert what_is_kept() == "three texts are kept"
    with pytest.raises(Stopped) as stop:
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert (stop.value.number, stop.value.kept) == (number, "three texts are kept")
    os.kill(os.getpid(), number)  # from the terminal and from the launcher
    os.kill(os.getpid(), signal.SIGUSR1)  # nothing to be saved


def test_what_was_ignored_stays_ignored():
    """As `nohup` has it."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handler = StopAtOnce()
    handler.install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handler.restore()
    signal.signal(signal.SIGHUP, previous)


RANK = """
import os, time
from hfscale.stopping import end_with_launcher, end_workers_with_parent
end_with_launcher()
end_workers_with_parent()
worker = os.fork()
if worker:
    print(os.getpid(), worker, flush=True)
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal")
@pytest.mark.parametrize(("name", "ends"), [*((name, True) for name in LAUNCHED), ("NONE", False)])
def test_ranks_and_their_workers_end_with_the_launcher(name, ends):
    env = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK],
        env=env | {name: "x"},
        stdout=subprocess.PIPE,
        text=True,
    )
    processes = [psutil.Process(int(pid)) for pid in launcher.stdout.readline().split()]
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(processes, timeout=10 if ends else 0.3)
    for process in alive:
        process.kill()
    assert len(alive) == (0 if ends else 2)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError(2, "No such file"), False),
        (RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0"), True),
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (ValueError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_full_disk_is_known_by_what_each_library_says(error, is_full):
    assert is_disk_full(error) == is_full
    outer = RuntimeError("while saving")
    outer.__context__ = error
    assert is_disk_full(outer) == is_full


PRINTS = """
import sys
from hfscale.process import run
def main():
    print("a log", file=sys.stderr)
    if sys.argv[1] == "result":
        print("a result")
run(main)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has a full disk at hand")
@pytest.mark.parametrize(("what", "status"), [("log", 0), ("result", 1)])
def test_a_full_log_disk_ends_nothing_and_a_lost_result_is_an_error(what, status):
    with open("/dev/full", "w") as full:
        streams = {"stderr": full} if what == "log" else {"stdout": full}
        result = subprocess.run(
            [sys.executable, "-c", PRINTS, what],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **streams},
        )
    assert result.returncode == status
    if what == "result":
        assert "Traceback" not in result.stderr
        assert "error: No space left on device" in result.stderr.splitlines()[-1]
