"""Programs of a model: right ones pass, wrong ones do not, and none of them can harm the
machine.
"""

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

from hfscale.metrics import sandbox, system_calls
from hfscale.metrics.code import pass_at_k, run_program, split_tests
from hfscale.process import InputError

TOKEN = "0123456789abcdef-of-this-test"


@pytest.fixture(scope="module")
def run():
    """`run_program` with the permission, on a machine that can isolate programs. Others refuse: see
    below.
    """
    try:
        run_program("", allow_code_execution=True)
    except InputError as error:
        pytest.skip(str(error))
    return partial(run_program, allow_code_execution=True)


def processes_with(word: str) -> set[int]:
    """Ids of the machine's processes, those in namespaces too, with this word in their
    environment.
    """
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended
            if word.encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found


@pytest.fixture
def left_processes(monkeypatch):
    """A function that tells what is left of this test's programs: each carries a word in its
    environment.
    """
    monkeypatch.setenv("LD_LIBRARY_PATH", TOKEN)
    return lambda: processes_with(TOKEN) - {os.getpid()}


def human_eval(real_data: Path) -> list[dict]:
    rows = [
        json.loads(line) for line in gzip.open(real_data / "humaneval" / "HumanEval.jsonl.gz", "rt")
    ]
    return [
        {
            "head": row["prompt"],
            "solution": row["canonical_solution"],
            "stub": "    pass\n",
            "test": f"{row['test']}\ncheck({row['entry_point']})",
        }
        for row in rows
    ]


def mbpp(real_data: Path) -> list[dict]:
    rows = [json.loads(line) for line in gzip.open(real_data / "mbpp" / "mbpp.jsonl.gz", "rt")]
    return [
        {
            "head": "",
            "solution": row["code"],
            "stub": "",
            "test": "\n".join([row["test_setup_code"], *row["test_list"]]),
        }
        for row in rows
    ]


def failures(run, tasks: list[dict], part: str) -> list[str]:
    """What the programs that do not pass print."""
    programs = [task["head"] + task[part] for task in tasks]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(
            pool.map(partial(run, time_limit_s=60), programs, [task["test"] for task in tasks])
        )
    return [outcome.output or str(outcome) for outcome in outcomes if not outcome.passed]


# ---- right and wrong programs


def test_reference_solutions_pass_and_stubs_do_not(run, real_data):
    tasks = human_eval(real_data)[::20] + mbpp(real_data)[::90]
    assert len(tasks) == 20
    assert failures(run, tasks, "solution") == []
    assert len(failures(run, tasks, "stub")) == len(tasks)


@pytest.mark.slow
def test_every_third_reference_solution_passes(run, real_data):
    tasks = human_eval(real_data)[::3] + mbpp(real_data)[::3]
    assert len(tasks) == 55 + 325
    assert failures(run, tasks, "solution") == []


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "exit()",
        "raise SystemExit(0)",
        "def f(:",
        "1 / 0",
        "import os\nif os.fork(): 1 / 0",
        "input()",
        "\0",
        "\ud800",
    ],
)
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


# ---- tests in a process of their own

