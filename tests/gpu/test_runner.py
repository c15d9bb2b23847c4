"""Parts that fail, die or hang take nothing with them, and no time is overrun."""

import psutil
import pytest

from tests.gpu.bench import TINY, Bench, paired
from tests.gpu.fake_parts import die, fail_after_one, hang_after_one, two_figures
from tests.gpu.report import Result
from tests.gpu.runner import CUT_OFF, Part, run_parts


def part(function, seconds: float = 60.0, **more) -> Part:
    return Part(function.__name__, function.__module__, function.__name__, seconds, **more)


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path, "cpu", TINY, log=tmp_path / "gpu.log")


def run(bench: Bench, *parts: Part, seconds: float = 60.0) -> list[Result]:
    """Results without that of the imports, each of which was handed out as soon as it was known."""
    counts = []
    results = run_parts(parts, bench, seconds, lambda done: counts.append(len(done)), "json")
    assert counts == list(range(1, len(parts) + 2))
    assert results[0].part == "imports"
    return results[1:]


def test_a_part_that_fails_or_dies_keeps_its_figures_and_the_others_run(bench):
    results = run(bench, part(fail_after_one), part(die), part(two_figures))
    assert [(result.part, result.status) for result in results] == [
        ("fail_after_one", "failed: ValueError: it went wrong | here"),
        ("die", "failed: the process ended with status 7"),
        ("two_figures", "done"),
    ]
    assert [len(result.figures) for result in results] == [1, 1, 2]
    log = bench.log.read_text()
    assert "a word for the log" in log and "Traceback" in log


@pytest.mark.slow
def test_a_part_is_ended_with_what_it_started_when_its_time_is_over(bench):
    [hung, next_one] = run(bench, part(hang_after_one, seconds=3), part(two_figures))
    assert (hung.status, len(hung.figures)) == (CUT_OFF, 1)
    assert next_one.status == "done"
    assert not left_over("sleep", "600")


def left_over(*words: str) -> list[int]:
    me = psutil.Process()
    return [child.pid for child in me.children(recursive=True) if child.cmdline()[:2] == [*words]]


def test_what_has_no_time_left_is_not_begun(bench):
    results = run(bench, part(two_figures, seconds=1e6), seconds=60)
    assert [(result.status, result.figures) for result in results] == [("not run: time", [])]


def test_a_missing_package_is_named(bench):
    [result] = run(bench, part(two_figures, needs=("json", "no_such_package")))
    assert result.status == "not run: no_such_package is not installed"


def test_a_soft_deadline_ends_the_rounds(bench):
    calls = []
    seconds = paired(bench.until(0.0), {"a": lambda: calls.append("a")}, rounds=5)
    assert calls == ["a", "a"]  # warming up, and one round
    assert len(seconds["a"]) == 1
    assert [len(times) for times in paired(bench, {"a": int, "b": int}, rounds=3).values()] == [
        3,
        3,
    ]
