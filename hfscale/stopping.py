"""What the signals that end a process do to it, and how it ends with whoever started it.

Nothing heavy is imported.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

# Windows has neither SIGHUP nor SIGUSR1.
ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
SAVING: Any = getattr(signal, "SIGUSR1", None)
# A terminal, a launcher and a scheduler often all pass on the same signal: what comes so soon after
# the first one is its echo.
ECHO_SECONDS = 1.0
LAUNCHER = "HFSCALE_LAUNCHER"  # host and process id of the `hfscale` that started this process
# Environment variables of which a launcher's child has one: torchrun's, accelerate's, ours.
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", LAUNCHER)
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
SECONDS_BETWEEN_LOOKS = 1.0
# That a rank has, once its launcher is gone, to come to the end of its step and save.
SECONDS_TO_SAVE = 120


class Stopped(KeyboardInterrupt):
    """A signal ends the program. What handles Ctrl-C handles it: pools end, partial files go.

    Args:
        number: of the signal.
        kept: what is there of the work so far, and how to go on; may be empty.
    """

    def __init__(self, number: int, kept: str = ""):
        super().__init__(number)
        self.number = number
        self.kept = kept


def describe_signal(number: int) -> str:
    """The name of a signal, as people know it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class SignalHandler:
    """Handles the signals that end a process: the first one is `received`, its echoes are passed
    over, and a second one ends the process at once.
    """

    def __init__(self) -> None:
        self.received = 0  # the number of the first signal; 0: none came
        self._received_at = 0.0
        self._pid = os.getpid()
        self._parent = os.getppid()
        self._previous: dict[int, Any] = {}  # who had each signal before: functions or numbers

    def install(self) -> None:
        """Take the signals over, but for those that the process was started to ignore (nohup)."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread do it
        numbers = ENDING if SAVING is None else (*ENDING, SAVING)
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self)

    def restore(self) -> None:
        """Give the signals back to who had them before."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self:
                signal.signal(number, previous)
        self._previous = {}

    def ignore(self) -> None:
        """Let no signal disturb the last lines of a process that ends anyway."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def __call__(self, number: int, frame: Any) -> None:
        """Python calls this in the main thread."""
        if os.getpid() != self._pid:
            # A worker that was forked meanwhile ends, or who waits for its end waits forever.
            end_now(number)
        elif number == SAVING:
            self.on_save_signal(number)
        elif not self.received:
            self.received = number
            self._received_at = time.monotonic()
            self.on_first()
        elif not self._is_echo():
            self.on_second(number)

    def _is_echo(self) -> bool:
        # That of the launcher's death comes when it likes.
        is_launcher_gone = os.getppid() != self._parent
        return is_launcher_gone or time.monotonic() - self._received_at < ECHO_SECONDS

    def on_first(self) -> None:
        """What the first signal does."""

    def on_second(self, number: int) -> None:
        """End at once."""
        end_now(number)

    def on_save_signal(self, number: int) -> None:
        """Nothing is to be saved."""


class StopAtOnce(SignalHandler):
    """Raises Stopped wherever the program is, with what is `kept` of its work."""

    kept = ""

    def on_first(self) -> None:
        """Raise it."""
        raise Stopped(self.received, self.kept)


def end_now(number: int) -> None:
    """End this process as if it had never handled the signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def note_when_stopped(kept: str) -> None:
    """Say from now on, when a signal ends the program, what is kept and how to go on."""
    for number in ENDING:
        handler = signal.getsignal(number)
        if isinstance(handler, StopAtOnce):
            handler.kept = kept


def what_is_kept() -> str:
    """The last text of `note_when_stopped`."""
    handlers = map(signal.getsignal, ENDING)
    return next((one.kept for one in handlers if isinstance(one, StopAtOnce)), "")


def received_signal() -> int:
    """The number of the signal that this process has received; 0: none came, or nobody has them."""
    handlers = map(signal.getsignal, ENDING)
    return next((one.received for one in handlers if isinstance(one, SignalHandler)), 0)


def between_batches() -> None:
    """A place at which an evaluation may be broken off: a training's handler of signals (one with a
    method `between_batches`) asks all ranks. Every rank has to come by equally often.
    """
    for number in ENDING:
        handler: Any = signal.getsignal(number)
        if hasattr(handler, "between_batches"):
            handler.between_batches()
            return


# ---- whoever started it


def launcher_environment() -> dict[str, str]:
    """What a launcher tells its children, so that they know later whether it is still there."""
    return {LAUNCHER: f"{socket.gethostname()}:{os.getpid()}"}


def end_with_launcher() -> None:
    """Let a process that a launcher started end when that is gone, however it went; one that was
    started by hand goes on, as `nohup` promises.

    It gets SIGTERM then, so that a training saves at the end of its step; what does not end on it
    (it waits for a rank that is gone) is killed after 120 seconds.
    """
    if not any(name in os.environ for name in LAUNCHED) or not hasattr(os, "fork"):
        return
    launcher = os.environ.pop(LAUNCHER, "")  # this process' alone, not its children's
    parent = os.getppid()
    die_with_parent(signal.SIGTERM)
    # Where the kernel tells nobody about dead parents (macOS), a thread does.
    threading.Thread(target=_watch_parent, args=(parent, launcher), daemon=True).start()


def _watch_parent(parent: int, launcher: str) -> None:
    if not _was_gone(parent, launcher):
        if parent == 1:  # the first process of a container, which ends with it
            return
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_SAVE)
    os.kill(os.getpid(), signal.SIGKILL)


def _was_gone(parent: int, launcher: str) -> bool:
    """Whether the launcher ended before the first look at the parent."""
    host, _, number = launcher.partition(":")
    if host != socket.gethostname() or int(number) == parent:
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def end_workers_with_parent() -> None:
    """Let the processes that this one forks from now on (data loaders, pools) end with it, and
    leave Ctrl-C and a closed terminal, which reach them too, to it.
    """
    if not hasattr(os, "register_at_fork"):
        return
    parent = [os.getpid()]  # of the latest fork

    def note_parent() -> None:
        parent[0] = os.getpid()

    os.register_at_fork(before=note_parent, after_in_child=lambda: _become_worker(parent[0]))


def _become_worker(parent: int) -> None:
    end_with_parent(parent)
    for number in ENDING:
        if isinstance(signal.getsignal(number), SignalHandler):
            is_for_all = number != signal.SIGTERM  # by which pools end their workers
            signal.signal(number, signal.SIG_IGN if is_for_all else signal.SIG_DFL)


def end_with_parent(parent: int) -> None:
    """Let Linux kill this process when `parent`, the process that forked it, ends or has ended."""
    if sys.platform == "linux":
        die_with_parent(signal.SIGKILL)
        # Its parent is gone by now; 0: that is in another namespace.
        if os.getppid() not in (0, parent):
            os.kill(os.getpid(), signal.SIGKILL)


def die_with_parent(number: int) -> None:
    """Ask Linux for a signal when the parent ends; elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, number, 0, 0, 0)
