"""What runs inside the sandbox: a program in one process, its tests in another, and the calls
between.

`sandbox.py` starts this file twice. No line of the program runs in the tests' process. Plain values
go there as copies; all else stays with the program, and the tests hold a `Remote`, which asks for
calls, attributes and items over a pipe. So results are compared where the program cannot reach. It
may answer what it likes; an answer is all it can give.

On the pipe a value is a line, its kind and its text. That of a container says how many values
follow as its items. Imports are few: they would take longer than most programs, `typing` too.
"""

import builtins
import operator
import os
import sys
import types
from _collections_abc import Callable  # loaded with Python itself; `collections` is not

# With these the tests' process ends.
PASSED = 100
FAILED = 101
NOT_STARTED = 125
THIS_FILE = "<string>"  # as tracebacks name the three
PROGRAM_FILE = "program.py"
TEST_FILE = "test.py"
# What the program can do with an object of the tests; see `_tests_operation`.
SERVED_BY_TESTS = ("call", "eq", "getitem", "hash", "iter", "len", "next", "repr", "str", "truth")
SERVED_ATTRIBUTES = (("__name__",), ("__qualname__",))
# Plain values that are one text: how it is written and read.
ATOMS: dict[type, tuple[Callable, Callable]] = {
    type(None): (str, lambda text: None),
    bool: (str, lambda text: text == "True"),
    int: (lambda value: int.__format__(value, "x"), lambda text: int(text, 16)),
    float: (float.__repr__, float),
    str: (
        lambda value: str.encode(value, "utf-8", "surrogatepass").hex(),
        lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    ),
    bytes: (bytes.hex, bytes.fromhex),
    bytearray: (bytearray.hex, bytearray.fromhex),
}
# Plain values that consist of others: how they are taken apart and made.
CONTAINERS: dict[type, tuple[Callable, Callable]] = {
    list: (list, list),
    tuple: (tuple, tuple),
    set: (set, set),
    frozenset: (frozenset, frozenset),
    dict: (dict.items, dict),
    complex: (lambda value: (value.real, value.imag), lambda items: complex(*items)),
    range: (lambda value: (value.start, value.stop, value.step), lambda items: range(*items)),
    slice: (lambda value: (value.start, value.stop, value.step), lambda items: slice(*items)),
}
PLAIN = {kind.__name__: kind for kind in (*ATOMS, *CONTAINERS)}
# Values of the standard library that are made anew from what they reduce to.
VALUE_TYPES = (
    *("datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta"),
    *("decimal.Decimal", "fractions.Fraction"),
)


