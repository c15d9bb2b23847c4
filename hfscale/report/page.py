"""One self-contained HTML page of a run, or of several beside each other: it reads what the recipes wrote, no more."""

import base64
import contextlib
import io
import json
from collections.abc import Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure

from hfscale.config import InputError
from hfscale.report.tables import number

# Records of other recipes, each shown in a section of its own where the folder holds it.
RECORDS = ("data_card.json", "scores.json", "law.json", "attention.json", "bias.json", "memorization.json")
PAGE_LIMIT_BYTES = 2_800_000  # pictures beyond it are named, not shown
CURVES = {"loss": "training loss", "eval_loss": "validation loss", "learning_rate": "learning rate",
          "grad_norm": "gradient norm"}

STYLE = {"svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False,
         "axes.spines.right": False, "legend.frameon": False}


def render_page(runs: Sequence[str], also: Sequence[str] = ()) -> str:
    """The page as HTML, from run folders and from folders of other recipes (scores, studies, data cards).

    Numbers stand in <data value="..."> elements that hold them as they are in the files, so nothing is rounded away.

    Raises:
        InputError: a run folder without a readable `run.json`, or another folder without any record.
    """
    records = [{"name": folder, **_read(Path(folder, "run.json"), ("data", "metrics"))} for folder in runs]
    found = {folder: [_record(path) for name in RECORDS if (path := Path(folder, name)).is_file()] for folder in also}
    if missing := [folder for folder, parts in found.items() if not parts]:
        raise InputError(f"also: {missing[0]} holds none of {', '.join(RECORDS)}; name the output of another recipe")
    data = [source for record in records for source in record["data"].get("source", ())]
    folders = [*runs, *also, *(folder for folder in data if Path(folder, "data_card.json").is_file())]
    curves = {run: _read(path)["log_history"] for run in runs if (path := Path(run, "trainer_state.json")).is_file()}
    metrics = [name for record in records for name, value in record["metrics"].items() if isinstance(value, Number)]
    page = template("page.html.j2")
    parts = {"runs": records, "metrics": list(dict.fromkeys(metrics)), "found": found,
             "charts": list(filter(None, (_chart(curves, key, label) for key, label in CURVES.items())))}
    size = len(page.render(**parts, pictures=[]))
    return page.render(**parts, pictures=_pictures(dict.fromkeys(folders), PAGE_LIMIT_BYTES - size))


def template(name: str) -> jinja2.Template:
    """A template that lies beside this file."""
    environment = jinja2.Environment(autoescape=jinja2.select_autoescape(["html.j2"]), trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined,
                                     keep_trailing_newline=True, loader=jinja2.FileSystemLoader(Path(__file__).parent))
    environment.filters |= {"number": number, "label": lambda name: name.removeprefix("eval_").replace("_", " ")}
    return environment.get_template(name)


def _read(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        record = json.loads(path.read_text("utf-8"))
        if {*needs} <= record.keys():
            return record
    raise InputError(f"runs: {path.parent} has no readable {path.name}; name a folder of a finished run")


def _record(path: Path) -> tuple[str, dict[str, Any]]:
    """The record without what is long, such as every point or item."""
    return path.name, {key: value for key, value in _read(path).items() if len(json.dumps(value)) < 20_000}


def _chart(curves: dict[str, list[dict[str, float]]], key: str, label: str) -> str | None:
    """An SVG of one logged value over steps, a line per run, in the colours of the page's theme."""
    lines = {name: [(log["step"], log[key]) for log in history if key in log] for name, history in curves.items()}
    if not any(lines.values()):
        return None
    with rc_context(STYLE | {"svg.hashsalt": key}):
        figure = Figure(figsize=(5.4, 3), layout="constrained")
        axes, out = figure.subplots(), io.StringIO()
        for name, points in lines.items():
            steps, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(steps, values, marker="o" if len(points) < 20 else "", ms=3, lw=1.4, label=Path(name).name)
        axes.set(xlabel="step", title=label)
        if len(lines) > 1:
            axes.legend()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg"):].replace("#000000", "currentColor").replace("<text ", '<text fill="currentColor" ')


def _pictures(folders: Sequence[str], room_bytes: int) -> list[dict[str, str]]:
    """Each PNG in the folders, as a data URI while there is room."""
    found = []
    for path in (path for folder in folders for path in sorted(Path(folder).glob("*.png"))):
        uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        fits = len(uri) < room_bytes
        room_bytes -= len(uri) * fits
        found.append({"path": str(path), "uri": uri if fits else ""})
    return found
