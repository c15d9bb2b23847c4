"""The data card: what came in, what was dropped and why, what is left, in words, numbers and a picture."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from hfscale.config import write_text
from hfscale.data.stages import EVERY_STAGE, LARGEST_CLUSTERS, Ledger, num_bytes
from hfscale.report.page import template
from hfscale.report.pictures import bars

LENGTH_EDGES_WORDS = (0, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 10**9)
OWN_TABLES = ("largest", "languages")  # what a stage measured that is shown beside the stages


def write_data_card(folder: Path, ledger: Ledger, splits: DatasetDict, *, config: dict[str, Any]) -> dict[str, Any]:
    """Write `data_card.json`, `data_card.md` and `funnel.png` into `folder`; returns the card."""
    words = [len(text.split()) for part in splits.values() for text in part["text"]]
    counts, _ = np.histogram(words, LENGTH_EDGES_WORDS)
    clusters = [{"stage": s["stage"], **cluster} for s in ledger.stages for cluster in s.get("largest", ())]
    card = {
        "schema_version": 1, "config": config,
        "stages": [{key: stage[key] for key in stage if key not in OWN_TABLES} for stage in ledger.stages],
        "splits": {name: {"documents": len(part), "bytes": num_bytes(part)} for name, part in splits.items()},
        "length_words": {_bin(i): int(n) for i, n in enumerate(counts)},
        "languages": next((stage["languages"] for stage in ledger.stages if "languages" in stage), None),
        "largest_clusters": sorted(clusters, key=lambda c: (-c["documents"], c["id"]))[:LARGEST_CLUSTERS],
        "examples": ledger.examples,
    }
    write_text(folder / "data_card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    draw_funnel(ledger.stages, folder / "funnel.png")
    write_text(folder / "data_card.md", template("data_card.md.j2").render(card, details=_details))
    return card


def _bin(i: int) -> str:
    low, high = LENGTH_EDGES_WORDS[i], LENGTH_EDGES_WORDS[i + 1]
    return f"{low:,} and more" if high == LENGTH_EDGES_WORDS[-1] else f"{low:,} to {high - 1:,}"


def draw_funnel(stages: list[dict[str, Any]], path: Path) -> None:
    """Bytes that leave each stage, the source being the first, as bars with documents and shares beside them."""
    source_bytes = max(1, stages[0]["bytes_out"])
    labels = [f" {stage['documents_out']:,} documents, {stage['bytes_out'] / source_bytes:.1%} of the bytes"
              for stage in stages]
    figure, axes = bars([stage["stage"] for stage in stages], {"": [s["bytes_out"] / 2**20 for s in stages]}, labels,
                        {"": "#4878a8"})
    axes.set(xlabel="MiB of text", title="What is left after each stage", xlim=(0, 1.7 * source_bytes / 2**20))
    figure.savefig(path, dpi=120)


def _details(stage: dict[str, Any]) -> str:
    extra = {k: v for k, v in stage.items() if k not in EVERY_STAGE}
    rules = dict(Counter(extra.pop("rules", {})).most_common())
    return ", ".join(f"{k} {v:,}" for k, v in {**rules, **extra}.items() if v)