class Channel:
    """One of the two ends. `operation` gives the function for what the other end asks."""

    def __init__(self, reader: int, writer: int, operation: Callable):
        self.reader = os.fdopen(reader, "rb")
        self.writer = os.fdopen(writer, "wb")
        self.operation = operation
        self.process = os.getpid()
        self.status = NOT_STARTED  # with which this process ends when the other one is gone
        self.objects: list[object] = []  # what the other end knows by number
        self.numbers: dict[int, int] = {}  # ... by the id of each
        self.exceptions: dict[int, type[Exception]] = {}  # classes of the other end, by number

    def ask(self, name: str, *args, **kwargs):
        """What the other end's operation returns or raises. Arguments that it changed in place,
        such as lists, are changed here too.
        """
        self._write(("ask", name, args, kwargs))
        try:
            value, changed = self._wait_for_answer()
        except StopIteration as error:
            if name == "next":
                raise
            # As in a generator: it would end a loop over the tests' own items.
            raise RuntimeError("StopIteration") from error
        _restore([*args, *kwargs.values()], changed)
        return value

    def _wait_for_answer(self) -> list:
        while True:
            message, *content = self._read()
            if message == "value":
                return content
            if message == "error":
                _raise_again(*content)
            self.answer(*content)  # the other end asks something first

    def answer(self, name: str, args: tuple, kwargs: dict) -> None:
        """Carry out what the other end asks, and write what became of it."""
        arguments = [*args, *kwargs.values()]
        try:
            before = self._lines(arguments)
            value = self.operation(name)(*args, **kwargs)
            changed = arguments if self._lines(arguments) != before else []
            reply = self._lines(("value", value, changed))
        except Exception as error:
            reply = self._lines(("error", type(error), error.args, _described(error)))
        sys.stdout.flush()  # what a call printed comes before what the tests print after it
        self._write_lines(reply)

    def answer_all(self) -> None:
        """Answer until the other end is gone, which ends this process."""
        while True:
            _, *request = self._read()
            self.answer(*request)

    def _end(self) -> None:
        """Not by an exception: tests that expect an error must not take the program's end for
        one.
        """
        try:
            if self.status == FAILED:
                sys.stderr.write("the program ended before its tests\n")
        finally:  # where there is room for no more output too
            os._exit(self.status)

    # ---- values to lines

    def _write(self, value: object) -> None:
        self._write_lines(self._lines(value))

    def _write_lines(self, lines: list[str]) -> None:
        if os.getpid() != self.process:  # a child that the program forked
            os._exit(0)
        try:
            self.writer.write("\n".join([*lines, ""]).encode("ascii"))
            self.writer.flush()
        except BrokenPipeError:
            self._end()

    def _lines(self, value: object) -> list[str]:
        lines: list[str] = []
        self._add_value(lines, value)
        return lines

    def _add_value(self, lines: list[str], value) -> None:
        kind = _plain_kind(value)
        if kind is not None and kind in ATOMS:
            lines.append(f"{kind.__name__} {ATOMS[kind][0](value)}")
        elif kind is not None:
            self._add_items(lines, kind.__name__, CONTAINERS[kind][0](value))
        elif _is_numpy_number(value):
            self._add_value(lines, value.item())
        elif isinstance(value, Remote):
            lines.append(f"yours {value._remote_number}")
        elif _qualified_name(type(value)) in VALUE_TYPES:
            _, arguments = value.__reduce_ex__(2)[:2]
            self._add_items(lines, "value", [_qualified_name(type(value)), *arguments])
        elif _is_builtin_class(value):
            lines.append(f"type {value.__name__}")
        elif _is_exception(value):
            self._add_exception(lines, value)
        else:
            lines.append(f"object {self._number(value)}")

    def _add_exception(self, lines: list[str], kind: type[Exception]) -> None:
        for number, known in self.exceptions.items():
            if known is kind:  # a class of the other end
                lines.append(f"yours {number}")
                return
        names = [base.__name__ for base in kind.__mro__]
        self._add_items(lines, "exception", [self._number(kind), *names])

    def _add_items(self, lines: list[str], kind: str, items) -> None:
        lines.append(f"{kind} {len(items)}")
        for item in items:
            self._add_value(lines, item)

    def _number(self, value: object) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]

    # ---- lines to values

    def _read(self):
        line = self.reader.readline()
        if not line.endswith(b"\n"):
            self._end()
        name, _, text = line.decode("ascii").rstrip("\n").partition(" ")
        kind = PLAIN.get(name)
        if kind in ATOMS:
            return ATOMS[kind][1](text)
        if name in ("yours", "object", "type"):
            return self._named_object(name, text)
        items = [self._read() for _ in range(int(text))]
        if name == "value":
            return _standard_value(*items)
        if name == "exception":
            return self._exception(*items)
        return CONTAINERS[PLAIN[name]][1](items)

    def _named_object(self, name: str, text: str):
        """An object that one of the ends knows by number, or a class that both have."""
        if name == "yours":
            return self.objects[int(text)]
        if name == "object":
            return Remote(self, int(text))
        return _builtin_class(text)

    def _exception(self, number: int, name: str, *bases: str) -> type[Exception]:
        """A class made here, so that tests can name it in `except`."""
        if number not in self.exceptions:
            builtin_bases = [getattr(builtins, base, None) for base in bases]
            base: type = next(filter(_is_exception, builtin_bases), None) or Exception
            self.exceptions[number] = type(name, (base,), {})
        return self.exceptions[number]


