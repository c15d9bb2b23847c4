"""One self-contained HTML page of a run, or of several beside each other: it reads what the recipes
wrote, no more.
"""

import base64
import json
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from hfscale.folders import write_atomically
from hfscale.process import InputError
from hfscale.report.charts import Chart, Line, draw
from hfscale.report.comparison import (
    NO_MEASURE,
    beside,
    differing_settings,
    flat,
    judged_on,
    judged_tables,
    same_measure,
)
from hfscale.report.headline import against, bar_rows, compared, headline
from hfscale.report.rewards import rewards_of
from hfscale.report.seed_noise import (
    differences_of,
    noise_rows,
    said_of_other_texts,
    seed_groups,
)
from hfscale.report.settings import settings_that_matter
from hfscale.report.tables import (
    FLOOR,
    INTERVALS,
    duration,
    in_one_format,
    number,
    p_value,
    size_of,
)
from hfscale.run_record import read_json, read_record
from hfscale.shown import MARKDOWN_FILTERS, markdown_text, one_line, printable

# Records of other recipes, each shown in a section of its own where the folder holds it.
RECORDS = (
    "data_card.json",
    "scores.json",
    "comparison.json",
    "law.json",
    "attention.json",
    "bias.json",
    "memorization.json",
)
# Mail programs and browsers take a page of this size at once: pictures beyond it are named, not
# shown.
PAGE_LIMIT_BYTES = 2_800_000
LONG_CHARACTERS = 20_000  # of a list in a record: longer ones are named, not shown
# What is drawn over steps: the title, and on which part of the data it is measured (None: on none).
CURVES = {
    "loss": ("training loss", "train"),
    "eval_loss": ("held-out loss", "validation"),
    "divergence": ("divergence from the teacher", "train"),
    "learning_rate": ("learning rate", None),
    "grad_norm": ("gradient norm", None),
}
LOSSES = ("loss", "eval_loss")  # of one run, in one chart
# How far a run came, and how fast: no metrics. The page says them once, under speed.
NO_METRICS = (*NO_MEASURE, "epoch", "num_input_tokens_seen", "total_flos")
# What the pictures show that recipes write.
PICTURES = {
    "funnel.png": "what is left after each stage of cleaning",
    "comparison.png": "learning curves of the variants, and their differences, seed by seed",
    "scaling.png": "loss over training tokens and parameters, with the fitted law",
    "attention_maps.png": "what each token attends to, a map for each head",
    "caption_attention.png": "what the model looked at in a picture for each word that it wrote",
    "head_scores.png": "scores of the attention heads, over layers and heads",
    "perplexity_by_position.png": "perplexity over the position in the text",
}
DRAWN_ANEW = "funnel.png"  # by the page itself, from the card that lies beside it
PAGE = "report.html"  # in a run's folder
GENERATOR = "hfscale report"  # a page of ours says so in its head
HEAD_CHARACTERS = 1000
COLUMNS = {"points": ("parameters N", "tokens D", "loss")}  # of a list of lists, by its name
FOLDED = {"config": "every setting", "versions": "of every library"}
NAMED = ("laws", "rules", "examples", "canaries")  # mappings whose keys are names, not labels
SIDE_BY_SIDE = ("systems",)  # records with much in each: they are columns, what they say are rows


def write_page(folder: Path) -> None:
    """Write the page of a run that is finished into its folder, unless somebody else's page lies
    there. One that cannot be made ends no run: a line on stderr says why.
    """
    page = folder / PAGE
    if page.exists() and not is_own_page(page):
        return
    try:
        write_atomically(page, render_page([str(folder)]))
    except Exception as error:  # whatever it is: the model is trained and saved
        reason = one_line(str(error)) or type(error).__name__
        print(f"no {page}: {reason}", file=sys.stderr)


