"""Rewards of answers: what a program can check, and functions of the user's own, in the form in
which TRL calls them.

A reward takes `prompts` and `completions` (texts) and the columns of the examples by name, a list
each, and returns a number for each completion.
"""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset

from hfscale.metrics.code import run_program
from hfscale.metrics.texts import item_statistics
from hfscale.metrics.user_metrics import as_numbers
from hfscale.options import did_you_mean
from hfscale.process import InputError, is_main_rank, on_all_ranks
from hfscale.shown import show_text
from hfscale.user_code import describe_exception, load_function, names_function

Reward: TypeAlias = Callable[..., list[float]]

BUILT_IN = ("exact_match", "pattern", "tests")
TRIED_EXAMPLES = 8  # right answers that are judged before anything is generated
SHOWN_CHARACTERS = 60  # of an answer in a message
NOT_FOR_REWARDS = ("place", "messages", "columns")  # of the examples' columns


class RewardSettings(NamedTuple):
    """What the rewards that come along are told."""

    answer_pattern: re.Pattern[str] | None = None  # what of an answer counts
    metric_options: dict[str, Any] = {}  # noqa: RUF012  # of exact_match; never changed
    allow_code_execution: bool = False


def load_rewards(names: Sequence[str], settings: RewardSettings) -> list[Reward]:
    """The rewards by their names: `exact_match`, `pattern`, `tests` or my_file.py:function. Each
    raises InputError, at a call, for what is no number for each answer.

    Raises InputError: an unknown name, a reward without what it needs, a file without the function.
    """
    rewards = [_load(name, settings) for name in names]
    shown = [reward.__name__ for reward in rewards]
    for name in shown:
        if shown.count(name) > 1:
            raise InputError(f"reward: two are called {name}; rename one, or leave one out")
    return rewards


def _load(name: str, settings: RewardSettings) -> Reward:
    if names_function(name):
        function = load_function("reward", name)
        return checked(name, function, shown_name=name.rpartition(":")[2])
    if name not in BUILT_IN:
        raise InputError(
            f"reward: got {name!r}, expected one of {', '.join(BUILT_IN)}, or "
            f"FILE.py:FUNCTION{did_you_mean(name, BUILT_IN)}"
        )
    if name == "pattern" and settings.answer_pattern is None:
        raise InputError("reward: pattern needs --answer_pattern, a regular expression to look for")
    if name == "tests" and not settings.allow_code_execution:
        raise InputError(
            "allow_code_execution: the reward tests runs code that a model wrote; set it to true "
            "to run it here"
        )
    of_name: dict[str, Callable[..., list[float]]] = {
        "exact_match": exact_match,
        "pattern": pattern,
        "tests": tests,
    }
    return checked(name, functools.partial(of_name[name], settings=settings), shown_name=name)


def checked(name: str, function: Callable[..., Any], *, shown_name: str) -> Reward:
    """The function as a reward called `shown_name` whose numbers are looked at: what is wrong with
    those of one rank, all ranks say.
    """

    def judge(prompts: list[str], completions: list[str], columns: dict[str, Any]) -> list[float]:
        try:
            values = function(prompts=prompts, completions=completions, **columns)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise InputError(f"reward {name}: {describe_exception(error)}") from None
        return _numbers(name, values, completions)

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return on_all_ranks(lambda: judge(prompts, completions, columns))

    reward.__name__ = shown_name
    return reward


def _numbers(name: str, values: Any, completions: Sequence[str]) -> list[float]:
    expected = f"expected a list of {len(completions)} numbers, one for each answer"
    numbers = as_numbers(values)
    if numbers is None or numbers.ndim != 1:
        raise InputError(f"reward {name}: returned {_short(repr(values))}; {expected}")
    if len(numbers) != len(completions):
        raise InputError(f"reward {name}: returned {len(numbers)} numbers; {expected}")
    if not np.isfinite(numbers).all():
        first = np.flatnonzero(~np.isfinite(numbers))[0]
        raise InputError(
            f"reward {name}: returned {numbers[first]} for the answer "
            f"{_short(repr(completions[first]))}; expected finite numbers"
        )
    return numbers.tolist()


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


# ---- the rewards that come along


def exact_match(
    completions: list[str], references: list[list[str]], settings: RewardSettings, **_: Any
) -> list[float]:
    """1 for an answer, or what `answer_pattern` takes from it, that is one of the references as the
    metric exact_match compares them; else 0.
    """
    answers = [_counted(text, settings.answer_pattern) for text in completions]
    found = [text is not None for text in answers]
    options = settings.metric_options.get("exact_match", {})
    texts = [text or "" for text in answers]
    is_right = item_statistics("exact_match", texts, references, **options)[:, 0]
    return (is_right * found).tolist()


def pattern(completions: list[str], settings: RewardSettings, **_: Any) -> list[float]:
    """1 for an answer in which `answer_pattern` is found; else 0."""
    counted = [_counted(text, settings.answer_pattern) for text in completions]
    return [float(text is not None) for text in counted]


def _counted(text: str, answer_pattern: re.Pattern[str] | None) -> str | None:
    """What of an answer counts: the pattern's first group, or all that it matches; None: it is not
    found.
    """
    if answer_pattern is None:
        return text
    match = answer_pattern.search(text)
    if match is None:
        return None
    return match[1] if answer_pattern.groups else match[0]


def tests(
    completions: list[str],
    program: list[list[str]],
    program_tests: list[str],
    settings: RewardSettings,
    **_: Any,
) -> list[float]:
    """1 for an answer whose program passes its tests in the sandbox; else 0. Equal programs run
    once.
    """
    runs = [
        (answer.join(around), code)
        for answer, around, code in zip(completions, program, program_tests, strict=True)
    ]
    passed = {
        (text, code): run_program(
            text, code, allow_code_execution=settings.allow_code_execution
        ).passed
        for text, code in dict.fromkeys(runs)
    }
    return [float(passed[run]) for run in runs]


# ---- how they are asked


def compile_pattern(text: str | None) -> re.Pattern[str] | None:
    """The pattern of `--answer_pattern`; raises InputError: not a regular expression."""
    try:
        return None if text is None else re.compile(text, re.DOTALL)
    except re.error as error:
        raise InputError(f"answer_pattern: not a regular expression ({error}): {text}") from None


def reward_of(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    examples: Dataset,
    answers: Sequence[str],
) -> np.ndarray:
    """(examples,) float64: the sum of the weighted rewards of each example's answer. Raises as the
    rewards.
    """
    left_out = ("prompt", *NOT_FOR_REWARDS)
    columns = {name: examples[name][:] for name in examples.column_names if name not in left_out}
    prompts = examples["prompt"][:]
    values = [reward(prompts=prompts, completions=list(answers), **columns) for reward in rewards]
    return np.array(weights or [1.0] * len(rewards)) @ np.array(values, dtype=np.float64)


def try_rewards(rewards: Sequence[Reward], examples: Dataset) -> None:
    """Call each reward with right answers and with empty ones, so that one that fails does so
    before anything is generated. Says on stderr if it gives right answers no more than empty ones.
    Raises as the rewards.
    """
    tried = examples.take(min(TRIED_EXAMPLES, len(examples)))
    right = tried["target"][:]
    for reward in rewards:
        of_right = reward_of([reward], None, tried, right)
        of_empty = reward_of([reward], None, tried, [""] * len(right))
        if (of_right <= of_empty).all() and is_main_rank():
            show_text(
                f"reward {reward.__name__}: gives none of the first {len(right)} right answers "
                f"more than an empty one (such as {_short(repr(right[0]))}: {of_right[0]:g})",
                file=sys.stderr,
            )
