"""Programs around a model's answers: whether they can tell a right one, and which pass."""

import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from datasets import Dataset

from hfscale.metrics.batches import Journal, run_batches
from hfscale.metrics.code import Outcome, run_program
from hfscale.shown import show_text


def check_programs(examples: Dataset, *, allow_code_execution: bool, most: int = 5) -> None:
    """Say on stderr, before anything is generated, if the programs cannot tell a right answer: the
    model's has no place in them, or none of the first `most` right answers passes. Raises
    InputError as `run_program`.
    """
    if len(examples["program"][0]) == 1:
        show_text(
            "program: has no {prediction}, so that what the model answers is not run",
            file=sys.stderr,
        )
        return
    answered = list(islice((row for row in examples if row["references"]), most))
    outcomes: list[Outcome] = []
    for row in answered:
        program = row["references"][0].join(row["program"])
        outcome = run_program(
            program, row["program_tests"], allow_code_execution=allow_code_execution
        )
        if outcome.passed:
            return
        outcomes.append(outcome)
    if outcomes:
        place = answered[0].get("place", "example 0")
        show_text(
            f"program: none of the first {len(outcomes)} right answers passes its test; {place}: "
            f"{_last_line(outcomes[0])[:200]} (--test_program says what is run)",
            file=sys.stderr,
        )


def _last_line(outcome: Outcome) -> str:
    """Where a traceback names its error."""
    lines = outcome.output.strip().splitlines()
    return lines[-1] if lines else "no error, but it did not come to its end"


def run_answers(
    examples: Dataset,
    answers: Sequence[str],
    *,
    allow_code_execution: bool,
    journal: Journal | None = None,
) -> list[bool]:
    """Whether the program of each example passes its tests with the answer in its place.

    Raises InputError as `run_program`.
    """
    runs = [
        (answer.join(around_answer), tests)
        for answer, around_answer, tests in zip(
            answers, examples["program"], examples["program_tests"], strict=True
        )
    ]

    def passes(run: Sequence[Any]) -> bool:
        program, tests = run
        return run_program(program, tests, allow_code_execution=allow_code_execution).passed

    return run_batches(runs, passes, desc="running programs", journal=journal, progress=True)
