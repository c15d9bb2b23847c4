"""Stages of data preparation: each keeps, drops or changes documents, and a ledger says which, why
and how much.
"""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hfscale.cleaning.contamination import contaminated_documents, contaminated_items
from hfscale.cleaning.rules import Advice
from hfscale.folders import write_atomically
from hfscale.process import InputError

PREVIEW_CHARACTERS = 200
EXAMPLES_PER_RULE = 3
LARGEST_CLUSTERS = 10
# The cache's keys do not know that a rule's code has changed.
ANEW = {"load_from_cache_file": False}
# What each stage's record holds; all else in it is counts of its own.
EVERY_STAGE = ("stage", "documents_in", "documents_out", "bytes_in", "bytes_out")


@dataclass
class Ledger:
    """What happened to every document: one record a stage, one line a dropped document."""

    dropped_file: Path
    shard: bool = False  # one of several: it may lose all its documents
    advice: Sequence[Advice] = ()
    stages: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict]] = field(default_factory=dict)

    def __post_init__(self):
        self.dropped_file.parent.mkdir(exist_ok=True)
        write_atomically(self.dropped_file, "")  # there also when nothing is dropped

    def add(self, stage: str, before: Dataset, after: Dataset, **counts: Any) -> None:
        """Documents and bytes in and out of a stage, and its own counts; raises InputError if no
        document is left.
        """
        self._add(
            {
                "stage": stage,
                "documents_in": len(before),
                "documents_out": len(after),
                "bytes_in": num_bytes(before),
                "bytes_out": num_bytes(after),
                **counts,
            }
        )

    def _add(self, record: dict[str, Any]) -> None:
        self.stages.append(record)
        if not self.shard and record["documents_out"] == 0:
            counts = json.dumps({name: n for name, n in record.items() if name not in EVERY_STAGE})
            advice = "; ".join(
                ["loosen the rule that dropped most, or switch the stage off", *self.notes()]
            )
            raise InputError(
                f"no document is left after the stage '{record['stage']}' ({counts}); {advice}"
            )

    def notes(self) -> list[str]:
        """What to do about counts that there are; what has no names of counts is always said."""
        counted: set[str] = set()
        for stage in self.stages:
            counted.update(name for name, count in counts_of(stage).items() if count)
        return [
            advice.line
            for advice in self.advice
            if not advice.counts or not counted.isdisjoint(advice.counts)
        ]

    def drop(self, documents: Dataset, stage: str, broken: dict[int, tuple[str, Any]]) -> None:
        """A line of `dropped.jsonl` for each of these rows: id, stage, rule, measured value, how
        the text begins.
        """
        rows = zip(documents.select(list(broken)), broken.values(), strict=True)
        self._drop(
            {
                "id": row["id"],
                "stage": stage,
                "rule": rule,
                "value": value,
                "text_begins": _preview(row),
            }
            for row, (rule, value) in rows
        )

    def _drop(self, lines: Iterable[dict]) -> None:
        with self.dropped_file.open("a", encoding="utf-8") as file:
            for line in lines:
                examples = self.examples.setdefault(f"{line['stage']}: {line['rule']}", [])
                if len(examples) < EXAMPLES_PER_RULE:
                    examples.append(line)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def scratch_file(self, stage: str) -> str:
        """For texts on the way through a stage, until `remove_scratch`. `datasets` would else write
        them beside the source, which may be others'.
        """
        self._scratch.mkdir(exist_ok=True)
        return str(self._scratch / f"{stage}.arrow")

    def remove_scratch(self) -> None:
        """Once the last stage's documents are saved."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _scratch(self) -> Path:
        return self.dropped_file.with_suffix(".scratch")

    def save(self) -> None:
        """Write the records of the stages beside the dropped lines, for `merge`."""
        write_atomically(self.dropped_file.with_suffix(".json"), json.dumps(self.stages))

    def merge(self, dropped_files: Sequence[Path]) -> None:
        """Go through the same stages as the saved ledgers of all shards: counts are added, lines
        stand in order.
        """
        shards = [
            json.loads(file.with_suffix(".json").read_text("utf-8")) for file in dropped_files
        ]
        for records in zip(*shards, strict=True):
            stage = records[0]["stage"]
            for file in dropped_files:
                with file.open(encoding="utf-8") as lines:
                    dropped = map(json.loads, lines)
                    self._drop(line for line in dropped if line["stage"] == stage)
            self._add(functools.reduce(_sum_records, records))


def counts_of(stage: dict[str, Any]) -> dict[str, int]:
    """What a stage's record counts beside documents and bytes, rules first."""
    rules = dict(Counter(stage.get("rules", {})).most_common())
    other_counts = {
        name: count
        for name, count in stage.items()
        if name not in EVERY_STAGE and isinstance(count, int)
    }
    return {**rules, **other_counts}


