"""One self-contained HTML page of a run, or of several beside each other: it reads what the recipes
wrote, no more.
"""

import base64
import contextlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure

from hfscale.manifest import check_manifest, has_manifest
from hfscale.process import InputError
from hfscale.report.comparison import (
    beside,
    differing_settings,
    flat,
    judged_on,
    judged_tables,
    same_measure,
)
from hfscale.report.pictures import in_picture
from hfscale.report.tables import FLOOR, INTERVALS, in_one_format, number, p_value
from hfscale.shown import MARKDOWN_FILTERS, markdown_text, printable

# Records of other recipes, each shown in a section of its own where the folder holds it.
RECORDS = (
    "data_card.json",
    "scores.json",
    "law.json",
    "attention.json",
    "bias.json",
    "memorization.json",
)
# Mail programs and browsers take a page of this size at once: pictures beyond it are named, not
# shown.
PAGE_LIMIT_BYTES = 2_800_000
LONG_CHARACTERS = 20_000  # of a list in a record: longer ones are named, not shown
# What a run's record must hold to be shown, and what it may.
NEEDED = {
    "recipe": str,
    "command": str,
    "config": dict,
    "data": dict,
    "model": dict,
    "metrics": dict,
}
OPTIONAL = {"hardware": dict, "versions": dict, "train": dict, "samples": list}
# What is drawn over steps: the title, and on which part of the data it is measured (None: on none).
CURVES = {
    "loss": ("training loss", "train"),
    "eval_loss": ("validation loss", "validation"),
    "learning_rate": ("learning rate", None),
    "grad_norm": ("gradient norm", None),
}
COLUMNS = {"points": ("parameters N", "tokens D", "loss")}  # of a list of lists, by its name
FOLDED = {"config": "every setting", "versions": "of every library"}
NAMED = ("laws", "rules", "examples", "canaries")  # mappings whose keys are names, not labels
SIDE_BY_SIDE = ("systems",)  # records with much in each: they are columns, what they say are rows
# Of Matplotlib: text stays text in the SVG, so that the page's font and colours apply.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def render_page(runs: Sequence[str], also: Sequence[str] = ()) -> str:
    """The page as HTML, from run folders and from folders of other recipes (scores, studies, data
    cards).

    Numbers stand in <data value="..."> elements that hold them as they are in the files, so nothing
    is rounded away.

    Raises:
        InputError: a run folder without a readable `run.json`, one that is named twice, or another
            folder without any record.
    """
    check_named_once(runs)
    records = [read_run(folder) for folder in runs]
    studies = {folder: _records(folder) for folder in also}
    curves = {record["name"]: read_curve(record["name"]) for record in records}
    settings, not_shared = differing_settings(records)
    parts = {
        "runs": records,
        "settings": settings,
        "not_shared": not_shared,
        "tables": judged_tables(records),
        "others": _not_judged(records),
        "found": studies,
        "charts": _charts(records, curves),
        "without_curve": [name for name, log in curves.items() if not log],
        "heads": COLUMNS,
        "folded": FOLDED,
        "side_by_side": SIDE_BY_SIDE,
        "named": NAMED,
    }
    page = template(Path(__file__).with_name("page.html.j2"))
    size = len(page.render(**parts, pictures=[]))
    folders = list(dict.fromkeys([*runs, *also, *_prepared_sources(records)]))
    return page.render(**parts, pictures=_pictures(folders, PAGE_LIMIT_BYTES - size))


