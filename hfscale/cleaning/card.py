"""The data card: what came in, what was dropped and why, what is left, in words, numbers and a
picture.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from hfscale.cleaning.stages import LARGEST_CLUSTERS, Ledger, counts_of, num_bytes
from hfscale.folders import DATA_CARD, write_atomically, write_json
from hfscale.report.page import template
from hfscale.report.pictures import bars
from hfscale.report.tables import show_table
from hfscale.shown import one_line, show_text

LENGTH_EDGES_WORDS = (0, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 10**9)
LOST_IN_READING = ("empty", "unreadable")  # counts of the first stage
SHOWN_COUNTS = 5
SHOWN_CHARACTERS = 80
OWN_TABLES = ("largest", "languages")  # what a stage measured that is shown beside the stages


def write_data_card(
    folder: Path, ledger: Ledger, splits: DatasetDict, *, record: dict[str, Any]
) -> dict[str, Any]:
    """Write `data_card.json`, `data_card.md` and `funnel.png` into `folder`; returns the card,
    which begins with `record` (`hfscale.folders.describe_run`).
    """
    words = [len(text.split()) for part in splits.values() for text in part["text"]]
    counts, _ = np.histogram(words, LENGTH_EDGES_WORDS)
    card = {
        **record,
        "stages": [_without_tables(stage) for stage in ledger.stages],
        "splits": {
            name: {"documents": len(part), "bytes": num_bytes(part)}
            for name, part in splits.items()
        },
        "length_words": {_bin(number): int(count) for number, count in enumerate(counts)},
        "languages": _languages(ledger.stages),
        "largest_clusters": _largest_clusters(ledger.stages),
        "examples": ledger.examples,
        "notes": [*ledger.notes(), *_empty_parts(splits, record["config"])],
    }
    write_json(folder / DATA_CARD, card)
    draw_funnel(ledger.stages, folder / "funnel.png")
    page = template(Path(__file__).with_name("data_card.md.j2"))
    write_atomically(folder / "data_card.md", page.render(card, details=_details, beginning=_line))
    return card


def _without_tables(stage: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stage.items() if name not in OWN_TABLES}


def _languages(stages: list[dict[str, Any]]) -> dict[str, int] | None:
    """Documents of each language; None where no stage told them apart."""
    for stage in stages:
        if "languages" in stage:
            return stage["languages"]
    return None


def _largest_clusters(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest groups of copies of all stages that look for them."""
    clusters = []
    for stage in stages:
        name = stage["stage"]
        clusters += [{"stage": name, **cluster} for cluster in stage.get("largest", ())]
    clusters.sort(key=lambda cluster: (-cluster["documents"], cluster["id"]))
    return clusters[:LARGEST_CLUSTERS]


def _empty_parts(splits: DatasetDict, config: dict[str, Any]) -> list[str]:
    """What to say of splits that were asked for and got no document."""
    empty = [
        name for name in ("validation", "test") if config[f"{name}_fraction"] and name not in splits
    ]
    if not empty:
        return []
    num_left = len(splits["train"])
    verb = "is" if num_left == 1 else "are"
    return [
        f"no document for {' and '.join(empty)}: there {verb} only {num_left} to train on; give "
        "more, or shorter ones (--sample_by paragraph)"
    ]


def show_card(card: dict[str, Any], *, examples: bool = False) -> None:
    """Print what each stage and rule dropped and kept, the splits, and the notes; with `examples`,
    how the first documents begin that each rule dropped.
    """
    rows = [row for stage in card["stages"] for row in _stage_rows(stage)]
    show_table(("stage, rule", "dropped", "kept", "also"), rows, title="Documents")
    if card["languages"]:
        show_text("languages: " + ", ".join(_largest(card["languages"])))
    sizes = [
        f"{name} {part['documents']:,} ({part['bytes']:,} bytes)"
        for name, part in card["splits"].items()
    ]
    show_text("documents: " + ", ".join(sizes))
    if examples and card["examples"]:
        show_text("dropped, for example:")
        for rule, lines in card["examples"].items():
            show_text(_beginning(rule, lines[0]))
    for note in card["notes"]:
        show_text(f"note: {note}")


def _stage_rows(stage: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """A line for a stage, and one for each rule that dropped something."""
    counts = counts_of(stage)
    # The first stage counts what was lost in reading before it knew documents.
    not_read = {name: counts[name] for name in LOST_IN_READING if counts.get(name)}
    lost = {**not_read, **stage.get("rules", {})}
    also = {name: count for name, count in counts.items() if count and name not in lost}
    dropped = stage["documents_in"] - stage["documents_out"] + sum(not_read.values())
    kept = stage["documents_out"]
    rows = [(stage["stage"], f"{dropped:,}", f"{kept:,}", "\n".join(_largest(also)))]
    for rule, count in Counter(lost).most_common():
        rows.append((f"  {rule}", f"{count:,}", "", ""))
    return rows


def _beginning(rule: str, line: dict[str, Any]) -> str:
    """One line of the screen: rule, measured value, the document's id and how it begins."""
    return f"  {rule} {line['value']}, id {line['id']}: {_line(line['text_begins'])}"[
        :SHOWN_CHARACTERS
    ]


def _line(text: str | None) -> str:
    """The beginning of a text, in one line."""
    return one_line(text or "")[:SHOWN_CHARACTERS]


def _largest(counts: dict[str, int]) -> list[str]:
    """The largest counts, and how many more there are."""
    largest = Counter(counts).most_common()
    shown = [f"{name.replace('_', ' ')} {count:,}" for name, count in largest[:SHOWN_COUNTS]]
    if len(largest) > SHOWN_COUNTS:
        shown.append(f"{len(largest) - SHOWN_COUNTS} more")
    return shown


def _bin(number: int) -> str:
    """What the bin of this number of the lengths' histogram holds."""
    low = LENGTH_EDGES_WORDS[number]
    high = LENGTH_EDGES_WORDS[number + 1]
    if high == LENGTH_EDGES_WORDS[-1]:
        return f"{low:,} and more"
    return f"{low:,} to {high - 1:,}"


def draw_funnel(stages: list[dict[str, Any]], path: Path) -> None:
    """Bytes that leave each stage, the source being the first, as bars with documents and shares
    beside them.
    """
    source_bytes = max(1, stages[0]["bytes_out"])
    labels = [
        f" {stage['documents_out']:,} documents, {stage['bytes_out'] / source_bytes:.1%} of the "
        "bytes"
        for stage in stages
    ]
    figure, axes = bars(
        [stage["stage"] for stage in stages],
        {"": [s["bytes_out"] / 2**20 for s in stages]},
        labels,
        {"": "#4878a8"},
    )
    axes.set(
        xlabel="MiB of text",
        title="What is left after each stage",
        xlim=(0, 1.7 * source_bytes / 2**20),
    )
    figure.savefig(path, dpi=120)


def _details(stage: dict[str, Any]) -> str:
    """What the stage did, in the page's table."""
    return ", ".join(f"{name} {count:,}" for name, count in counts_of(stage).items() if count)