def _sum_records(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two shards' records of a stage as one."""
    total = {**first, **second}
    for name in first.keys() & second.keys():
        total[name] = _sum_values(first[name], second[name])
    return total


def _sum_values(first: Any, second: Any) -> Any:
    """Numbers are added, lists joined, counts in dictionaries added; a name is the same in both."""
    if isinstance(first, str):
        return first
    if isinstance(first, dict):
        return dict(Counter(first) + Counter(second))
    return first + second


def _preview(document: dict[str, Any]) -> str:
    return document["text"][:PREVIEW_CHARACTERS]


def num_bytes(documents: Dataset) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(text.encode()) for batch in documents.iter(1000) for text in batch["text"])


def rewrite_texts(
    documents: Dataset,
    stage: str,
    function: Callable[[str], tuple[str, dict[str, int]]],
    ledger: Ledger,
    num_proc: int | None,
) -> Dataset:
    """Rewrite each text; `function` returns it with counts of what was done. Documents left empty
    are dropped.
    """

    def rewrite(text: str) -> dict:
        new, counts = function(text)
        return {"text": new, "changed": int(new != text), **counts}

    rewritten = documents.map(
        rewrite,
        input_columns="text",
        num_proc=num_proc,
        cache_file_name=ledger.scratch_file(stage),
        desc=stage,
        **ANEW,
    )
    counted = [name for name in rewritten.column_names if name not in documents.column_names]
    totals = {name: sum(rewritten[name]) for name in counted}
    empty = {row: ("empty", 0) for row, text in enumerate(rewritten["text"]) if not text.strip()}
    counts = {name: total for name, total in totals.items() if total}
    rewritten = rewritten.remove_columns(counted)
    return _leave_out(documents, rewritten, stage, empty, ledger, **counts)


def drop_broken(
    documents: Dataset,
    stage: str,
    problem: Callable[[str], tuple[str, Any] | None],
    ledger: Ledger,
    num_proc: int | None,
) -> Dataset:
    """Drop each document for which `problem` names a rule and the measured value."""
    judged = documents.map(
        lambda text: {"verdict": json.dumps(problem(text))},
        input_columns="text",
        num_proc=num_proc,
        cache_file_name=ledger.scratch_file(stage),
        desc=stage,
        **ANEW,
    )
    broken = {}
    if len(documents):  # a shard may have none, and `map` adds no column then
        for row, verdict in enumerate(map(json.loads, judged["verdict"])):
            if verdict is not None:
                rule, value = verdict
                broken[row] = (rule, value)
    return drop_rows(documents, stage, broken, ledger)


def drop_rows(
    documents: Dataset,
    stage: str,
    broken: dict[int, tuple[str, Any]],
    ledger: Ledger,
    **counts: Any,
) -> Dataset:
    """Drop the documents at these indices, for the rule and measured value given with each."""
    rules = Counter(rule for rule, _ in broken.values())
    return _leave_out(documents, documents, stage, broken, ledger, rules=dict(rules), **counts)