def _asks(name: str) -> Callable:
    """A method that the object's own end carries out."""
    return lambda self, *args, **kwargs: self._remote_channel.ask(name, self, *args, **kwargs)


def _asks_of_two(name: str) -> Callable:
    """... where both objects are of that end. The program does not judge values of the tests."""
    ask = _asks(name)

    def compare(self: "Remote", other: object):
        return ask(self, other) if isinstance(other, Remote) else NotImplemented

    return compare


class Remote:
    """An object of the other end. It has no arithmetic, and `in` goes through its items, so that
    the program is never asked whether a result is right.
    """

    def __init__(self, channel: Channel, number: int):
        vars(self).update(_remote_channel=channel, _remote_number=number)

    def __getattr__(self, name: str):
        if name.startswith("__array"):  # numpy then takes it for a sequence
            raise AttributeError(name)
        return self._remote_channel.ask("getattr", self, name)

    __call__ = _asks("call")
    __setattr__ = _asks("setattr")
    __getitem__ = _asks("getitem")
    __setitem__ = _asks("setitem")
    __delitem__ = _asks("delitem")
    __iter__ = _asks("iter")
    __next__ = _asks("next")
    __len__ = _asks("len")
    __bool__ = _asks("truth")
    __str__ = _asks("str")
    __repr__ = _asks("repr")
    __hash__ = _asks("hash")
    __eq__ = _asks_of_two("eq")
    __lt__ = _asks_of_two("lt")
    __le__ = _asks_of_two("le")


def _plain_kind(value: object) -> type | None:
    """That of a subclass is what it is a subclass of: its methods stay with the program."""
    exact = type(value)
    if exact in ATOMS or exact in CONTAINERS:
        return exact
    return next((kind for kind in PLAIN.values() if isinstance(value, kind)), None)


