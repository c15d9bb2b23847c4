"""Batches shared out over the ranks; finished ones are kept on disk, so a killed run goes on where
it stopped.
"""

import json
import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import gather_object, tqdm

from hfscale.process import InputError
from hfscale.shown import describe_differences
from hfscale.stopping import between_batches


class Journal(NamedTuple):
    """Where finished batches are kept, and the settings (JSON values) that must be the same for
    them to count.
    """

    folder: Path
    settings: dict[str, Any]


def run_batches(
    batches: Sequence,
    work: Callable[[Any], Any],
    *,
    desc: str,
    journal: Journal | None = None,
    progress: bool = False,
    in_step: bool = False,
) -> list:
    """[work(batch) for batch in batches], each rank doing its share; the whole list on every rank.

    Args:
        journal: what it holds under the name `desc` is not done again, whatever the number of
            ranks. `work` then returns what JSON can hold.
        in_step: every rank calls `work` equally often (the last ones for nothing), as sharded
            models need.

    Raises:
        InputError: the journal is of a run with other settings; it names them.
    """
    state = PartialState()
    done = _read(journal, desc) if journal else {}
    state.wait_for_everyone()  # all have read before one writes
    left = [i for i in range(len(batches)) if i not in done]
    share = left[state.process_index :: state.num_processes]
    results = []
    for i in tqdm(share, desc=desc, unit="batch", disable=not progress):
        result = (i, work(batches[i]))
        results.append(result)
        if journal:
            _append(journal, f"{desc}.rank{state.process_index}.jsonl", result)
        between_batches()
    largest_share = math.ceil(len(left) / state.num_processes)
    if len(share) < largest_share:
        if in_step:
            work(batches[left[-1]])
        between_batches()
    done |= dict(gather_object(results))
    return [done[i] for i in range(len(batches))]


def run_sorted(
    items: Sequence,
    key: Callable[[Any], Any],
    batch_size: int,
    work: Callable[[list[int]], list],
    **kwargs,
) -> list:
    """A result per item, in their order: `work` gives those of a batch of indices. The batches are
    made in the order of `key`, so that like is beside like; `kwargs` are those of `run_batches`.
    """
    order = sorted(range(len(items)), key=lambda i: key(items[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    results_in_order = chain(*run_batches(batches, work, **kwargs))
    results = dict(zip(order, results_in_order, strict=True))
    return [results[i] for i in range(len(items))]


def _append(journal: Journal, name: str, result: tuple[int, Any]) -> None:
    path = journal.folder / name
    if not path.is_file():
        journal.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(journal.settings), "utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(result))  # a line that a kill cut short ends here


def _read(journal: Journal, desc: str) -> dict[int, Any]:
    """{index of a batch: its result} of what all ranks have finished."""
    done: dict[int, Any] = {}
    now = json.loads(json.dumps(journal.settings))  # as it looks once it is written and read
    for path in sorted(journal.folder.glob(f"{desc}.rank*.jsonl")):
        first, *lines = path.read_text("utf-8").split("\n")
        before = _json(first)
        if before is None:
            continue
        if changed := describe_differences(before, now):
            raise InputError(
                f"--resume auto: {journal.folder} is of a run with other settings ({changed}); "
                "put them back, or pass --overwrite instead"
            )
        results = [_json(line) for line in lines]
        done |= dict(result for result in results if result is not None)
    return done


def _json(line: str) -> Any:
    """The value of a line; None: a kill cut it short."""
    try:
        return json.loads(line)
    except ValueError:
        return None