def _not_judged(records: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics that were not measured on a held-out text, such as how fast training was."""
    names = []
    for record in records:
        for name in shown_names([record["metrics"]]):
            if not judged_on(record, name) and name not in names:
                names.append(name)
    return names


def _prepared_sources(records: Sequence[dict[str, Any]]) -> list[str]:
    """Folders of prepare_data that the runs read, whose pictures belong on the page."""
    sources = [str(source) for record in records for source in record["data"].get("source") or ()]
    return [source for source in sources if Path(source, "data_card.json").is_file()]


def template(path: Path) -> jinja2.Template:
    """The template in a file; what it fills in is text and nothing else, also where the file is
    HTML or Markdown.
    """
    environment = jinja2.Environment(
        autoescape=jinja2.select_autoescape(["html.j2"]),
        finalize=markdown_text if path.name.endswith(".md.j2") else _plain_text,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        loader=jinja2.FileSystemLoader(path.parent),
    )
    environment.filters |= {
        "number": number,
        "p_value": p_value,
        "beside": lambda records: beside(list(records)),
        "label": label_of,
        "kind": kind_of,
        "shown_names": shown_names,
        "texts": texts_of,
        "column": _column,
        "columns": lambda rows: list(zip_longest(*rows)),
        "flat": flat,
        **MARKDOWN_FILTERS,
    }
    return environment.get_template(path.name)


def _plain_text(value: Any) -> Any:
    """What a template fills in: text without what a terminal or a browser obeys; what is HTML
    already stays.
    """
    return printable(value) if type(value) is str else value


def texts_of(values: Iterable[Any]) -> dict[float, str]:
    """How each number among the values, and among the lists in them, is written so that all have
    one format; nothing for a number alone.
    """
    single: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            single += value
        else:
            single.append(value)
    numbers = [
        value for value in single if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if len(numbers) < 2:
        return {}
    return dict(zip(numbers, in_one_format(numbers), strict=True))


def _column(records: Iterable[dict[str, Any]], name: str) -> list[Any]:
    """The values of that name in all records that have it, and their intervals."""
    names = (name, *(f"{name}{end}" for end in INTERVALS))
    return [record[key] for record in records for key in names if key in record]


def label_of(name: str) -> str:
    """A record's name of something as people read it."""
    return re.sub("(^|, )eval_", r"\1", name).replace("_", " ")


def kind_of(value: Any) -> str:
    """How a page shows what a record holds: mapping, records (mappings below each other), rows
    (lists below each other), list, value, or empty.
    """
    if isinstance(value, dict | list | tuple) and not value:
        return "empty"
    if isinstance(value, dict):
        return "mapping"
    if not isinstance(value, list | tuple):
        return "value"
    if all(isinstance(entry, dict) for entry in value):
        return "records"
    if all(isinstance(entry, list | tuple) for entry in value):
        return "rows"
    return "list"


def shown_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """The names in any of the records, but for those of what stands beside another: its interval,
    its floor.
    """
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if not name.endswith((*INTERVALS, FLOOR))]


def check_named_once(runs: Sequence[str]) -> None:
    """Raise InputError for a run folder that is named twice, by whatever path."""
    seen: dict[Path, str] = {}
    for folder in runs:
        first = seen.setdefault(Path(folder).resolve(), folder)
        if first is not folder:
            raise InputError(f"runs: {folder} is {first}, which is named already; keep one")


def read_run(folder: str) -> dict[str, Any]:
    """A run's record with its folder as `name`; raises InputError: none, or not of a finished
    run.
    """
    patterns = ("run.json", "trainer_state.json")
    if has_manifest(folder) and (problem := check_manifest(folder, patterns=patterns)):
        raise InputError(
            f"runs: {folder}: {problem} (by its manifest.json); put it back, or delete "
            "manifest.json if you changed it yourself"
        )
    record = _read(Path(folder, "run.json"), "runs", "name a folder of a finished run")
    whole = {name: kind() for name, kind in OPTIONAL.items()} | record
    for name, kind in (NEEDED | OPTIONAL).items():
        if not isinstance(whole.get(name), kind):
            raise InputError(
                f"runs: {folder} has no readable run.json ({name} is missing or of another kind); "
                "name a folder of a finished run"
            )
    return whole | {"name": folder}


def read_curve(folder: str) -> list[dict[str, Any]]:
    """What a run logged while it trained, from its folder or else from its newest checkpoint;
    empty: it kept nothing.

    Raises InputError: a file that holds no log.
    """
    path = Path(folder, "trainer_state.json")
    if not path.is_file():
        checkpoints = [
            checkpoint
            for checkpoint in Path(folder).glob("checkpoint-*/trainer_state.json")
            if _step_of(checkpoint.parent) is not None
        ]
        if not checkpoints:
            return []
        path = max(checkpoints, key=lambda checkpoint: _step_of(checkpoint.parent) or 0)
    next_step = "take it out of the folder to have the page without curves"
    history = _read(path, "runs", next_step).get("log_history")
    if not isinstance(history, list):
        raise InputError(f"runs: {path} holds no log_history; {next_step}")
    return [log for log in history if isinstance(log, dict) and "step" in log]


