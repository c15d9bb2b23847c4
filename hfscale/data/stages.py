"""Stages of data preparation: each keeps, drops or changes documents, and a ledger says which, why and how much."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hfscale.config import InputError, write_text
from hfscale.data.contamination import contaminated_documents, contaminated_items

PREVIEW_CHARACTERS = 200
EXAMPLES_PER_RULE = 3


@dataclass
class Ledger:
    """What happened to every document: one record a stage, one line a dropped document."""

    dropped_file: Path
    stages: list[dict[str, Any]] = field(default_factory=list)
    clusters: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict]] = field(default_factory=dict)

    def __post_init__(self):
        self.dropped_file.touch()  # there also when nothing is dropped

    def add(self, stage: str, before: Dataset, after: Dataset, **counts: Any) -> None:
        """Documents and bytes in and out of a stage, and its own counts.

        Raises:
            InputError: the stage left no document.
        """
        if len(after) == 0:
            raise InputError(f"no document is left after the stage '{stage}' ({json.dumps(counts)}); loosen the rule "
                             "that dropped most, or switch the stage off")
        self.stages.append({"stage": stage, "documents_in": len(before), "documents_out": len(after),
                            "bytes_in": num_bytes(before), "bytes_out": num_bytes(after), **counts})

    def drop(self, document: dict, stage: str, rule: str, value: Any) -> None:
        """One line of `dropped.jsonl`: id, stage, rule, measured value, and how the text begins."""
        line = {"id": document["id"], "stage": stage, "rule": rule, "value": value,
                "text_begins": document["text"][:PREVIEW_CHARACTERS]}
        examples = self.examples.setdefault(f"{stage}: {rule}", [])
        if len(examples) < EXAMPLES_PER_RULE:
            examples.append(line)
        with self.dropped_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def num_bytes(documents: Dataset) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(text.encode()) for batch in documents.iter(1000) for text in batch["text"])


def change(documents: Dataset, stage: str, function: Callable[[str], tuple[str, dict[str, int]]], ledger: Ledger,
           num_proc: int | None) -> Dataset:
    """Rewrite each text; `function` returns it with counts of what was done. Documents left empty are dropped."""
    def rewrite(text: str) -> dict:
        new, counts = function(text)
        return {"text": new, "counts": json.dumps({"changed": int(new != text), **counts})}

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
                             num_proc=num_proc, desc=stage)["verdict"]
    broken = {i: tuple(json.loads(line)) for i, line in enumerate(verdicts) if line != "null"}
    return drop_rows(documents, stage, broken, ledger)


def drop_rows(documents: Dataset, stage: str, broken: dict[int, tuple[str, Any]], ledger: Ledger) -> Dataset:
    """Drop the documents at these indices, for the rule and measured value given with each."""
    for i, (rule, value) in broken.items():
        ledger.drop(documents[i], stage, rule, value)
    after = documents.select([i for i in range(len(documents)) if i not in broken])
    ledger.add(stage, documents, after, rules=dict(Counter(rule for rule, _ in broken.values())))
    return after


def keep_first(documents: Dataset, stage: str, clusters: np.ndarray, ledger: Ledger) -> Dataset:
    """Keep each cluster's first document; `clusters` holds that document's index for every document."""
    ids, texts = documents["id"][:], documents["text"]
    for i in np.flatnonzero(clusters != np.arange(len(clusters))).tolist():
        ledger.drop({"id": ids[i], "text": texts[i]}, stage, "copy of", ids[clusters[i]])
    after = documents.select(np.flatnonzero(clusters == np.arange(len(clusters))))
    sizes = Counter(clusters.tolist())
    ledger.clusters += [{"stage": stage, "id": ids[i], "documents": n, "text_begins": texts[i][:PREVIEW_CHARACTERS]}
                        for i, n in sizes.items() if n > 1]
    ledger.add(stage, documents, after, clusters=sum(n > 1 for n in sizes.values()))
    return after


def check_contamination(documents: Dataset, items: list[str], ledger: Ledger, *, drop: bool) -> Dataset:
    """Write `contamination.json`: per evaluation item the share of its 13-grams that is in the documents, and the id
    of the first that holds one; with `drop`, drop every document that holds one."""
    found = [{"item": i, "share": share, "id": None if first is None else documents[first]["id"]}
             for i, (share, first) in enumerate(contaminated_items(documents, items))]
    write_text(ledger.dropped_file.with_name("contamination.json"), json.dumps(found, indent=1) + "\n")
    shared = dict.fromkeys(contaminated_documents(documents, items) if drop else [], ("shares a 13-gram", 1))
    documents = drop_rows(documents, "contamination", shared, ledger)
    ledger.stages[-1] |= {"evaluation_items": len(items), "items_found": sum(item["share"] > 0 for item in found)}
    return documents


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