def is_own_page(page: Path) -> bool:
    """Whether a file is a page that this module wrote, which can be written anew from its run."""
    try:
        with page.open(encoding="utf-8") as file:
            head = file.read(HEAD_CHARACTERS)
    except (OSError, UnicodeDecodeError):
        return False
    return f'name="generator" content="{GENERATOR}"' in head


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
    with_comparison = {
        record["name"]: compared(record, curves[record["name"]]) for record in records
    }
    parts = {
        "runs": records,
        "headlines": {
            record["name"]: headline(record, curves[record["name"]]) for record in records
        },
        "compared": {name: metrics for name, metrics in with_comparison.items() if metrics},
        "settings": settings,
        "not_shared": not_shared,
        "settings_that_matter": settings_that_matter(records[0]),
        "tables": judged_tables(records),
        "others": _not_judged(records),
        "rewards": rewards_of(runs[0], curves[runs[0]]) if len(runs) == 1 else None,
        "noise": noise_rows(seed_groups(records)),
        "differences": differences_of(records),
        "of_other_texts": said_of_other_texts(records),
        "cards": _data_cards(records, studies),
        "found": studies,
        "charts": _charts(records, curves),
        "without_curve": [name for name, log in curves.items() if not log],
        "heads": COLUMNS,
        "folded": FOLDED,
        "side_by_side": SIDE_BY_SIDE,
        "named": NAMED,
        "generator": GENERATOR,
    }
    page = template(Path(__file__).with_name("page.html.j2"))
    size = len(page.render(**parts, pictures=[]))
    folders = list(dict.fromkeys([*runs, *also]))
    return page.render(**parts, pictures=_pictures(folders, PAGE_LIMIT_BYTES - size))