def _leave_out(
    before: Dataset,
    after: Dataset,
    stage: str,
    broken: dict[int, tuple[str, Any]],
    ledger: Ledger,
    **counts: Any,
) -> Dataset:
    ledger.drop(before, stage, broken)
    after = after.select(np.delete(np.arange(len(after)), list(broken)))
    ledger.add(stage, before, after, **counts)
    return after


def keep_first(
    documents: Dataset,
    stage: str,
    clusters: np.ndarray,
    ledger: Ledger,
    ids: np.ndarray | None = None,
) -> Dataset:
    """Keep each cluster's first document; `clusters` holds that document's index for every
    document.

    Of a shard: `clusters` and the ascending `ids` are those of all shards' documents.
    """
    document_ids = np.array(documents["id"][:], np.int64)
    all_ids = document_ids if ids is None else ids
    rows = np.searchsorted(all_ids, document_ids)  # of these documents among all
    first_ids = all_ids[clusters[rows]]
    # A cluster's number is that of its first document: of any other the size is 0.
    sizes = np.bincount(clusters, minlength=len(all_ids))[rows]
    copies = {
        row: ("copy of", int(first_ids[row]))
        for row in np.flatnonzero(first_ids != document_ids).tolist()
    }
    firsts = np.flatnonzero(sizes > 1).tolist()
    largest_first = sorted(firsts, key=lambda row: (-sizes[row], row))
    largest = [
        {
            "id": int(document_ids[row]),
            "documents": int(sizes[row]),
            "text_begins": _preview(documents[row]),
        }
        for row in largest_first[:LARGEST_CLUSTERS]
    ]
    return _leave_out(
        documents, documents, stage, copies, ledger, clusters=len(firsts), largest=largest
    )


def check_contamination(
    documents: Dataset, items: list[str], ledger: Ledger, *, drop: bool
) -> Dataset:
    """Write `contamination.json`: per evaluation item the share of its 13-grams that is in the
    documents, and the id of the first that holds one; with `drop`, drop every document that holds
    one.
    """
    report = []
    num_found = 0
    for number, (share, first_row) in enumerate(contaminated_items(documents, items)):
        num_found += share > 0
        document_id = None if first_row is None else documents[first_row]["id"]
        report.append({"item": number, "share": share, "id": document_id})
    write_atomically(
        ledger.dropped_file.with_name("contamination.json"), json.dumps(report, indent=1) + "\n"
    )
    rows = contaminated_documents(documents, items) if drop else []
    return drop_rows(
        documents,
        "contamination",
        dict.fromkeys(rows, ("shares a 13-gram", 1)),
        ledger,
        evaluation_items=len(items),
        items_found=num_found,
    )


def draw_splits(
    documents: Dataset, *, validation_fraction: float, test_fraction: float, seed: int
) -> DatasetDict:
    """Train, validation and test, drawn at random. What is asked for gets at least one document,
    and validation goes before test, as long as one is left to train on; a part without any is left
    out.
    """
    count = len(documents)
    drawn = np.random.default_rng(seed).permutation(count)
    num_validation = _part_size(validation_fraction, count, most=count - 1)
    num_test = _part_size(test_fraction, count, most=count - 1 - num_validation)
    num_held_out = num_test + num_validation
    rows_of = {
        "test": drawn[:num_test],
        "validation": drawn[num_test:num_held_out],
        "train": drawn[num_held_out:],
    }
    splits = DatasetDict()
    for name, rows in rows_of.items():
        if len(rows):
            splits[name] = documents.select(np.sort(rows))
    return splits


def _part_size(fraction: float, count: int, most: int) -> int:
    """Documents in a part: as near to the fraction as whole ones come, at least one if any are
    wanted.
    """
    least = 1 if fraction > 0 else 0
    return min(max(round(fraction * count), least), max(0, most))
