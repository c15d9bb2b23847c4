"""Programs of a model: right ones pass, wrong ones do not, and none of them can harm the machine."""

import contextlib
import gzip
import itertools
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from hfscale.config import InputError
from hfscale.evaluation.code import pass_at_k, run_program

TOKEN = "0123456789abcdef-of-this-test"


@pytest.fixture(scope="module")
def run():
    """`run_program` with the permission, on a machine that can isolate programs. Others refuse: see below."""
    try:
        run_program("", allow_code_execution=True)
    except InputError as error:
        pytest.fail(str(error)) if os.environ.get("CI") == "true" else pytest.skip(str(error))
    return partial(run_program, allow_code_execution=True)


def processes_with(word: str) -> set[int]:
    """Ids of the machine's processes, those in namespaces too, with this word in their command."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended
            if word.encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found


@pytest.fixture
def left_processes(monkeypatch):
    """A function that tells what is left of this test's programs: each carries a word in its command."""
    monkeypatch.setattr("secrets.token_hex", lambda size: TOKEN)
    return partial(processes_with, TOKEN)


def human_eval(shared_data: Path) -> list[dict]:
    rows = [json.loads(line) for line in gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt")]
    return [{"head": row["prompt"], "solution": row["canonical_solution"], "stub": "    pass\n",
             "test": f"{row['test']}\ncheck({row['entry_point']})"} for row in rows]


def mbpp(shared_data: Path) -> list[dict]:
    rows = [json.loads(line) for line in gzip.open(shared_data / "mbpp" / "mbpp.jsonl.gz", "rt")]
    return [{"head": "", "solution": row["code"], "stub": "",
             "test": "\n".join([row["test_setup_code"], *row["test_list"]])} for row in rows]


def failures(run, tasks: list[dict], part: str) -> list[str]:
    """What the programs that do not pass print."""
    programs = [f"{task['head']}{task[part]}\n{task['test']}\n" for task in tasks]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(partial(run, time_limit_s=60), programs))
    return [outcome.output or str(outcome) for outcome in outcomes if not outcome.passed]


# ---- right and wrong programs

def test_reference_solutions_pass_and_stubs_do_not(run, shared_data):
    tasks = human_eval(shared_data)[::20] + mbpp(shared_data)[::90]
    assert len(tasks) == 20
    assert failures(run, tasks, "solution") == []
    assert len(failures(run, tasks, "stub")) == len(tasks)


@pytest.mark.slow
def test_all_reference_solutions_pass(run, shared_data):
    """Twenty to a sandbox, one after the other, each with names of its own; alone they run above."""
    tasks = human_eval(shared_data) + mbpp(shared_data)
    assert len(tasks) == 164 + 974
    programs = ["\n".join([task["head"] + task["solution"], task["test"]]) for task in tasks]
    alone = [f"exec({program!r}, {{'__name__': '__main__'}})" for program in programs]
    groups = [{"head": "", "solution": "\n".join(alone[at : at + 20]), "test": ""} for at in range(0, len(alone), 20)]
    assert failures(run, groups, "solution") == []


@pytest.mark.parametrize("program", ["import os; os._exit(0)", "exit()", "raise SystemExit(0)", "def f(:", "1 / 0",
                                     "import os\nif os.fork(): 1 / 0", "input()", "\0", "\ud800"])
def test_a_program_that_does_not_come_to_its_end_does_not_pass(run, program):
    outcome = run(program)
    assert (outcome.passed, outcome.timed_out) == (False, False)


def test_a_program_sees_an_ordinary_python(run):
    outcome = run("""
import dataclasses, random, sys, tempfile, numpy
@dataclasses.dataclass
class Point:
    x: int = 1
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 1000)
open("own", "w").write("ö")
assert open("own").read() == "ö" and sys.argv[1:] == [] and __name__ == "__main__"
assert numpy.arange(3).sum() == Point(3).x == 3
print("it works", {"a", "b", "c"})
""")
    assert outcome.passed, outcome.output
    again = [run("print({str(i) for i in range(20)})").output for _ in range(2)]
    assert again[0] == again[1]  # the order of sets does not change from run to run
    assert "ZeroDivisionError" in run("1 / 0").output


# ---- attacks

def test_endless_loop(run, left_processes):
    start = time.monotonic()
    assert run("while True: pass", time_limit_s=1)[:2] == (False, True)
    assert run("import time; time.sleep(1000)", time_limit_s=1)[:2] == (False, True)
    assert time.monotonic() - start < 20
    assert left_processes() == set()


def test_fork_bomb(run, left_processes):
    start = time.monotonic()
    outcome = run("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        print('full')",
                  time_limit_s=2, file_limit_bytes=10_000)
    assert not outcome.passed and "full" in outcome.output
    assert time.monotonic() - start < 20
    assert left_processes() == set()


def test_at_most_so_many_processes(run):
    count = "import os, time\nn = 1\ntry:\n    while True:\n        if not os.fork(): time.sleep(60)\n        n += 1\n"
    assert run(f"{count}except OSError: assert n == 5, n", process_limit=5).passed


def test_a_process_that_leaves_its_group_dies_too(run, left_processes):
    outcome = run("import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork(): time.sleep(1000)\n"
                  "    os._exit(0)\nos.wait(); print('over')")
    assert outcome.passed and outcome.output == "over\n"
    assert left_processes() == set()


