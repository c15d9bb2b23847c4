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

LENGTH_EDGES_WORDS = (0, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 10**9)


def write_data_card(folder: Path, ledger: Ledger, splits: DatasetDict, *, config: dict[str, Any]) -> dict[str, Any]:
    """Write `data_card.json`, `data_card.md` and `funnel.png` into `folder`; returns the card."""
    words = [len(text.split()) for part in splits.values() for text in part["text"]]
    counts, _ = np.histogram(words, LENGTH_EDGES_WORDS)
    found = {name: [(stage["stage"], stage[name]) for stage in ledger.stages if name in stage]
             for name in ("largest", "languages")}
    clusters = [{"stage": stage, **cluster} for stage, largest in found["largest"] for cluster in largest]
    card = {
        "schema_version": 1, "config": config,
        "stages": [{name: value for name, value in stage.items() if name not in found} for stage in ledger.stages],
        "splits": {name: {"documents": len(part), "bytes": num_bytes(part)} for name, part in splits.items()},
        "length_words": {_bin(i): int(n) for i, n in enumerate(counts)},
        "languages": found["languages"][0][1] if found["languages"] else None,
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
    from matplotlib.figure import Figure

    names, sizes, documents = ([stage[key] for stage in stages] for key in ("stage", "bytes_out", "documents_out"))
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [size / 2**20 for size in sizes], color="#4878a8")
    axes.bar_label(bars, [f" {n:,} documents, {size / max(1, sizes[0]):.1%} of the bytes"
                          for n, size in zip(documents, sizes, strict=True)])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.7 * sizes[0] / 2**20)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= sizes[0] / 2**20])  # the rest is for the labels
    axes.set_xlabel("MiB of text", loc="left")
    axes.set_title("What is left after each stage", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _details(stage: dict[str, Any]) -> str:
    extra = {k: v for k, v in stage.items() if k not in EVERY_STAGE}
    rules = dict(Counter(extra.pop("rules", {})).most_common())
    return ", ".join(f"{k} {v:,}" for k, v in {**rules, **extra}.items() if v)
