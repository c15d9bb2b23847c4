"""Stages of data preparation: each keeps, drops or changes documents, and a ledger says which, why and how much."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hfscale.config import InputError, write_text
from hfscale.data.contamination import contaminated_documents, contaminated_items

PREVIEW_CHARACTERS = 200
EXAMPLES_PER_RULE = 3
LARGEST_CLUSTERS = 10
EVERY_STAGE = ("stage", "documents_in", "documents_out", "bytes_in", "bytes_out")


@dataclass
class Ledger:
    """What happened to every document: one record a stage, one line a dropped document."""

    dropped_file: Path
    shard: bool = False  # one of several: it may lose all its documents
    stages: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict]] = field(default_factory=dict)

    def __post_init__(self):
        self.dropped_file.parent.mkdir(exist_ok=True)
        write_text(self.dropped_file, "")  # there also when nothing is dropped

    def add(self, stage: str, before: Dataset, after: Dataset, **counts: Any) -> None:
        """Documents and bytes in and out of a stage, and its own counts.

        Raises:
            InputError: the stage left no document.
        """
        self._add({"stage": stage, "documents_in": len(before), "documents_out": len(after),
                   "bytes_in": num_bytes(before), "bytes_out": num_bytes(after), **counts})

    def _add(self, record: dict[str, Any]) -> None:
        self.stages.append(record)
        if not self.shard and record["documents_out"] == 0:
            counts = json.dumps({name: n for name, n in record.items() if name not in EVERY_STAGE})
            raise InputError(f"no document is left after the stage '{record['stage']}' ({counts}); loosen the rule "
                             "that dropped most, or switch the stage off")

    def drop(self, document: dict, stage: str, rule: str, value: Any) -> None:
        """One line of `dropped.jsonl`: id, stage, rule, measured value, and how the text begins."""
        self._drop([{"id": document["id"], "stage": stage, "rule": rule, "value": value,
                     "text_begins": document["text"][:PREVIEW_CHARACTERS]}])

    def _drop(self, lines: Iterable[dict]) -> None:
        with self.dropped_file.open("a", encoding="utf-8") as file:
            for line in lines:
                examples = self.examples.setdefault(f"{line['stage']}: {line['rule']}", [])
                if len(examples) < EXAMPLES_PER_RULE:
                    examples.append(line)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def save(self) -> None:
        """Write the records of the stages beside the dropped lines, for `merge`."""
        write_text(self.dropped_file.with_suffix(".json"), json.dumps(self.stages))

    def merge(self, dropped_files: Sequence[Path]) -> None:
        """Go through the same stages as the saved ledgers of all shards: counts are added, lines stand in order."""
        shards = [json.loads(file.with_suffix(".json").read_text("utf-8")) for file in dropped_files]
        for records in zip(*shards, strict=True):
            for file in dropped_files:
                with file.open(encoding="utf-8") as lines:
                    self._drop(d for d in map(json.loads, lines) if d["stage"] == records[0]["stage"])
            self._add(functools.reduce(_sum, records))


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two shards' records of a stage as one: numbers are added, lists joined, counts in dictionaries added."""
    def plus(a: Any, b: Any) -> Any:
        return a if isinstance(a, str) else dict(Counter(a) + Counter(b)) if isinstance(a, dict) else a + b

    return {name: plus(one[name], other[name]) if name in one and name in other else (one | other)[name]
            for name in one | other}


def num_bytes(documents: Dataset) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(text.encode()) for batch in documents.iter(1000) for text in batch["text"])


def change(documents: Dataset, stage: str, function: Callable[[str], tuple[str, dict[str, int]]], ledger: Ledger,
           num_proc: int | None) -> Dataset:
    """Rewrite each text; `function` returns it with counts of what was done. Documents left empty are dropped."""
    def rewrite(text: str) -> dict:
        new, counts = function(text)
        return {"text": new, "counts": json.dumps({"changed": int(new != text), **counts})}

    if len(documents) == 0:  # of a shard; `map` would add no column
        ledger.add(stage, documents, documents)
        return documents
    rewritten = documents.map(rewrite, input_columns="text", num_proc=num_proc, desc=stage)
    counts = sum((Counter(json.loads(line)) for line in rewritten["counts"]), Counter())
    rewritten = rewritten.remove_columns("counts")
    kept = np.array([bool(text.strip()) for text in rewritten["text"]], dtype=bool)
    for i in np.flatnonzero(~kept).tolist():
        ledger.drop(documents[i], stage, "empty", 0)
    after = rewritten.select(np.flatnonzero(kept))
    ledger.add(stage, documents, after, **counts)
    return after


