"""Runs one Python program and its tests where they can harm nothing; `code.py` starts this file as
a process.

Five processes: this one keeps time and memory; the first of new namespaces, with which all in them
die; the tests; the first of a namespace within, from which no process outside it can be named; and
the program. All see a root folder of their own: Python and the system's libraries, read-only, and
an empty folder in memory. No network (loopback neither), no sockets, devices, processes or files of
the machine, no privileges. Linux 5.12 or newer.
"""

import ctypes
import errno
import marshal
import os
import select
import signal
import struct
import sys
import time

# Exit statuses of this process beside those of the tests' process.
TIMED_OUT = 124  # as of timeout(1)
NOT_STARTED = 125
BY_SIGNAL = 128  # and the signal's number, as in a shell
# Time and memory are looked at as often: a burst of memory lasts no longer.
POLL_S = 0.02
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
FOLDER = "/sandbox"  # the only one that can be written to
INSIDE = os.path.join(os.path.dirname(__file__), "sandboxed.py")
# Of the kernel's headers <sched.h>, <linux/mount.h>, <linux/prctl.h> and <linux/seccomp.h>.
NAMESPACES = 0x6C020000  # CLONE_NEWNS (mounts), _NEWUTS (host name), _NEWIPC, _NEWPID, _NEWNET
PROCESS_NAMESPACE = 0x20000000
USER_NAMESPACE = 0x10000000
PRIVATE = 0x44000  # MS_PRIVATE | MS_REC: what is mounted here is not seen outside
BIND = 0x5000  # MS_BIND | MS_REC: with all that is mounted below
BARE = 6  # MS_NOSUID | MS_NODEV
READ_ONLY = 1
MOUNT_SETATTR = 442  # the number of this system call
ALL_BELOW = 0x8000  # AT_RECURSIVE: and all that is mounted below
DEATH_SIGNAL = 1
NO_NEW_PRIVILEGES = 38
SECCOMP = 22
FILTER_MODE = 2
# Lines of files in /proc/<process>, in kB: quick, and a share of what several processes have in
# common.
RESIDENT = ("status", ("VmRSS:", "VmSwap:"))
PROPORTIONAL = ("smaps_rollup", ("Pss:", "SwapPss:"))


def main(limits: dict) -> int:
    """The exit status; `limits` are the arguments of `run_program` and what it adds."""
    uid = os.getuid()
    gid = os.getgid()
    limits["uid"] = uid
    with open(INSIDE) as file:
        limits["code"] = file.read()
    # Raises where the kernel does not list them; without that memory cannot be watched.
    open(f"/proc/self/task/{os.getpid()}/children").close()
    _system("prctl", DEATH_SIGNAL, signal.SIGKILL)
    is_root = uid == 0
    if is_root:
        _system("unshare", NAMESPACES)
        # The program runs under an id that nobody has: root's own could use devices and is bound by
        # no process limit.
        unused_id = 20_000 + os.getpid() % 40_000
        ids = (unused_id, unused_id)
    else:
        _system("unshare", NAMESPACES | USER_NAMESPACE)
        _keep_user(uid, gid)
        ids = (uid, gid)
    # The others hold one end of this pipe until they end.
    ended, held = os.pipe()
    first = _fork(_run_in_namespaces, limits, ids)
    os.close(held)
    return _watch(first, ended, limits)


def _keep_user(uid: int, gid: int) -> None:
    """The same user inside: the program, started anew, is without the privileges that this process
    has in its namespaces."""
    texts = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, text in texts.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _watch(first: int, ended: int, limits: dict) -> int:
    """Wait for the first process of the namespaces, the last to go. Kill it when time or memory is
    used up."""
    most = limits["memory_limit_bytes"]
    end = time.monotonic() + limits["time_limit_s"]
    while not select.select([ended], [], [], POLL_S)[0]:
        too_late = time.monotonic() > end
        if too_late or _used_bytes(first, most) > most:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
            if too_late:
                return TIMED_OUT
            os.write(1, b"MemoryError: all processes together took more than memory_limit_bytes\n")
            return BY_SIGNAL + signal.SIGKILL
    return _exit_status(os.waitpid(first, 0)[1])


def _used_bytes(first: int, limit: int) -> int:
    """Memory of all processes below this one. What they share is counted once, if that matters."""
    processes = _below(first)
    resident = sum(_bytes_of(process, *RESIDENT) for process in processes)
    if resident <= limit:
        return resident
    # What cannot be looked into has no proportional share, and counts in full; what has ended
    # meanwhile has neither.
    return sum(
        _bytes_of(process, *PROPORTIONAL) or _bytes_of(process, *RESIDENT) for process in processes
    )


def _below(process: int) -> list[int]:
    texts = _texts_of_threads(process, "children")
    children = [int(child) for text in texts for child in text.split()]
    return [*children, *(below for child in children for below in _below(child))]


def _bytes_of(process: int, file: str, names: tuple[str, ...]) -> int:
    """As the first thread tells it that has not ended."""
    for text in _texts_of_threads(process, file):
        lines = [line.split() for line in text.splitlines()]
        kilobytes = [int(words[1]) for words in lines if words[0] in names]
        if kilobytes:
            return 1024 * sum(kilobytes)
    return 0


def _texts_of_threads(process: int, file: str) -> list[str]:
    """None of a process that has ended, or that may not be looked into."""
    texts = []
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            # The process's name stands in it, and may be any bytes.
            with open(f"/proc/{process}/task/{thread}/{file}", errors="replace") as opened:
                texts.append(opened.read())
    except OSError:
        pass
    return texts