def _is_numpy_number(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def _qualified_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_builtin_class(value: object) -> bool:
    return isinstance(value, type) and vars(builtins).get(value.__name__) is value


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _builtin_class(name: str) -> type:
    """Classes only: with a function such as `eval` the tests would run what the program wrote."""
    builtin = getattr(builtins, name)
    if not isinstance(builtin, type):
        raise TypeError(f"{name} is not a class")
    return builtin


def _standard_value(name: str, *args):
    if name not in VALUE_TYPES:
        raise TypeError(f"{name} is not one of {VALUE_TYPES}")
    module, _, kind = name.partition(".")
    return getattr(__import__(module), kind)(*args)


def _restore(old, new):
    """`new`, put into the containers of `old` where they are of one kind: all who hold these see
    it.
    """
    if _plain_kind(old) is not type(new) or not isinstance(new, (list, dict, set, bytearray)):
        return new
    if isinstance(new, list):
        old[:] = [*map(_restore, old, new), *new[len(old) :]]
    elif isinstance(new, dict):
        values = {key: _restore(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(values)
    elif isinstance(new, set):
        old.clear()
        old.update(new)
    else:
        old[:] = new
    return old


def _raise_again(kind: type[Exception], args: tuple, description: str) -> None:
    if not _is_exception(kind):  # SystemExit is none
        raise TypeError(f"{kind} cannot be raised")
    error = kind(*args)
    error.add_note(description)
    raise error


def _described(error: BaseException) -> str:
    """Its traceback without the lines of this file."""
    import traceback  # slow, and most programs raise nothing

    report = traceback.TracebackException.from_exception(error)
    report.stack[:] = [frame for frame in report.stack if frame.filename != THIS_FILE]
    return "".join(report.format())


def written(program: str, test: str) -> bytes:
    """What `run_tests` reads from stdin."""
    return "\n".join(ATOMS[str][0](text) for text in (program, test)).encode("ascii")


def _known_operation(name: str) -> Callable:
    return getattr(operator, name, None) or getattr(builtins, name)


# ---- the program's process


def serve_program(reader: int, writer: int) -> None:
    """Run the program when the tests' process asks for it, and answer what that asks then."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    # As the module `site` has them, which would also run what this machine has Python start with.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)

    def run(source: str) -> set[str]:
        """The names that it has then."""
        exec(compile(source, PROGRAM_FILE, "exec"), main.__dict__)
        return set(vars(main))

    requests: dict[str, Callable] = {
        "start": lambda: None,
        "run": run,
        "name": lambda name: getattr(main, name),
    }

    def operation(name: str) -> Callable:
        return requests.get(name) or _known_operation(name)

    Channel(reader, writer, operation).answer_all()


# ---- the tests' process


def run_tests(reader: int, writer: int) -> int:
    """Run the tests of stdin on the program of stdin; the status with which this process is to
    end.
    """
    program, test = (ATOMS[str][1](text) for text in sys.stdin.read().split("\n"))

    def operation(name: str) -> Callable:
        return _tests_operation(channel, name)

    channel = Channel(reader, writer, operation)
    channel.ask("start")
    channel.status = FAILED
    try:
        names = channel.ask("run", program)
        code = compile(test, TEST_FILE, "exec")
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        vars(main).update(_program_values(channel, test, _names_in(code) & names))
        exec(code, main.__dict__)
        sys.stdout.flush()
    except SystemExit as end:  # as unittest.main ends
        return PASSED if end.code in (0, None) else FAILED
    except BaseException as error:
        sys.stderr.write(_described(error))
        return FAILED
    return PASSED


def _tests_operation(channel: Channel, name: str) -> Callable:
    """What the program may do with what the tests hand over. By attributes it could come to all
    that they have, and by calling classes such as `type` make values that equal any other.
    """

    def operation(target: object, *args, **kwargs):
        served = name in SERVED_BY_TESTS or (name == "getattr" and args in SERVED_ATTRIBUTES)
        if not served or id(target) not in channel.numbers:
            raise AttributeError("of what the tests hand over, there are only calls and items")
        return _known_operation(name)(target, *args, **kwargs)

    return operation


def _names_in(code: types.CodeType) -> set[str]:
    constants = code.co_consts
    inner = [_names_in(constant) for constant in constants if isinstance(constant, types.CodeType)]
    return {name for name in code.co_names if not name.startswith("__")}.union(*inner)


def _program_values(channel: Channel, test: str, names: set[str]) -> dict[str, object]:
    """What those names of the tests mean that the program has too.

    Python's modules and functions stay Python's: the program could have a `math.isclose` or an
    `abs` that finds everything equal. Only where tests use nothing else of the program is a
    function like `sum` the one that they test.
    """
    modules: dict[str, types.ModuleType] = {}
    possible_modules = names & sys.stdlib_module_names
    if possible_modules:
        modules = _standard_modules(test, possible_modules)
    no_modules = names - modules.keys()
    no_builtins = no_modules.difference(dir(builtins))
    values = {name: channel.ask("name", name) for name in no_builtins or no_modules}
    return values | modules


def _standard_modules(test: str, names: set[str]) -> dict[str, types.ModuleType]:
    """Those used as modules of Python: with a dot, and only with what they have."""
    import ast  # slow, and rarely needed

    used: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.setdefault(node.value.id, set()).add(node.attr)
    modules = {name: __import__(name) for name in names & used.keys()}
    return {name: module for name, module in modules.items() if used[name].issubset(dir(module))}


def main() -> None:
    """One of the two roles, as the arguments say."""
    role, reader, writer, packages = sys.argv[1:]
    del sys.argv[1:]
    sys.path += packages.split(":")
    if role == "program":
        serve_program(int(reader), int(writer))
    status = FAILED
    try:
        status = run_tests(int(reader), int(writer))
    finally:  # also where the error cannot be written, as the output is full
        os._exit(status)


if __name__ == "__main__":
    main()
