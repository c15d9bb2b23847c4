"""What the chapters of the course share: where their results lie, how long they train, and the
number that each ends in.

Nothing heavy is imported.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from hfscale.folders import write_json
from hfscale.process import InputError

# Environment variables: where results lie, and the most steps that a training takes. With the
# second the course is a look at its code: what depends on training is shown and not asserted.
FOLDER = "HFSCALE_COURSE"
MOST_STEPS = "HFSCALE_COURSE_STEPS"
CHAPTERS = (
    "text",
    "tokenizer",
    "model",
    "pretraining",
    "perplexity",
    "finetuning",
    "task",
    "chat",
    "scaling",
    "inside",
    "processes",
    "serving",
)
NUMBERS = "numbers.json"


def place(name: str = "") -> str:
    """The path of a result: below `runs/course` of the current folder, or where the environment
    variable HFSCALE_COURSE says.
    """
    return str(Path(os.environ.get(FOLDER) or "runs/course", name))


def is_short() -> bool:
    """Whether HFSCALE_COURSE_STEPS cuts the trainings short."""
    return bool(os.environ.get(MOST_STEPS))


def steps(count: int) -> int:
    """`count`, or what HFSCALE_COURSE_STEPS allows. Raises InputError: that is no number."""
    if not is_short():
        return count
    most = os.environ[MOST_STEPS]
    if not most.isdecimal() or int(most) < 1:
        raise InputError(f"{MOST_STEPS}: got '{most}', expected a whole number from 1")
    return min(count, int(most))


def file_name(chapter: int) -> str:
    """Of a chapter's notebook, without its ending, such as 04_pretraining."""
    return f"{chapter:02}_{CHAPTERS[chapter - 1]}"


def needs(**results: int) -> None:
    """Raise InputError where an earlier chapter's result is missing: each result's name with the
    number of the chapter that makes it, as in `needs(data=1, model=4)`.
    """
    for name, chapter in results.items():
        if not Path(place(name)).exists():
            raise InputError(
                f"{place(name)}: not there; run chapter {chapter} first ({file_name(chapter)}), in "
                f"this folder, or name the folder of its results in {FOLDER}"
            )


def ends_with(
    chapter: int,
    name: str,
    value: float,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    is_learned: bool = False,
) -> None:
    """Print the number that a chapter ends in and what is allowed, keep both in the course's
    `numbers.json`, and assert them. A number that is learned is only asserted to be finite where
    the trainings are cut short.
    """
    allowed = _allowed(at_least, at_most)
    print(f"chapter {chapter}: {name} {value:.6g} ({allowed})")
    assert math.isfinite(value), f"{name}: {value} is no number"
    numbers = read_numbers()
    numbers[str(chapter)] = {"name": name, "value": value, "allowed": allowed}
    Path(place()).mkdir(parents=True, exist_ok=True)
    write_json(Path(place(NUMBERS)), numbers)
    if is_learned and is_short():
        return
    assert at_least <= value <= at_most, f"{name}: {value:.6g}, expected {allowed}"


def read_numbers() -> dict[str, Any]:
    """What chapters have ended in so far, by their number as text."""
    path = Path(place(NUMBERS))
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _allowed(at_least: float, at_most: float) -> str:
    if at_least == -math.inf:
        return f"at most {at_most:g}"
    if at_most == math.inf:
        return f"at least {at_least:g}"
    if at_least == at_most:
        return f"exactly {at_most:g}"
    return f"{at_least:g} to {at_most:g}"