def _step_of(checkpoint: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None: it has another name."""
    _, _, step = checkpoint.name.partition("-")
    return int(step) if step.isdecimal() else None


def _records(folder: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, content) of each record in a folder; raises InputError: there is none, or one is not
    readable.
    """
    paths = [path for name in RECORDS if (path := Path(folder, name)).is_file()]
    if not paths:
        raise InputError(
            f"also: {folder} holds none of {', '.join(RECORDS)}; name the output of another recipe"
        )
    return [
        (path.name, _without_long_lists(_read(path, "also", "write it again"), path.name))
        for path in paths
    ]


def _read(path: Path, place: str, next_step: str) -> dict[str, Any]:
    """A JSON file's mapping; raises InputError, from `place` to the next step: it holds none."""
    record = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text("utf-8"))
    if not isinstance(record, dict):
        raise InputError(f"{place}: {path.parent} has no readable {path.name}; {next_step}")
    return record


def _without_long_lists(value: Any, file: str) -> Any:
    """The value with each list that would fill the page, such as of every item, replaced by how
    long it is.
    """
    if isinstance(value, dict):
        return {key: _without_long_lists(entry, file) for key, entry in value.items()}
    if isinstance(value, list) and len(json.dumps(value)) > LONG_CHARACTERS:
        return f"{len(value):,} entries, in {file}"
    return value


def _charts(
    records: Sequence[dict[str, Any]], curves: dict[str, list[dict[str, Any]]]
) -> list[str]:
    """An SVG of each logged value over steps. Losses on different texts, or in different tokens,
    are no lines of one chart.
    """
    names = short_names([record["name"] for record in records])
    charts = []
    for key, (label, part) in CURVES.items():
        groups: dict[tuple, dict[str, list[tuple[float, float]]]] = {}
        for record in records:
            logged = [
                log for log in curves[record["name"]] if isinstance(log.get(key), int | float)
            ]
            points = [(log["step"], log[key]) for log in logged]
            if points:
                measure = same_measure(record, part) if part else ()
                groups.setdefault(measure, {})[names[record["name"]]] = points
        for i, lines in enumerate(groups.values()):
            title = label if len(groups) == 1 else f"{label}: {', '.join(lines)}"
            charts.append(_chart(lines, title, f"{key}{i}"))
    return charts


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name's last part, or the whole of all where two would be alike."""
    last_parts = {name: Path(name).name or name for name in names}
    if len(set(last_parts.values())) == len(names):
        return last_parts
    return {name: name for name in names}


def _chart(lines: dict[str, list[tuple[float, float]]], title: str, salt: str) -> str:
    """An SVG with a line per run, in the colours of the page's theme; `salt` keeps the names in one
    SVG apart from those in another on the page.
    """
    style = STYLE | {"svg.hashsalt": salt}
    out = io.StringIO()
    with rc_context(style):  # type: ignore[arg-type]  # the stub wants each key as a literal
        figure = Figure(figsize=(5.4, 3), layout="constrained")
        axes = figure.subplots()
        for name, points in lines.items():
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 20 else ""  # many would hide the line
            axes.plot(steps, values, marker=marker, ms=3, lw=1.4, label=in_picture(name))
        axes.set_xlabel("step")
        axes.set_title(in_picture(title), wrap=True)
        if len(lines) > 1:
            axes.legend()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML header, which HTML has no place for
    svg = svg.replace("#000000", "currentColor")
    return svg.replace("<text ", '<text fill="currentColor" ')


def _pictures(folders: Sequence[str], room_bytes: int) -> list[dict[str, str]]:
    """Each PNG in the folders, as a data URI while there is room."""
    pictures = []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.png")):
            uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            if len(uri) < room_bytes:
                room_bytes -= len(uri)
            else:
                uri = ""
            pictures.append({"path": str(path), "uri": uri})
    return pictures