def _not_judged(records: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics that were not measured on a held-out text, but for how fast it went."""
    names = []
    for record in records:
        for name in shown_names([record["metrics"]]):
            is_metric = not judged_on(record, name) and not name.endswith(NO_METRICS)
            if is_metric and name not in names:
                names.append(name)
    return names


def _data_cards(
    records: Sequence[dict[str, Any]], studies: dict[str, list[tuple[str, dict[str, Any]]]]
) -> dict[str, dict[str, Any]]:
    """The data cards with stages, of the folders that the runs read and of those beside them."""
    cards = {
        folder: read_json(Path(folder, "data_card.json"), "runs", "write it again")
        for folder in _prepared_sources(records)
    }
    for folder, parts in studies.items():
        if "data_card.json" in (by_name := dict(parts)):
            cards[folder] = by_name["data_card.json"]
    return {folder: card for folder, card in cards.items() if _has_stages(card)}


def _has_stages(card: dict[str, Any]) -> bool:
    """Whether each stage says what it left."""
    stages = card.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return False
    counts = [stage.get(name) for stage in stages for name in ("documents_out", "bytes_out")]
    return bool(counts) and all(isinstance(count, int) for count in counts)


def _prepared_sources(records: Sequence[dict[str, Any]]) -> list[str]:
    """Folders of prepare_data that the runs read, whose pictures belong on the page."""
    sources = [source for record in records for source in sources_of(record["data"])]
    return [source for source in sources if Path(source, "data_card.json").is_file()]


def sources_of(data: dict[str, Any]) -> list[str]:
    """Where a run's text is from."""
    sources = data.get("source") or []
    return [str(each) for each in (sources if isinstance(sources, list) else [sources])]


@cache
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
        "sentence": lambda text: f"{text[:1].upper()}{text[1:]}.",
        "against": against,
        "breakable": lambda name: escape(printable(name)).replace("_", Markup("_<wbr>")),
        "bar_rows": bar_rows,
        "bar_texts": lambda rows: texts_of(
            [value for row in rows for value in (row.value, *(row.ci95 or ()))]
        ),
        "most": largest_end,
        "percent_of": percent_of,
        "data_table": data_table,
        "sources": sources_of,
        "duration": duration,
        "size": size_of,
        "whole": whole_record,
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
    before = re.fullmatch(r"before_eval_(.+)", name)
    if before:
        return f"{label_of(before[1])} before training"
    of_another = re.fullmatch(r"(baseline|teacher)_(.+)", name)
    if of_another:
        return f"{label_of(of_another[2])} of the {of_another[1]}"
    return re.sub("(^|, )eval_", r"\1", name).replace("_", " ")


def largest_end(rows: Sequence[Any]) -> float:
    """The longest bar, or the end of an interval beyond it; above 0."""
    ends = [row.value for row in rows] + [row.ci95[1] for row in rows if row.ci95]
    return max([*ends, 1e-12])


def percent_of(value: float, most: float, decimals: int = 2) -> str:
    """A share of the longest bar, as CSS has it."""
    share = min(max(value / most, 0.0), 1.0) if most > 0 else 0.0
    return f"{100 * share:.{decimals}f}%"


def data_table(data: dict[str, Any]) -> dict[str, Any]:
    """A run's text as a table: `parts` are its columns, `rows` name a fact and its number in each
    part, where one of them is not 0; `notes` are (name, value) of everything else.
    """
    fingerprints = data.get("fingerprint")
    parts = list(fingerprints) if isinstance(fingerprints, dict) else []
    rows: list[tuple[str, list[Any]]] = []
    notes = []
    for name, value in data.items():
        if name == "source":
            continue
        if isinstance(value, dict) and parts and set(parts) >= set(value):
            rows += _rows_of_parts(name, value, parts)
        elif isinstance(value, dict) and name != "fingerprint":
            counted = {key: inner for key, inner in flat(value).items() if inner}
            notes += [(f"{name}: {key}", inner) for key, inner in counted.items()]
        else:
            notes.append((name, value))
    rows.sort(key=lambda row: row[0] == "fingerprint")  # last: for programs, not for people
    return {"parts": parts, "rows": rows, "notes": notes}


def _rows_of_parts(
    name: str, value: dict[str, Any], parts: Sequence[str]
) -> list[tuple[str, list[Any]]]:
    """A row for a fact, or one for each of the facts in it, with a cell for each part."""
    inner = {key for each in value.values() if isinstance(each, dict) for key in each}
    if not inner:
        return [(name, [value.get(part) for part in parts])] if any(value.values()) else []
    keys = dict.fromkeys(key for each in value.values() if isinstance(each, dict) for key in each)
    rows = [
        (f"{name}: {key}", [(value.get(part) or {}).get(key) for part in parts]) for key in keys
    ]
    return [(label, cells) for label, cells in rows if any(cells)]


def whole_record(record: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds, but for what stands in full above."""
    return {key: value for key, value in record.items() if key not in ("samples", "name")}


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
    return read_record(folder, "runs") | {"name": folder}


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
    history = read_json(path, "runs", next_step).get("log_history")
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
        (path.name, _without_long_lists(read_json(path, "also", "write it again"), path.name))
        for path in paths
    ]


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
) -> list[Chart]:
    """What was logged over steps. Both losses of one run are one chart; of several, losses on
    different texts, or in different tokens, are no lines of one chart.
    """
    names = short_names([record["name"] for record in records])
    charts = []
    for keys in _charted(records):
        title = "loss" if keys == LOSSES else CURVES[keys[0]][0]
        groups: dict[tuple, list[Line]] = {}
        for record in records:
            for key in keys:
                name = CURVES[key][0] if len(records) == 1 else names[record["name"]]
                line = _line(name, curves[record["name"]], key)
                part = CURVES[key][1]
                measure = same_measure(record, part) if part and len(records) > 1 else ()
                if line.points:
                    groups.setdefault(measure, []).append(line)
        for lines in groups.values():
            drawn = ", ".join(line.name for line in lines)
            alone = len(groups) == 1 or len(records) == 1
            charts.append(
                draw(
                    title if alone else f"{title}: {drawn}",
                    lines,
                    unit=_unit(keys[0], records),
                    is_small=keys[0] not in LOSSES,
                )
            )
    return charts


def _unit(key: str, records: Sequence[dict[str, Any]]) -> str:
    """Of the losses of language modelling; preferences have another loss, and no perplexity."""
    per_token = all("eval_perplexity" in record["metrics"] for record in records)
    return "nats per token" if key in LOSSES and per_token else ""


def _charted(records: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Which logged values share a chart."""
    if len(records) > 1:
        return [(key,) for key in CURVES]
    return [LOSSES, *((key,) for key in CURVES if key not in LOSSES)]


def _line(name: str, history: Sequence[dict[str, Any]], key: str) -> Line:
    """A logged value over steps, with the tokens that had been seen."""
    logged = [
        log
        for log in history
        if isinstance(log.get(key), int | float) and isinstance(log["step"], int | float)
    ]
    return Line(
        name,
        [(log["step"], log[key]) for log in logged],
        [log.get("num_input_tokens_seen") for log in logged],
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name's last part, or the whole of all where two would be alike."""
    last_parts = {name: Path(name).name or name for name in names}
    if len(set(last_parts.values())) == len(names):
        return last_parts
    return {name: name for name in names}


def _pictures(folders: Sequence[str], room_bytes: int) -> list[dict[str, str]]:
    """Each PNG in the folders, as a data URI while there is room."""
    pictures = []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.png")):
            if path.name == DRAWN_ANEW and path.with_name("data_card.json").is_file():
                continue
            uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            if len(uri) < room_bytes:
                room_bytes -= len(uri)
            else:
                uri = ""
            shows = PICTURES.get(path.name, path.stem.replace("_", " "))
            pictures.append({"path": str(path), "uri": uri, "shows": shows})
    return pictures