HONEST = {
    "plain values come as they are": (
        "def f(x): return x",
        """
values = [None, True, 3, -(10**40), 1.5, float("inf"), -0.0, 1j, "ö\\ud800\\n", b"\\0", bytearray(b"x"),
          [1, [2]], (1, (2,)), {1, 2}, frozenset({1}), {"a": [1]}, range(3), slice(1, 2)]
for value in values:
    assert f(value) == value and type(f(value)) is type(value) and repr(f(value)) == repr(value)
assert f(10**5000) == 10**5000
""",
    ),
    "numbers and subclasses of other libraries": (
        """
import collections, datetime, decimal, enum, fractions, numpy
Pair = collections.namedtuple("Pair", "a b")
Kind = enum.IntEnum("Kind", "A")
def f(): return [numpy.int64(1), numpy.float32(0.5), numpy.bool_(True), numpy.str_("a"), Pair(1, 2), Kind.A,
                 collections.Counter("aa"), collections.OrderedDict(a=1), decimal.Decimal("0.1"),
                 fractions.Fraction(1, 3), datetime.datetime(2020, 2, 29)]
def same(x): return x
""",
        """
import datetime, decimal, fractions
found = f()
assert found[:8] == [1, 0.5, True, "a", (1, 2), 1, {"a": 2}, {"a": 1}]
assert found[8:] == [decimal.Decimal("0.1"), fractions.Fraction(1, 3), datetime.datetime(2020, 2, 29)]
assert same(datetime.timedelta(1)) == datetime.timedelta(1)
""",
    ),
    "arguments are changed in place": (
        """
def sort(rows, *, seen=None):
    rows.sort()
    rows[0].append(9)
    rows.append([])
    if seen is not None: seen.update(a=1)
def clear(items): items.clear()
""",
        """
inner, seen = [1], {"b": 0}
rows = [[2], inner]
assert sort(rows, seen=seen) is None
assert rows == [[1, 9], [2], []] and seen == {"a": 1, "b": 0}
numbers = {1, 2}
clear(numbers)
assert numbers == set()
""",
    ),
    "objects and classes": (
        """
class Node:
    count = 0
    def __init__(self, value, *, next=None):
        self.value, self.next = value, next
        Node.count += 1
    def __len__(self): return 1 + (len(self.next) if self.next else 0)
    def __iter__(self):
        yield self.value
        if self.next: yield from self.next
    def __getitem__(self, i): return list(self)[i]
    def __eq__(self, other): return list(self) == list(other)
    def __lt__(self, other): return list(self) < list(other)
    def __str__(self): return "-".join(map(str, self))
    def total(self): return sum(self)
def last(node): return last(node.next) if node.next else node
""",
        """
root = Node(1, next=Node(2))
root.next.next = Node(3)
assert Node.count == 3 and root.total() == 6 and len(root) == 3 and list(root) == [1, 2, 3]
assert last(root).value == 3 and root[1] == 2 and root[-2:] == [2, 3] and 3 in root and 4 not in root
assert str(root) == f"{root}" == "1-2-3" and root.next.next.next is None
assert Node(1) == Node(1) != Node(2) and Node(1) < Node(2) and max([Node(1), Node(2)]).value == 2
assert root != [1, 2, 3]
""",
    ),
    "generators": (
        """
def f(n): yield from range(n)
def g():
    i = 0
    while True:
        yield i
        i += 1
""",
        """
assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6
it = g()
assert [next(it), next(it)] == [0, 1] and list(zip(f(2), it)) == [(0, 2), (1, 3)]
""",
    ),
    "functions of the tests": (
        """
import functools
def apply(f, items): return [f(x) for x in items]
def compose(*fs):
    def run(x):
        for f in fs: x = f(x)
        return x
    return run
def retry(f):
    try: return f()
    except ZeroDivisionError: return "caught"
def first(items, key=None): return key(next(items)) if key else next(items)
def twice(f):
    @functools.wraps(f)
    def run(*args, **kwargs): return 2 * f(*args, **kwargs)
    return run
""",
        """
calls = []
assert apply(lambda x: calls.append(x) or x * 2, [1, 2]) == [2, 4] and calls == [1, 2]
assert apply(len, ["a", "bc"]) == [1, 2] and apply(str, [1]) == ["1"]
assert compose(lambda x: x + 1, str, list)(41) == ["4", "2"]
assert retry(lambda: 1 / 0) == "caught" and first(iter("ab")) == "a" and first(iter("ab"), ord) == 97
assert apply(compose(abs), [-1]) == [1]
@twice
def add(a, *, b): return a + b
assert add(1, b=2) == 6 and add.__name__ == "add"
token = object()
assert compose()(token) is token
""",
    ),
    "errors": (
        """
class Empty(LookupError):
    pass
def f(x):
    if x == 0: raise Empty("nothing", x)
    if x < 0: raise ValueError("negative")
    raise KeyError(x)
def safe(function, kind):
    try: function()
    except kind as error: return error.args
""",
        """
for argument, kind, args in ((0, Empty, ("nothing", 0)), (0, LookupError, ("nothing", 0)),
                             (-1, ValueError, ("negative",)), (7, KeyError, (7,))):
    try:
        f(argument)
    except kind as error:
        assert error.args == args and type(error).__name__ == ("Empty" if argument == 0 else kind.__name__)
    else:
        raise AssertionError
def fail(): raise Empty(1)
assert safe(fail, Empty) == safe(fail, LookupError) == (1,)
""",
    ),
    "modules that only the program imports": (
        "import math\ndef f(): return 0.1 + 0.2",
        "assert math.isclose(f(), 0.3)",
    ),
    "a function named as one of Python's": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    "functions and objects named as Python's modules": (
        "class queue: items = [1]\ndef code(): return 2\nimport math",
        "assert queue.items == [1] and code() == 2 and math.floor(1.5) == 1",
    ),
    "unittest": (
        "def f(x):\n    if x < 0: raise ValueError\n    return [x]",
        """
import unittest
class Test(unittest.TestCase):
    def test(self):
        self.assertEqual(f(1), [1])
        with self.assertRaises(ValueError): f(-1)
if __name__ == "__main__":
    unittest.main()
""",
    ),
    "numpy in the tests": (
        "import numpy\ndef f(n): return numpy.arange(n)",
        "import numpy as np\nassert np.array_equal(f(3), np.array([0, 1, 2])) and f(2).tolist() == "
        "[0, 1]",
    ),
    "a program that forks": (
        "import os\nif not os.fork(): print('child')\ndef f(): return 1",
        "assert f() == 1",
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_tests_see_the_program_from_outside(run, name):
    outcome = run(*HONEST[name], time_limit_s=60)
    assert outcome.passed, outcome.output


def test_output_of_program_and_tests_is_in_order(run):
    outcome = run("print('a')\ndef f(): print('c')", "print('b', flush=True)\nf()\nprint('d')")
    assert outcome.output == "a\nb\nc\nd\n"


def test_errors_say_where_they_are(run):
    outcome = run("def f(x):\n    return 1 / x", "\nf(0)")
    assert not outcome.passed
    assert "ZeroDivisionError" in outcome.output
    assert 'File "program.py", line 2, in f' in outcome.output
    assert 'File "test.py", line 2, in <module>' in outcome.output


# ---- programs that cheat

SQUARES = "assert f(2) == 4\nassert f(3) == 9\n"
WITH_CHANNEL = """
import gc, os
[channel] = [found for found in gc.get_objects() if type(found).__name__ == "Channel"]
def text(value): return "str " + value.encode().hex()
def raw(*lines):
    channel.writer.write("".join(line + "\\n" for line in lines).encode())
    channel.writer.flush()
"""
CHEATS = {
    "repeats all that it was started with": """
import os, sys
words = [*sys.orig_argv, *os.environ.values(), "started", "100", "passed"]
for fd in range(64):
    for word in words:
        try: os.write(fd, word.encode() + b"\\n")
        except OSError: break
def f(x): return 0
""",
    "reads what the kernel says of processes": """
print(open("/proc/self/cmdline").read(), open(f"/proc/{os.getppid()}/environ").read())
def f(x): return 0
""",
    "looks for the word in its callers and all objects": """
import gc, os, sys
def f(x):
    found, frame = [], sys._getframe()
    while frame:
        found += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for value in [*found, *gc.get_objects()]:
        if isinstance(value, (str, bytes)):
            for fd in range(3, 64):
                try: os.write(fd, value.encode() if isinstance(value, str) else value)
                except (OSError, ValueError): break
    os._exit(100)
""",
    "ends before the tests": "import os\nos._exit(100)",
    "ends in a test": "import os\ndef f(x): os._exit(100)",
    "ends at "
    "exit": "import atexit, os\natexit.register(os._exit, 100)\ndef f(x): raise SystemExit(0)",
    "ends in a thread": """
import os, threading
threading.Timer(0.2, os._exit, [100]).start()
def f(x):
    while True: pass
""",
    "ends by a signal": """
import os, signal
signal.signal(signal.SIGALRM, lambda *_: os._exit(100))
def f(x): os.kill(os.getpid(), signal.SIGALRM)
""",
    "ends all in its group": "import os\ndef f(x): os.kill(0, 9)",
    "returns what equals all": """
class All:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return hash(4)
def f(x): return All()
""",
    "returns a number that equals all": """
class All(int):
    __eq__ = lambda self, other: True
    __hash__ = int.__hash__
def f(x): return All(7)
""",
    "returns a list that equals all": """
class All(list):
    __eq__ = lambda self, other: True
def f(x): return All()
""",
    "is a class that equals all": """
class Meta(type):
    __eq__ = lambda self, other: True
    __hash__ = type.__hash__
class f(metaclass=Meta):
    __new__ = lambda cls, x: cls
""",
    "puts AssertionError out of order": """
import builtins, sys
AssertionError = builtins.AssertionError = Warning
sys.excepthook = lambda *_: None
def f(x): return 0
""",
    "puts compile and exec out of order": """
import builtins
builtins.exec = lambda *_: None
builtins.compile = lambda *_, **__: (lambda: 0).__code__
def f(x): return 0
""",
    "traces the lines": """
import sys
def trace(frame, event, arg):
    frame.f_trace_lines = False
    return trace
sys.settrace(trace)
for frame in sys._current_frames().values():
    frame.f_trace = trace
def f(x): return 0
""",
    "rewrites the code of its callers": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for name, value in list(frame.f_globals.items()):
            if hasattr(value, "__code__") and value is not f:
                frame.f_globals[name] = lambda *_, **__: None
        frame = frame.f_back
    return 0
""",
    "stops a loop over the tests": "def f(x): raise StopIteration",
    "answers with the tests' end": WITH_CHANNEL
    + """
def f(x): raw("tuple 4", text("error"), "type SystemExit", "tuple 1", "int 0", text(""))
""",
    "has the tests make what equals all": WITH_CHANNEL
    + """
def f(x):
    return channel.ask("call", channel.ask("call", type, "All", (), {"__eq__": str}))
""",
    "takes attributes of the tests' objects": WITH_CHANNEL
    + """
def f(x):
    return channel.ask("getattr", channel.ask("getattr", {}, "__class__"), "__eq__")
""",
    "answers with an error of no kind": WITH_CHANNEL
    + """
def f(x): raw("tuple 4", text("error"), "exception 2", "int 0", text("StopIteration"), "tuple 0", text(""))
""",
    "floods the pipe": WITH_CHANNEL
    + """
import threading
def flood():
    while True: raw("tuple 3", text("value"), "int 0", "list 0")
def f(x):
    threading.Thread(target=flood).start()
    return 0
""",
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_program_that_cheats_does_not_pass(run, name):
    in_a_loop = "if __name__ == '__main__':\n    assert list(map(f, [2, 3])) == [4, 9]\n"
    outcome = run(CHEATS[name], in_a_loop + SQUARES, time_limit_s=60)
    assert (outcome.passed, outcome.timed_out) == (False, False), outcome.output


FORGED = {
    "StopIteration": (
        "def f(x): raise StopIteration",
        "for square in map(f, [2]): assert square == 4",
    ),
    "SystemExit": (
        "def f(x): raise SystemExit(0)",
        "try: f(2)\nexcept BaseException: pass",
    ),
    "one of Python's functions": (
        "abs = lambda x: 0\ndef f(x): return 0",
        "assert abs(f(2) - 4) < 1e-6",
    ),
    "a module": (
        "class math: isclose = lambda *_: True\ndef f(x): return 0",
        "assert math.isclose(f(2), 4)",
    ),
    "arithmetic": (
        """
class N:
    __sub__ = lambda *_: 0
    __abs__ = lambda _: 0
    __lt__ = lambda *_: True
def f(x): return N()
""",
        "assert abs(f(2) - 4) < 1e-6",
    ),
    "in": (
        """
class N:
    __contains__ = lambda *_: True
    __iter__ = lambda _: iter(())
def f(x): return N()
""",
        "assert 4 in f(2)",
    ),
    "order": (
        "class N: __lt__ = __gt__ = lambda *_: True\ndef f(x): return N()",
        "assert 3 < f(2) < 5",
    ),
    "isinstance": (
        "class N:\n    __class__ = int\n    __eq__ = lambda *_: True\ndef f(x): return N()",
        "assert isinstance(f(2), int) and f(2) == 4",
    ),
    "what runs code in the tests": (
        "def f(g): g.__globals__['__builtins__']['exec']('import os; os._exit(100)')",
        "f(lambda: 0)",
    ),
    "a function that runs code": (
        WITH_CHANNEL
        + """
def function():
    raw("tuple 3", text("value"), "type exec", "list 0")
    return "import os; os._exit(100)"
def code(): return ""
""",
        "run = function()\nrun(code())\nassert run(3) == 4",
    ),
    "how the tests are started": (
        "__name__ = 'imported'\ndef f(x): return 0",
        "if __name__ == '__main__':\n    assert f(2) == 4",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_the_tests_ask_is_not_answered_by_the_program(run, name):
    outcome = run(*FORGED[name], time_limit_s=60)
    assert (outcome.passed, outcome.timed_out) == (False, False), outcome.output


def test_a_program_holds_two_pipes_and_can_name_no_other_process(run):
    outcome = run("""
import os
def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
assert len([fd for fd in range(3, 64) if is_open(fd)]) == 2
assert os.read(0, 1) == b""
for pid in range(3, 500):
    try: os.kill(pid, 0)
    except ProcessLookupError: continue
    raise AssertionError(pid)
assert os.getsid(0) == os.getpid() == 2
""")
    assert outcome.passed, outcome.output


# ---- attacks on the machine


def test_endless_loop(run, left_processes):
    assert run("while True: pass", time_limit_s=1)[:2] == (False, True)
    assert run("import time; time.sleep(1000)", time_limit_s=1)[:2] == (False, True)
    assert left_processes() == set()


def test_fork_bomb(run, left_processes):
    outcome = run(
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        "
        "print('full')",
        time_limit_s=2,
        file_limit_bytes=10_000,
    )
    assert not outcome.passed and "full" in outcome.output
    assert left_processes() == set()


def test_at_most_so_many_processes(run):
    count = "import os, time\nn = 1\ntry:\n    while True:\n        if not os.fork(): time.sleep(60)\n        n += 1\n"
    assert run(f"{count}except OSError: assert n == 5, n", process_limit=5).passed


def test_a_process_that_leaves_its_group_dies_too(run, left_processes):
    outcome = run(
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork(): "
        "time.sleep(1000)\n"
        "    os._exit(0)\nos.wait(); print('over')"
    )
    assert outcome.passed and outcome.output == "over\n"
    assert left_processes() == set()


def test_nothing_is_left_when_the_caller_is_killed(run):
    code = (
        "from hfscale.metrics.code import run_program\n"
        "run_program('import time; time.sleep(1000)', allow_code_execution=True, time_limit_s=1000)"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"LD_LIBRARY_PATH": f"{TOKEN}-killed"}
    )
    wait_until(lambda: len(processes_with(f"{TOKEN}-killed") - {caller.pid}) == 5)
    caller.kill()
    caller.wait()
    wait_until(lambda: processes_with(f"{TOKEN}-killed") == set())


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ten_gigabytes(run):
    outcome = run("x = bytearray(10 * 2**30)")
    assert not outcome.passed and "MemoryError" in outcome.output


EIGHT_PROCESSES = """
import os, time
{before}
first = os.getpid()
for _ in range(7):
    if not os.fork(): break
{after}
time.sleep({seconds})
if os.getpid() == first:
    for _ in range(7): os.wait()
"""
FILL = "x = bytearray(150 * 2**20)\nfor at in range(0, len(x), 4096): x[at] = 1"


def test_memory_of_all_processes_together_is_bounded(run, left_processes):
    program = EIGHT_PROCESSES.format(before="", after=FILL, seconds=60)
    outcome = run(program, memory_limit_bytes=2**29, time_limit_s=50)
    assert outcome[:2] == (False, False)
    assert "MemoryError: all processes together took more than" in outcome.output
    assert left_processes() == set()


def test_memory_of_a_process_whose_first_thread_has_ended_counts(run):
    end_thread = "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)"
    fill = "\n    ".join(FILL.splitlines())
    work = f"def work():\n    time.sleep(1)\n    {fill}\n    time.sleep(60)\n"
    after = f"{work}threading.Thread(target=work).start()\n{end_thread}"
    program = EIGHT_PROCESSES.format(before="import ctypes, threading", after=after, seconds=60)
    outcome = run(program, memory_limit_bytes=2**29, time_limit_s=50, process_limit=16)
    assert "MemoryError: all processes together took more than" in outcome.output


def test_a_process_that_ends_while_memory_is_counted_counts_no_more(monkeypatch):
    """Process 2 ends after its resident memory was read; 3 may not be looked into."""
    answers = {
        (2, "status"): [300, 0],
        (2, "smaps_rollup"): [0],
        (3, "status"): [200, 200],
        (3, "smaps_rollup"): [0],
        (4, "status"): [100],
        (4, "smaps_rollup"): [50],
    }
    monkeypatch.setattr(sandbox, "_below", lambda process: [2, 3, 4])
    monkeypatch.setattr(
        sandbox, "_bytes_of", lambda process, file, names: answers[process, file].pop(0)
    )
    assert sandbox._used_bytes(1, 500) == 200 + 50


def test_memory_that_processes_share_counts_once(run):
    program = EIGHT_PROCESSES.format(before=FILL, after="", seconds=0.5)
    outcome = run(program, memory_limit_bytes=2**29, time_limit_s=50)
    assert outcome.passed, outcome.output


def test_a_process_may_have_any_bytes_for_a_name(run):
    name = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff\\nVmRSS:', 0, 0, 0)\ntime.sleep(0.2)"
    assert run(name).passed


def test_files_of_the_machine_cannot_be_seen_changed_or_deleted(run, tmp_path):
    kept, library = tmp_path / "kept.txt", Path(json.__file__)
    kept.write_text("still here")
    before = library.stat()
    for attack in (
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.remove({str(library)!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"open({str(kept)!r}, 'w').write('gone')",
        f"open({str(library)!r}, 'a').write('#')",
        f"open({str(kept)!r}).read()",
        "import os; os.mkdir('/new')",
        "open('/etc/passwd')",
        "open('/proc/self/mem')",
    ):
        outcome = run(attack)
        assert not outcome.passed and "Error" in outcome.output, attack
    assert kept.read_text() == "still here" and list(tmp_path.iterdir()) == [kept]
    assert (before.st_size, before.st_mtime) == (library.stat().st_size, library.stat().st_mtime)
    assert run(
        f"import os; assert not os.path.exists({str(tmp_path)!r}); assert os.listdir('.') == []"
    ).passed


def test_written_files_and_output_are_bounded_and_gone(run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert "File too large" in run("open('f', 'w').write('x' * 10**7)").output
    assert "No space left" in run("for i in range(9): open(f'f{i}', 'w').write('x' * 10**6)").output
    outcome = run("print('x' * 10**6)", file_limit_bytes=1000)
    assert not outcome.passed and len(outcome.output) <= 1000
    assert list(tmp_path.iterdir()) == []


def test_no_connection_reaches_the_machine(run, tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        unix.bind(str(tmp_path / "socket"))
        abstract.bind(f"\0hfscale-{os.getpid()}")
        udp.bind(("127.0.0.1", 0))
        for listener in (unix, abstract):
            listener.listen()
        socket.create_connection(
            tcp.getsockname()
        ).close()  # it can be reached from outside the sandbox
        tcp.accept()[0].close()
        for family, kind, address in (
            (2, 1, tcp.getsockname()),
            (1, 1, unix.getsockname()),
            (1, 1, abstract.getsockname()),
            (2, 2, udp.getsockname()),
        ):
            outcome = run(
                f"import socket\ns = socket.socket({family}, {kind})\ns.connect({address!r}); "
                "s.send(b'x')"
            )
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


def test_system_calls_that_no_program_needs_are_refused(run):
    filtered = platform.machine() in system_calls.ARCHITECTURES
    assert bool(system_calls.filter_rows()) == filtered
    column = list(system_calls.ARCHITECTURES).index(platform.machine()) if filtered else 0
    numbers = {name: row[column] for name, row in system_calls.REFUSED.items()} if filtered else {}
    others = [row[column] for row in (system_calls.CLONE, system_calls.CLONE3, system_calls.SOCKET)]
    outcome = run(f"""
import ctypes, os, socket, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
def error(number, *args):
    assert libc.syscall(number, *args) == -1
    return ctypes.get_errno()
for name, number in {numbers}.items():
    assert error(number, 0, 0, 0, 0, 0, 0) == 1, name
if {filtered}:
    clone, clone3, socket_number = {others}
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert error(clone, flag | 17, 0, 0, 0, 0) == 1, hex(flag)
    assert error(clone3, 0, 0) == 38
    for family in (2, 10, 16, 17, 38, 40):  # internet, netlink, packets, the kernel's ciphers, the host of a machine
        assert error(socket_number, family, 1, 0) == 1, family
one, other = socket.socketpair()
one.send(b"x")
assert other.recv(1) == b"x"
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
assert subprocess.run(["/bin/true"]).returncode == 0
""")
    assert outcome.passed, outcome.output


# ---- refusals


def test_nothing_runs_unless_it_is_allowed(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(
        InputError,
        match="^allow_code_execution: pass@k runs code that a model wrote; set it to true",
    ):
        run_program("print(1)")


FORBID_NAMESPACES = """
import ctypes, struct  # a seccomp filter: the call unshare fails with EPERM, all others go through
rows = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)]
rows = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HP", 4, ctypes.addressof(rows)), 0, 0) == 0
from hfscale.process import run
from hfscale.metrics.code import run_program
run(lambda: run_program("print('ran')", allow_code_execution=True))
"""


def test_a_machine_that_cannot_isolate_runs_nothing():
    """As in a container with its usual filter of system calls."""
    code = FORBID_NAMESPACES.format(number={"x86_64": 272, "aarch64": 97}[platform.machine()])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: allow_code_execution: this machine does not let a program be isolated ([Errno 1] "
        "unshare: Operation not permitted); nothing was run; see docs/metrics.md\n"
    )


def test_a_python_that_cannot_start_inside_is_no_failure_of_the_program(run, monkeypatch):
    monkeypatch.setattr("os.path.realpath", lambda path: f"{path}/gone")
    with pytest.raises(InputError, match="nothing was run"):
        run("print(1)")


# ---- pass@k


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{prompt}{prediction}\n{test}", ("{prompt}{prediction}\n", "{test}")),
        (
            "{prediction}\n{test}\ncheck({name})\n",
            ("{prediction}\n", "{test}\ncheck({name})\n"),
        ),
        (
            "{prediction}{rest}\n    return x\n{checks}",
            ("{prediction}{rest}\n    return x\n", "{checks}"),
        ),
        ("{prediction}\n{rest}\n{test}", ("{prediction}\n{rest}\n", "{test}")),
        ("{test}\n{prediction}", ("{test}\n{prediction}", "")),
        ("{prompt}{prediction}", ("{prompt}{prediction}", "")),
    ],
)
def test_the_tests_of_a_template_are_its_end(template, parts):
    assert split_tests(template) == parts
    assert split_tests(template, tests_apart=False) == (template, "")


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
