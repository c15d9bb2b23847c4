"""The card of an export: what it is, how it is loaded, and its certificate."""

from pathlib import Path
from typing import Any

import yaml

from hfscale.export.certificate import certificate_rows
from hfscale.folders import MODEL_CARD, mark_card, write_atomically
from hfscale.shown import code_span, in_markdown


def write_export_card(folder: Path, record: dict[str, Any], how_to_use: str) -> None:
    """Write `README.md` into the folder.

    Args:
        record: as `export.json` holds it.
        how_to_use: lines for a terminal or for Python.
    """
    name = Path(record["model"]["name"]).absolute().name
    head = {"pipeline_tag": "text-generation", "tags": ["hfscale", record["to"]]}
    merged = record["model"].get("merged_from")
    title = f"{len(merged)} models in one" if merged else in_markdown(name)
    title += f" as {record['to']} ({record['outtype']})"
    lines = [
        f"---\n{yaml.safe_dump(head)}---",
        f"# {title}",
        f"{record['model']['architecture']} with {record['model']['parameters']:,} parameters, "
        f"written from {_origin(record, name)} by hfscale's recipe `export`.",
        f"```\n{how_to_use}\n```",
        "## Is it the same model?",
        "The files were read back and compared with the original on held-out text. All numbers are "
        "in `export.json`.",
        _table(record),
    ]
    write_atomically(folder / MODEL_CARD, mark_card("\n\n".join(lines) + "\n"))


def _origin(record: dict[str, Any], name: str) -> str:
    """The folder, or those that were merged, each with its weight."""
    merged = record["model"].get("merged_from")
    if not merged:
        return code_span(name)
    folders = ", ".join(
        f"{code_span('/'.join(Path(folder).absolute().parts[-2:]))} ({weight:.4g})"
        for folder, weight in merged
    )
    how = record["config"].get("combination_type")
    kind = f"adapters, combined by peft's `{how}`" if how else "the mean of the weights"
    return f"{folders} ({kind})"


def _table(record: dict[str, Any]) -> str:
    rows = [("compared", record["outtype"]), ("---", "---"), *certificate_rows(record)]
    return "\n".join(f"| {label} | {value} |" for label, value in rows)