def judge(documents: Dataset, stage: str, problem: Callable[[str], tuple[str, Any] | None], ledger: Ledger,
          num_proc: int | None) -> Dataset:
    """Drop each document for which `problem` names a rule and the measured value."""
    verdicts = documents.map(lambda text: {"verdict": json.dumps(problem(text))}, input_columns="text",
                             num_proc=num_proc, desc=stage)["verdict"] if len(documents) else []
    broken = {i: tuple(json.loads(line)) for i, line in enumerate(verdicts) if line != "null"}
    return drop_rows(documents, stage, broken, ledger)


def drop_rows(documents: Dataset, stage: str, broken: dict[int, tuple[str, Any]], ledger: Ledger,
              **counts: Any) -> Dataset:
    """Drop the documents at these indices, for the rule and measured value given with each."""
    for i, (rule, value) in broken.items():
        ledger.drop(documents[i], stage, rule, value)
    after = documents.select([i for i in range(len(documents)) if i not in broken])
    ledger.add(stage, documents, after, rules=dict(Counter(rule for rule, _ in broken.values())),
               **counts)
    return after


def keep_first(documents: Dataset, stage: str, clusters: np.ndarray, ledger: Ledger, *,
               ids: np.ndarray | None = None, start: int = 0) -> Dataset:
    """Keep each cluster's first document; `clusters` holds that document's index for every document.

    Of a shard: `clusters` and `ids` are those of all shards' documents, and its own begin at `start`.
    """
    ids = (np.array(documents["id"][:]) if ids is None else ids).tolist()
    rows = np.arange(start, start + len(documents))
    first, texts = clusters[rows], documents["text"]
    for i in np.flatnonzero(first != rows).tolist():
        ledger.drop({"id": ids[start + i], "text": texts[i]}, stage, "copy of", ids[first[i]])
    after = documents.select(np.flatnonzero(first == rows))
    sizes = np.bincount(clusters, minlength=len(clusters))[rows] if len(rows) else rows
    largest = sorted(np.flatnonzero(sizes > 1).tolist(), key=lambda i: (-sizes[i], i))[:LARGEST_CLUSTERS]
    shown = [{"id": ids[start + i], "documents": int(sizes[i]), "text_begins": texts[i][:PREVIEW_CHARACTERS]}
             for i in largest]
    ledger.add(stage, documents, after, clusters=int((sizes > 1).sum()), largest=shown)
    return after


def check_contamination(documents: Dataset, items: list[str], ledger: Ledger, *, drop: bool) -> Dataset:
    """Write `contamination.json`: per evaluation item the share of its 13-grams that is in the documents, and the id
    of the first that holds one; with `drop`, drop every document that holds one."""
    found = [{"item": i, "share": share, "id": None if first is None else documents[first]["id"]}
             for i, (share, first) in enumerate(contaminated_items(documents, items))]
    write_text(ledger.dropped_file.with_name("contamination.json"), json.dumps(found, indent=1) + "\n")
    shared = dict.fromkeys(contaminated_documents(documents, items) if drop else [], ("shares a 13-gram", 1))
    return drop_rows(documents, "contamination", shared, ledger, evaluation_items=len(items),
                     items_found=sum(item["share"] > 0 for item in found))


def split_by_cluster(documents: Dataset, clusters: np.ndarray, *, validation_fraction: float, test_fraction: float,
                     seed: int) -> DatasetDict:
    """Train, validation and test, drawn cluster by cluster, so that no near copy is on both sides."""
    order = np.random.default_rng(seed).permutation(np.unique(clusters))
    rank = np.empty(len(documents), dtype=np.int64)
    rank[order] = np.arange(len(order))
    test = round(test_fraction * len(order))
    validation = test + round(validation_fraction * len(order))
    drawn = rank[clusters]
    parts = {"test": drawn < test, "validation": (drawn >= test) & (drawn < validation), "train": drawn >= validation}
    return DatasetDict({name: documents.select(np.flatnonzero(mask)) for name, mask in parts.items() if mask.any()})
