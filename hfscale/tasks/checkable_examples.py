"""Made questions whose answers a program can check: sums of two numbers, words to reverse.

What they are made of lies beside the configs of finetune_reward, in `made/`.
"""

import itertools
import random
from collections.abc import Iterator
from typing import TypedDict

from hfscale.tasks.held_out import is_held_out_key
from hfscale.tasks.sample_data import load_sample_data


class Parts(TypedDict):
    """What `checkable.yaml` holds."""

    summands: tuple[int, int]  # smallest and largest
    careless_share: float  # of the sums to learn from
    letters: str
    word_lengths: tuple[int, int]  # shortest and longest


def sums(rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Each pair of two-digit numbers `a`, `b` once, with their `sum`, in three digits (079). The
    key is the pair in either order: no sum that is held out is trained on the other way round.
    """
    smallest, largest = _parts()["summands"]
    pairs = list(itertools.product(range(smallest, largest + 1), repeat=2))
    rng.shuffle(pairs)
    for a, b in pairs:
        yield _key(a, b), {"a": str(a), "b": str(b), "sum": f"{a + b:03}"}


def careless_sums(rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """`sums` as a careless teacher writes them: a share of those to learn from forgets to carry.
    Those held out are right.
    """
    share = _parts()["careless_share"]
    for key, row in sums(rng):
        forgets = rng.random() < share
        if forgets and not is_held_out_key(key):
            row["sum"] = without_carry(int(row["a"]), int(row["b"]))
        yield key, row


def without_carry(a: int, b: int) -> str:
    """The sum of two numbers of two digits, digit by digit, where nothing is carried: 58 + 67 is
    015.
    """
    tens = (a // 10 + b // 10) % 10
    units = (a + b) % 10
    return f"{10 * tens + units:03}"


def _key(a: int, b: int) -> str:
    return f"{min(a, b)} {max(a, b)}"


def reversals(rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Each `word` of the letters at random, without end, and it `reversed`. The key is the one of
    both that comes first: no word that is held out is trained on backwards.
    """
    parts = _parts()
    shortest, longest = parts["word_lengths"]
    while True:
        letters = rng.choices(parts["letters"], k=rng.randint(shortest, longest))
        word = "".join(letters)
        backwards = word[::-1]
        yield min(word, backwards), {"word": word, "reversed": backwards}


def _parts() -> Parts:
    return load_sample_data("finetune_reward", "checkable")
