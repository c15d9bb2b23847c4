"""Whether the time of repair and masking grows in step with the text, on repeated beginnings of what
their expressions look for: what makes a careless expression try each beginning with each end.

    python tests/benchmarks/expression_time.py

Exit status 1: four times the text took more than eight times as long (sixteen if quadratic).
"""

import time

from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.repair import repair_text

UNITS = (
    *("a", "1.", "1-", "+1", "eyJ-", "a@", "a@b.", "-----BEGIN PRIVATE KEY-----", "key=", "sk-"),
    *("password: ", "::", "2001:", "0123 ", "(415) ", "<p ", "<b>", "&amp"),
)
CHARACTERS = 1_000_000
LEAST_SECONDS = 0.01  # below it the clock is too coarse to say anything


def cpu_seconds(text: str) -> float:
    """The fastest of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        repair_text(text)
        mask_personal_data(text)
        times.append(time.process_time() - start)
    return min(times)


def main() -> int:
    slow = []
    print("| repeated | CPU s, 250,000 characters | 1,000,000 | ratio |\n|---|---|---|---|")
    for unit in UNITS:
        short = cpu_seconds(unit * (CHARACTERS // 4 // len(unit)))
        long = cpu_seconds(unit * (CHARACTERS // len(unit)))
        ratio = long / max(short, LEAST_SECONDS)
        print(f"| `{unit}` | {short:.3f} | {long:.3f} | {ratio:.1f} |")
        if ratio > 8:
            slow.append(unit)
    return int(bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
