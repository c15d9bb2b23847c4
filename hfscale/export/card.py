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
    title = f"{in_markdown(name)} as {record['to']} ({record['outtype']})"
    lines = [
        f"---\n{yaml.safe_dump(head)}---",
        f"# {title}",
        f"{record['model']['architecture']} with {record['model']['parameters']:,} parameters, "
        f"written from {code_span(name)} by hfscale's recipe `export`.",
        f"```\n{how_to_use}\n```",
        "## Is it the same model?",
        "The files were read back and compared with the original on held-out text. All numbers are "
        "in `export.json`.",
        _table(record),
    ]
    write_atomically(folder / MODEL_CARD, mark_card("\n\n".join(lines) + "\n"))


def _table(record: dict[str, Any]) -> str:
    rows = [("compared", record["outtype"]), ("---", "---"), *certificate_rows(record)]
    return "\n".join(f"| {label} | {value} |" for label, value in rows)
