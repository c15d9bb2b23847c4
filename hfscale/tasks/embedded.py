"""Task sets that need no download: made from sample data and CLDR, or read from Python's library.

`made_examples.py` and `standard_library.py` write the rows; here they are drawn and held apart.
"""

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import babel
from datasets import DatasetDict

from hfscale.data.caches import generated
from hfscale.process import InputError
from hfscale.tasks import checkable_examples, held_out, made_examples, standard_library

# A generator of (key, row), without end or as many as there are, from a random state.
Maker: TypeAlias = Callable[[random.Random], Iterator[tuple[str, dict[str, Any]]]]

# Enough for the models that learn these tasks here within minutes.
DEFAULT_TRAIN_EXAMPLES = 20_000


def embedded_examples(
    name: str, *, train_examples: int | None, validation_examples: int, seed: int
) -> DatasetDict:
    """The set `embedded:<name>` as `train` and `validation`; each example's key decides its split,
    so no key (a value, a fact sheet, a signature) that is held out occurs in training.

    Translation, question answering, dialogue and words to reverse are made, without end, from
    `seed`; sums are all that there are of two-digit numbers; summarization and code are read from
    the standard library of the Python at hand and have as many as it holds.
    Summaries to learn from come again with words swapped (see `standard_library.swap_words`); those
    held out are all as they were read.

    Raises:
        InputError: an unknown name (the known ones are listed).
    """
    makers: dict[str, Maker] = {
        "translation-en-de": made_examples.translation_maker("de"),
        "dialogue": made_examples.dialogue_maker(),
        "translation-en-fr": made_examples.translation_maker("fr"),
        "question-answering": made_examples.question_maker(),
        "summarization": standard_library.summaries,
        "code": standard_library.one_statement_functions,
        "sums": checkable_examples.sums,
        "careless-sums": checkable_examples.careless_sums,
        "reversals": checkable_examples.reversals,
    }
    if name not in makers:
        known = ", ".join(f"embedded:{known}" for known in makers)
        raise InputError(f"task_source embedded:{name}: unknown; there are {known}")
    limits = {
        "train": train_examples or DEFAULT_TRAIN_EXAMPLES,
        "validation": validation_examples,
    }
    arguments = {
        "maker": makers[name],
        "seed": seed,
        "limits": limits,
        "cache_key": (sys.version, babel.__version__, _code_hash()),
    }
    rows = generated(_draw_rows, arguments)
    splits = DatasetDict()
    for split in limits:
        in_split = rows.filter(
            lambda split_of_row, split=split: split_of_row == split,
            input_columns="split",
            keep_in_memory=True,
            desc=f"Held apart: {split}",
        )
        splits[split] = in_split.remove_columns("split")
    return splits


def _draw_rows(
    maker: Maker, seed: int, limits: dict[str, int], cache_key: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Different rows up to the limits, each with its split.

    `cache_key` is not read: `datasets` keys its cache by the arguments, and the rows also depend
    on Python, Babel's CLDR and the code that makes them.
    """
    missing = dict(limits)
    seen = set()
    for key, row in maker(random.Random(seed)):
        split = "validation" if held_out.is_held_out_key(key) else "train"
        text = repr(row)
        if missing[split] and text not in seen:
            seen.add(text)
            missing[split] -= 1
            yield row | {"split": split}
        if not any(missing.values()):
            return


def _code_hash() -> str:
    """SHA-256 over the modules whose change changes rows."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for module in (checkable_examples, made_examples, standard_library, held_out):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