def test_nothing_is_left_when_the_caller_is_killed(run):
    code = (f"import secrets; secrets.token_hex = lambda n: '{TOKEN}-killed'\n"
            "from hfscale.evaluation.code import run_program\n"
            "run_program('import time; time.sleep(1000)', allow_code_execution=True, time_limit_s=1000)")
    caller = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(processes_with(f"{TOKEN}-killed") - {caller.pid}) == 3)
    caller.kill()
    caller.wait()
    wait_until(lambda: processes_with(f"{TOKEN}-killed") == set())


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ten_gigabytes(run):
    start = time.monotonic()
    outcome = run("x = bytearray(10 * 2**30)")
    assert not outcome.passed and "MemoryError" in outcome.output
    assert time.monotonic() - start < 20


def test_files_of_the_machine_cannot_be_seen_changed_or_deleted(run, tmp_path):
    kept, library = tmp_path / "kept.txt", Path(json.__file__)
    kept.write_text("still here")
    before = library.stat()
    for attack in (f"import os; os.remove({str(kept)!r})", f"import os; os.remove({str(library)!r})",
                   f"import shutil; shutil.rmtree({str(tmp_path)!r})", f"open({str(kept)!r}, 'w').write('gone')",
                   f"open({str(library)!r}, 'a').write('#')", f"open({str(kept)!r}).read()",
                   "import os; os.mkdir('/new')", "open('/etc/passwd')", "open('/proc/self/mem')"):
        outcome = run(attack)
        assert not outcome.passed and "Error" in outcome.output, attack
    assert kept.read_text() == "still here" and list(tmp_path.iterdir()) == [kept]
    assert (before.st_size, before.st_mtime) == (library.stat().st_size, library.stat().st_mtime)
    assert run(f"import os; assert not os.path.exists({str(tmp_path)!r}); assert os.listdir('.') == []").passed


def test_written_files_and_output_are_bounded_and_gone(run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert "File too large" in run("open('f', 'w').write('x' * 10**7)").output
    assert "No space left" in run("for i in range(9): open(f'f{i}', 'w').write('x' * 10**6)").output
    outcome = run("print('x' * 10**6)", file_limit_bytes=1000)
    assert not outcome.passed and len(outcome.output) <= 1000
    assert list(tmp_path.iterdir()) == []


def test_no_connection_reaches_the_machine(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix, \
            socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        unix.bind(str(tmp_path / "socket"))
        abstract.bind(f"\0hfscale-{os.getpid()}")
        udp.bind(("127.0.0.1", 0))
        for listener in (unix, abstract):
            listener.listen()
        socket.create_connection(tcp.getsockname()).close()  # it can be reached from outside the sandbox
        tcp.accept()[0].close()
        for family, kind, address in ((2, 1, tcp.getsockname()), (1, 1, unix.getsockname()),
                                      (1, 1, abstract.getsockname()), (2, 2, udp.getsockname())):
            outcome = run(f"import socket\ns = socket.socket({family}, {kind})\ns.connect({address!r}); s.send(b'x')")
            assert not outcome.passed and "Error" in outcome.output, address
        for listener in (tcp, unix, abstract, udp):
            listener.settimeout(0.05)
            with pytest.raises(TimeoutError):
                listener.recv(1) if listener is udp else listener.accept()


def test_a_program_has_no_privileges_and_no_secrets(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    outcome = run("""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert os.getuid() != 0 and os.getpid() < 10 and "HF_TOKEN" not in os.environ
calls = {"unshare": (1 << 28,), "mount": (b"x", b"/usr", b"tmpfs", 0, b""), "chroot": (b"/usr",), "setuid": (0,),
         "ptrace": (16, 1, 0, 0), "sethostname": (b"x", 1)}
for name, args in calls.items():
    assert getattr(libc, name)(*args) == -1, name
assert sorted(os.listdir("/dev")) == ["null", "random", "urandom", "zero"]
""")
    assert outcome.passed, outcome.output


# ---- refusals

def test_nothing_runs_unless_it_is_allowed(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(InputError, match="^allow_code_execution: pass@k runs code that a model wrote; set it to true"):
        run_program("print(1)")


FORBID_NAMESPACES = """
import ctypes, struct  # a seccomp filter: the call unshare fails with EPERM, all others go through
rows = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)]
rows = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HP", 4, ctypes.addressof(rows)), 0, 0) == 0
from hfscale.config import run
from hfscale.evaluation.code import run_program
run(lambda: run_program("print('ran')", allow_code_execution=True))
"""


def test_a_machine_that_cannot_isolate_runs_nothing():
    """As in a container with its usual filter of system calls."""
    code = FORBID_NAMESPACES.format(number={"x86_64": 272, "aarch64": 97}[platform.machine()])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("error: allow_code_execution: this machine does not let a program be isolated ([Errno 1] "
                             "unshare: Operation not permitted); nothing was run; see docs/metrics.md\n")


def test_a_python_that_cannot_start_inside_is_no_failure_of_the_program(run, monkeypatch):
    monkeypatch.setattr("os.path.realpath", lambda path: f"{path}/gone")
    with pytest.raises(InputError, match="nothing was run"):
        run("print(1)")


# ---- pass@k

@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 2), (7, 7), (8, 3)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n, c):
    passed = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = [any(draw) for draw in itertools.combinations(passed, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws), abs=1e-15)


def test_pass_at_k_of_many_samples_is_stable():
    """Against the product of Chen et al., which is stable too."""
    for n, c, k in ((200, 1, 100), (1000, 3, 10), (10_000, 5000, 100), (100_000, 1, 1)):
        product = 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))
        assert pass_at_k(n, c, k) == pytest.approx(product, rel=1e-10)
    assert pass_at_k(10**6, 1, 1) == 1e-6


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0), (0, 0, 1)])
def test_pass_at_k_of_impossible_counts_is_refused(n, c, k):
    with pytest.raises(InputError, match=rf"^pass@{k}: {c} of {n} programs pass"):
        pass_at_k(n, c, k)
