"""Whether the time of repair and masking grows in step with the text, on repeated beginnings of what
their expressions look for: what makes a careless expression try each beginning with each end.

    python tests/benchmarks/expression_time.py

Four times the text takes four times as long, sixteen times if the cost is quadratic.
"""

import math
import time
from pathlib import Path

from beginnings import UNITS
from measure import Row, geometric_mean
from running import run_alone

from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.repair import repair_text

GROWTH = 4
LEAST_SECONDS = 0.01  # below it the clock is too coarse to say anything


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """One row: the beginning whose cost grows fastest."""
    characters = 200_000 if is_small else 1_000_000
    worst = Row("repair and masking: cost of 4 times the text", None)
    for unit in UNITS:
        ratios = [growth(unit, characters) for _ in range(rounds or 5)]
        estimate = geometric_mean(ratios)
        if worst.value is None or estimate.value > worst.value.value:
            note = f"CPU seconds; the worst of {len(UNITS)} beginnings, {unit.strip()}"
            worst = Row(worst.name, estimate, len(ratios), note=note)
    return [worst]


def growth(unit: str, characters: int) -> float:
    """CPU seconds for so many characters, over those for a fourth of them."""
    short = cpu_seconds(unit * math.ceil(characters / GROWTH / len(unit)))
    long = cpu_seconds(unit * math.ceil(characters / len(unit)))
    return long / max(short, LEAST_SECONDS)


def cpu_seconds(text: str) -> float:
    start = time.process_time()
    repair_text(text)
    mask_personal_data(text)
    return time.process_time() - start


if __name__ == "__main__":
    run_alone(benchmark, __doc__)
