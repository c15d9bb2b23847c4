"""Runs one Python program from stdin where it can harm nothing; `code.py` starts this file as a process of its own.

Three processes: this one keeps the time; the first of new namespaces, with which all in them die; and the program. It
sees a root folder of its own: Python and the system's libraries, read-only, and an empty folder in memory. No network
(loopback neither), no sockets, devices, processes or files of the machine, no privileges. Linux 5.12 or newer.
"""

import ctypes
import json
import os
import signal
import sys

TIMED_OUT = 124  # exit status of this process, as of timeout(1)
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
FOLDER = "/sandbox"  # the only one that the program can write to
# Of the kernel's headers <sched.h>, <linux/mount.h> and <linux/prctl.h>.
NAMESPACES = 0x6C020000  # CLONE_NEWNS (mounts), _NEWUTS (host name), _NEWIPC, _NEWPID, _NEWNET
USER_NAMESPACE = 0x10000000
PRIVATE = 0x44000  # MS_PRIVATE | MS_REC: what is mounted here is not seen outside
BIND = 0x5000  # MS_BIND | MS_REC: with all that is mounted below
BARE = 6  # MS_NOSUID | MS_NODEV
READ_ONLY = 1
MOUNT_SETATTR = 442  # the number of this system call
DEATH_SIGNAL = 1
NO_NEW_PRIVILEGES = 38
# The mark, a file beside stdout, tells that the program was started and that it came to its end: one that exits early
# has not passed its tests.
RUNNER = """
import os, sys, types
source, first, (packages, mark, word) = sys.stdin.read(), os.getpid(), sys.argv[1:]
del sys.argv[1:]
sys.path += packages.split(":")
sys.modules["__main__"] = main = types.ModuleType("__main__")
os.write(int(mark), b"started ")
exec(compile(source, "program.py", "exec"), main.__dict__)
sys.stdout.flush()
if os.getpid() == first:  # not one that the program forked
    os.write(int(mark), word.encode())
os._exit(0)
"""


def main(limits: dict) -> None:
    """Run the program; `limits` are the arguments of `run_program` and what it adds."""
    uid, gid = os.getuid(), os.getgid()
    _system("prctl", DEATH_SIGNAL, signal.SIGKILL)
    _system("unshare", NAMESPACES | (USER_NAMESPACE if uid else 0))
    if uid:  # the same user inside: the program, started anew, is without the privileges that this needs
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    # Root's program runs under an id that nobody has: root's own could use devices and is bound by no process limit.
    ids = (uid, gid) if uid else (20_000 + os.getpid() % 40_000,) * 2
    first, timed_out = _fork(_run_in_namespaces, limits, ids), []
    signal.signal(signal.SIGALRM, lambda *_: timed_out.append(os.kill(first, signal.SIGKILL)))
    signal.setitimer(signal.ITIMER_REAL, limits["time_limit_s"])
    os.waitpid(first, 0)  # it is the last of its namespaces to go
    sys.exit(TIMED_OUT if timed_out else 0)


def _run_in_namespaces(limits: dict, ids: tuple[int, int]) -> None:
    _system("prctl", DEATH_SIGNAL, signal.SIGKILL)
    _enter_own_root(limits, ids)
    program = _fork(_become_program, limits, ids)
    while os.wait()[0] != program:  # what the program leaves behind is handed to this process
        pass


def _enter_own_root(limits: dict, ids: tuple[int, int]) -> None:
    """What is not mounted below the new root cannot be reached: no call leads out of chroot without privileges."""
    root = limits["root"]
    _mount(None, "/", PRIVATE)
    _mount("tmpfs", root, BARE, "size=1m,mode=755")
    for path in {path: 0 for path in (*SYSTEM, *limits["packages"], *DEVICES) if os.path.exists(path)}:
        os.makedirs(root + (path if os.path.isdir(path) else os.path.dirname(path)), exist_ok=True)
        if not os.path.isdir(path):
            open(root + path, "a").close()
        if path not in DEVICES:
            _mount(path, root + path, BIND)
    os.mkdir(root + FOLDER)
    closed = (ctypes.c_uint64 * 4)(READ_ONLY | BARE)
    _system("syscall", MOUNT_SETATTR, -1, root.encode(), 0x8000, closed, 32)  # AT_RECURSIVE: and all mounted below
    for path in DEVICES:
        _mount(path, root + path, BIND)
    _mount("tmpfs", root + FOLDER, BARE, f"size={limits['file_limit_bytes']},nr_inodes=1024")
    os.chown(root + FOLDER, *ids)
    os.chroot(root)
    os.chdir(FOLDER)


def _become_program(limits: dict, ids: tuple[int, int]) -> None:
    import resource  # not on Windows, where the rest of hfscale.evaluation is of use

    processes = limits["process_limit"]
    if os.getuid():
        processes += 2  # the two above run under the same id and count too
    else:
        os.setgroups([])
        os.setresgid(*[ids[1]] * 3)
        os.setresuid(*[ids[0]] * 3)
    _system("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for name, value in (("AS", limits["memory_limit_bytes"]), ("FSIZE", limits["file_limit_bytes"]),
                        ("CPU", int(limits["time_limit_s"]) + 1), ("NPROC", processes), ("NOFILE", 64), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    command = [limits["python"], "-s", "-P", "-X", "utf8", "-c", RUNNER, ":".join(limits["packages"])]
    env = os.environ | {"HOME": FOLDER, "TMPDIR": FOLDER, "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0",
                        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.execve(command[0], [*command, str(limits["mark"]), limits["word"]], env)


def _fork(function, *args) -> int:
    """Process id of a child that calls the function and ends; why it failed is printed."""
    if child := os.fork():
        return child
    try:
        function(*args)
    except OSError as error:
        os.write(1, str(error).encode())
    finally:
        os._exit(0)


def _mount(source: str | None, target: str, flags: int, data: str = "") -> None:
    name = source and source.encode()  # also the kind of file system where it is one
    _system("mount", name, target.encode(), name, ctypes.c_ulong(flags), data.encode(), place=target)


def _system(name: str, *args, place: str = "") -> None:
    """A call of the C library that Python does not offer; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}", *[place] * bool(place))


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except (OSError, AttributeError) as error:
        os.write(1, str(error).encode())