def _run_in_namespaces(limits: dict, ids: tuple[int, int]) -> None:
    _system("prctl", DEATH_SIGNAL, signal.SIGKILL)
    _enter_own_root(limits, ids)
    from_tests, to_program = os.pipe()
    from_program, to_tests = os.pipe()
    tests = _fork(_become, limits, ids, "tests", (from_program, to_program))
    _system("unshare", PROCESS_NAMESPACE)
    _fork(_keep_program, limits, ids, (from_tests, to_tests), (from_program, to_program))
    for pipe in (from_tests, to_program, from_program, to_tests):
        os.close(pipe)
    os._exit(_exit_status(_wait_for(tests)))


def _keep_program(limits: dict, ids: tuple[int, int], pipes: tuple, of_tests: tuple) -> None:
    """The first process of the program's namespace: what the program has started ends with it."""
    program = _fork(_become, limits, ids, "program", pipes)
    for pipe in (*pipes, *of_tests):  # the tests see the program's end by the end of its pipe
        os.close(pipe)
    _wait_for(program)


def _wait_for(process: int) -> int:
    """Its wait status. What other processes leave behind is handed to this one."""
    while True:
        ended_process, status = os.wait()
        if ended_process == process:
            return status


def _enter_own_root(limits: dict, ids: tuple[int, int]) -> None:
    """What is not mounted below the new root cannot be reached: no call leads out of chroot without
    privileges.
    """
    root = limits["root"]
    _mount(None, "/", PRIVATE)
    _mount("tmpfs", root, BARE, "size=1m,mode=755")
    paths = (*SYSTEM, limits["library"], *limits["packages"], *DEVICES)
    for path in dict.fromkeys(path for path in paths if os.path.exists(path)):
        _make_mount_point(root, path)
        if path not in DEVICES:
            _mount(path, root + path, BIND)
    os.mkdir(root + FOLDER)
    closed = (ctypes.c_uint64 * 4)(READ_ONLY | BARE)
    _system("syscall", MOUNT_SETATTR, -1, root.encode(), ALL_BELOW, closed, ctypes.sizeof(closed))
    for path in DEVICES:
        _mount(path, root + path, BIND)
    _mount("tmpfs", root + FOLDER, BARE, f"size={limits['file_limit_bytes']},nr_inodes=1024")
    os.chown(root + FOLDER, *ids)
    os.chroot(root)
    os.chdir(FOLDER)


def _make_mount_point(root: str, path: str) -> None:
    """A folder or an empty file, as `path` is, at the same place below the root."""
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
        return
    os.makedirs(root + os.path.dirname(path), exist_ok=True)
    open(root + path, "a").close()


def _become(limits: dict, ids: tuple[int, int], role: str, pipes: tuple[int, int]) -> None:
    """Python anew, without privileges, in one of the two roles of `sandboxed.py`."""
    os.setsid()  # a signal to its group would reach the others
    uid, gid = ids
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    # Under an id of its own there is one more process, that of the tests or of the program; else
    # all of the sandbox count.
    has_own_id = uid != limits["uid"]
    _set_limits(limits, others=1 if has_own_id else 4)
    _system("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _filter_system_calls(limits["filter_rows"])
    if role == "program":  # the tests read theirs
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for pipe in pipes:
        os.set_inheritable(pipe, True)
    command = [limits["python"], "-S", "-P", "-X", "utf8", "-c", limits["code"]]
    command += [role, *map(str, pipes), ":".join(limits["packages"])]
    env = {
        "HOME": FOLDER,
        "TMPDIR": FOLDER,
        "PATH": "/usr/bin:/bin",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    os.execve(command[0], command, os.environ | env)


def _set_limits(limits: dict, others: int) -> None:
    """`others`: processes of the sandbox that run under the program's id and count with it."""
    import resource  # not on Windows, where the rest of hfscale.evaluation is of use

    values = {
        "AS": limits["memory_limit_bytes"],
        "FSIZE": limits["file_limit_bytes"],
        "CPU": int(limits["time_limit_s"]) + 1,
        "NPROC": limits["process_limit"] + others,
        "NOFILE": 64,
        "CORE": 0,
    }
    for name, value in values.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _filter_system_calls(rows: list[list[int]]) -> None:
    packed = b"".join(struct.pack("HBBI", *row) for row in rows)
    buffer = ctypes.create_string_buffer(packed)
    program = struct.pack("HP", len(rows), ctypes.addressof(buffer))
    try:
        if rows:
            _system("prctl", SECCOMP, FILTER_MODE, program, 0, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel without such filters
            raise


def _exit_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else BY_SIGNAL - code


def _fork(function, *args) -> int:
    """Process id of a child that calls the function and ends; why it failed is printed."""
    child = os.fork()
    if child:
        return child
    try:
        function(*args)
    except OSError as error:
        os.write(1, str(error).encode())
    finally:
        os._exit(NOT_STARTED)


def _mount(source: str | None, target: str, flags: int, data: str = "") -> None:
    name = source and source.encode()  # also the kind of file system where it is one
    _system(
        "mount", name, target.encode(), name, ctypes.c_ulong(flags), data.encode(), place=target
    )


def _system(name: str, *args, place: str = "") -> None:
    """A call of the C library that Python does not offer; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) < 0:
        number = ctypes.get_errno()
        reason = f"{name}: {os.strerror(number)}"
        if place:
            raise OSError(number, reason, place)
        raise OSError(number, reason)


if __name__ == "__main__":
    try:
        sys.exit(main(marshal.loads(bytes.fromhex(sys.argv[1]))))
    except (OSError, AttributeError) as error:
        os.write(1, str(error).encode())
