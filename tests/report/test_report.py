"""The page of a run: every number on it is one of the files', nothing is fetched, and text cannot
become markup.
"""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from hfscale.cli import find_recipe
from hfscale.process import InputError
from hfscale.report import page as page_module
from hfscale.report.page import PAGE_LIMIT_BYTES, read_curve, render_page, write_page
from hfscale.report.settings import settings_that_matter
from recipes import report
from tests.browser import chromium, page_faults

RUN = {
    "schema_version": 1,
    "recipe": "pretrain",
    "command": "pretrain.py --seed 3",
    "config": {"seed": 3, "lr": 1e-3},
    "data": {
        "source": ["a.txt"],
        "documents": {"train": 1234567, "validation": 3},
        "tokens": {"validation": 900},
        "fingerprint": {"train": "7c01", "validation": "ab12"},
    },
    "model": {
        "architecture": "GPT2LMHeadModel",
        "parameters": 370432,
        "parameters_without_embeddings": 100096,
    },
    "hardware": {"device": "cpu", "world_size": 2},
    "versions": {"torch": "2.13.0", "peft": None},
    "train": {"tokens": 249856, "tokens_per_second": 2725.504590758705, "mfu": None},
    "metrics": {
        "eval_loss": 6.1928565986877375,
        "eval_perplexity": 489.2416791081111,
        "eval_bleu": 61.25,
        "eval_bleu_ci95": [58.123456, 64.5],
    },
    "samples": ["<script>alert(1)</script> & more"],
}
NUMBERS_OF = ("schema_version", "config", "data", "model", "hardware", "train", "metrics")
LOG = [{"step": 1, "loss": 7.5}, {"step": 2, "loss": 7.25}, {"step": 2, "eval_loss": 7.0}]


class Page(HTMLParser):
    """Values and texts of <data> elements, cells of the table of metrics, and addresses that a
    browser would fetch.
    """

    def __init__(self, html):
        super().__init__()
        self.values, self.fetched, self.tags, self.shown, self._value = [], [], set(), {}, None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attrs = dict(attrs)
        self._value = attrs.get("value") if tag == "data" else None
        if tag == "data":
            self.values.append(float(attrs["value"]))
        self.fetched += [
            v
            for k, v in attrs.items()
            if k in ("src", "href") and tag != "use" and not v.startswith(("#", "data:"))
        ]

    def handle_data(self, data):
        if self._value is not None:
            self.shown[self._value] = data
            self._value = None


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": LOG}))
    return folder


def test_every_number_is_the_one_in_the_file(run_folder):
    page = Page(render_page([str(run_folder)]))
    parts = {key: RUN[key] for key in NUMBERS_OF}
    logged = [value for log in LOG for value in log.values()]
    defaults = [setting.default for setting in settings_that_matter(RUN)]
    assert set(page.values) - set(numbers(defaults)) == {*numbers(parts), *logged}
    assert page.shown["489.2416791081111"] == "489.2" and page.shown["1234567"] == "1,234,567"
    assert page.shown["2725.504590758705"] == "2,725.5" and page.shown["0.001"] == "0.001"


def write_run(folder, **changes) -> str:
    """A run like RUN; `data` and `metrics` replace single entries."""
    record = json.loads(json.dumps(RUN))
    for name in ("data", "metrics", "config"):
        record[name] |= changes.pop(name, {})
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record | changes))
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": LOG}))
    return str(folder)


def tables(html: str) -> list[list[list[str]]]:
    """The page's tables of runs, as rows of cells without markup."""
    found = re.findall(r'<table class="runs">(.*?)</table>', html, re.S)
    rows = [re.findall("<tr>(.*?)</tr>", table, re.S) for table in found]
    return [
        [
            [
                re.sub("<[^>]+>", "", cell).strip()
                for cell in re.findall("<t[hd].*?>(.*?)</t[hd]>", row, re.S)
            ]
            for row in table
        ]
        for table in rows
    ]


def test_runs_stand_side_by_side(run_folder, tmp_path):
    other = write_run(tmp_path / "other", metrics={"eval_loss": 5.5})
    html = render_page([str(run_folder), other])
    metrics = html[html.index('<h2 id="metrics">') :]
    row = metrics[metrics.index('<th scope="row">loss</th>') :].split("</tr>")[0]
    assert row.count("<td>") == 2 and "6.1928565986877375" in row and '"5.5"' in row
    assert ">6.193<" in row and ">5.500<" in row  # in one format
    row = metrics[metrics.index('<th scope="row">perplexity</th>') :].split("</tr>")[0]
    assert row.count("<td>") == 2
    assert "cannot be compared" not in html


def test_runs_that_were_judged_on_different_texts_share_no_row(run_folder, tmp_path):
    alike = write_run(tmp_path / "alike", metrics={"eval_loss": 5.5})
    other = write_run(
        tmp_path / "other", data={"fingerprint": {"train": "7c01", "validation": "cd34"}}
    )
    streams = [
        write_run(tmp_path / name, data={"fingerprint": {"train": None, "validation": None}})
        for name in ("stream1", "stream2")
    ]
    runs = [str(run_folder), alike, other, *streams]
    html = render_page(runs)
    assert (
        "judged on 4 different held-out texts: numbers of different tables cannot be compared"
        in html
    )
    with_loss = [table for table in tables(html) if any(row[0] == "loss" for row in table)]
    assert [table[0][1:] for table in with_loss] == [
        [str(run_folder), alike],
        [other],
        [streams[0]],
        [streams[1]],
    ]
    assert "held-out text ab12, 3 documents" in html and "held-out text cd34" in html
    curves = html[html.index('<h2 id="curves">') : html.index('<h2 id="samples">')]
    assert (
        curves.count("<svg") == 2 * 4 - 1
    )  # stream1 and 2 were not trained on one known text either
    assert "held-out loss: run, alike" in curves and "held-out loss: other" in curves


def test_other_tokens_are_another_measure(run_folder, tmp_path):
    """The same text, cut into other tokens: losses per token have rows of their own, what does not
    depend on tokens stands side by side.
    """
    metrics = {"eval_loss": 3.5, "eval_bits_per_byte": 2.25, "eval_tokens": 700}
    other = write_run(tmp_path / "other", metrics=metrics, data={"tokens": {"validation": 700}})
    rows = {
        row[0]: row[1:] for table in tables(render_page([str(run_folder), other])) for row in table
    }
    assert rows["loss, of 900 tokens"] == ["6.193", "–"] and rows["loss, of 700 tokens"] == [
        "–",
        "3.5",
    ]
    assert (
        rows["bits per byte"] == ["–", "2.25"]
        and rows["bleu"][0].startswith("61.25")
        and "loss" not in rows
    )


def test_a_text_beside_the_held_out_one_has_a_table_of_its_own(run_folder, tmp_path):
    forget = {"train": "7c01", "validation": "ab12", "forget": "ef56"}
    metrics = {"eval_forget_loss": 4.5, "before_eval_forget_loss": 4.0}
    other = write_run(tmp_path / "other", metrics=metrics, data={"fingerprint": forget})
    html = render_page([str(run_folder), other])
    table = next(table for table in tables(html) if table[1][0] == "forget loss")
    assert table == [
        ["metric", other],
        ["forget loss", "4.5"],
        ["forget loss before training", "4"],
    ]
    assert "held-out text ef56 (forget)" in html and "cannot be compared" not in html


def test_a_comparison_begins_with_the_settings_that_differ(run_folder, tmp_path):
    other = write_run(
        tmp_path / "other", config={"lr": 5e-5, "output_dir": "elsewhere"}, recipe="finetune"
    )
    html = render_page([str(run_folder), other])
    first, *_ = tables(html)
    assert html.index(">What differs</h2>") < html.index(">Curves</h2>")
    assert first == [
        ["setting", str(run_folder), other],
        ["recipe", "pretrain", "finetune"],
        ["lr", "0.001", "5e-05"],
    ]
    alike = write_run(tmp_path / "alike")
    assert "No setting: the runs were asked for the same." in render_page([str(run_folder), alike])
    assert "What differs" not in render_page([str(run_folder)])
    own = write_run(tmp_path / "own", config={"lora_r": 4})
    not_shared, *_ = tables(render_page([str(run_folder), own]))
    assert not_shared == [["setting", str(run_folder), own], ["lora_r", "", "4"]]


def test_lists_are_tables_and_settings_are_folded(run_folder, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    points = [[370432 * i, 125000.0, 6.5 - i] for i in range(1, 4)]
    (study / "law.json").write_text(
        json.dumps({"laws": {"my_grid": {"points": points}}, "config": {"jobs": 7}})
    )
    stages = [
        {"stage": "source", "bytes_out": 10},
        {"stage": "quality", "bytes_out": 7, "rules": {"too_short": 3}},
    ]
    (study / "data_card.json").write_text(json.dumps({"stages": stages}))
    html = render_page([str(run_folder)], [str(study)])
    study_html = html[html.index('<h2 id="found">') : html.index('<h2 id="settings">')]
    heads = re.findall(r'<th scope="col">(.*?)</th>', study_html)
    assert heads == ["parameters N", "tokens D", "loss", "stage", "bytes out", "rules"] or (
        heads == ["stage", "bytes out", "rules", "parameters N", "tokens D", "loss"]
    )
    assert study_html.count("370,432") == 1
    assert ">my_grid<" in study_html and ">too_short<" in study_html
    folded = re.findall(r"<details><summary>every setting</summary>(.*?)</details>", html, re.S)
    assert len(folded) == 2 and ">jobs<" in folded[0] and ">seed<" in folded[1]


def test_p_values_at_their_floor_and_numbers_of_a_column(run_folder, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    tests = [
        {"group": "a", "p_value": 2 / 1002, "p_value_floor": 2 / 1002, "difference": 0.5},
        {"group": "b", "p_value": 0.25, "p_value_floor": 2 / 1002, "difference": 12.25},
    ]
    (study / "bias.json").write_text(json.dumps({"groups": tests}))
    html = render_page([str(run_folder)], [str(study)])
    assert ">&lt; 0.002</data>" in html and ">0.25</data>" in html and "p value floor" not in html
    assert ">0.5000</data>" in html and ">12.2500</data>" in html


def test_a_list_too_long_for_the_page_is_named(run_folder, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    (study / "bias.json").write_text(json.dumps({"items": [{"text": "x" * 50}] * 1000, "seed": 3}))
    html = render_page([str(run_folder)], [str(study)])
    assert "1,000 entries, in bias.json" in html and len(html) < 100_000


def test_curves_come_from_what_lies_in_the_folder(run_folder):
    state = run_folder / "trainer_state.json"
    for step in (9, 10):
        checkpoint = run_folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(
            json.dumps({"log_history": [{"step": step, "grad_norm": 1.0}]})
        )
    html = render_page([str(run_folder)])  # both losses of the run's own log, in one chart
    assert html.count("<svg") == 1 and "training loss goes from 7.5 at step 1" in html
    state.unlink()
    assert read_curve(str(run_folder)) == [{"step": 10, "grad_norm": 1.0}]  # the newest, by number
    html = render_page([str(run_folder)])
    assert html.count("<svg") == 1 and "gradient norm is 1 at step 10" in html
    assert "No trainer_state.json" not in html
    for folder in run_folder.glob("checkpoint-*"):
        shutil.rmtree(folder)
    html = render_page([str(run_folder)])
    assert html.count("<svg") == 0 and f"No trainer_state.json in {run_folder}." in html


def test_runs_of_one_name_are_told_apart_in_the_curves(tmp_path):
    runs = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    html = render_page(runs)
    assert all(
        html.count(f">{run}<") >= 2 for run in runs
    )  # the legend has no room for two of "run"


def test_it_fetches_nothing_and_text_stays_text(run_folder):
    html = render_page([str(run_folder)])
    page = Page(html)
    assert page.fetched == [] and "script" not in page.tags and "&lt;script&gt;" in html
    assert "@import" not in html and "url(http" not in html and html.count("<svg") == 1


def test_studies_and_pictures_are_shown_while_there_is_room(run_folder, tmp_path):
    (run_folder / "funnel.png").write_bytes(b"x" * 1000)
    (run_folder / "huge.png").write_bytes(b"x" * PAGE_LIMIT_BYTES)
    study = tmp_path / "study"
    study.mkdir()
    (study / "law.json").write_text(
        json.dumps({"laws": {"grid": {"E": 1.625, "E_ci95": [1.5, 1.75]}}})
    )
    html = render_page([str(run_folder)], [str(study)])
    assert (
        html.count("<img") == 1
        and "huge.png: too large for this page" in html
        and len(html) < 3_000_000
    )
    assert {1.625, 1.5, 1.75} <= set(Page(html).values)


def test_folders_without_a_record_are_refused(run_folder, tmp_path):
    with pytest.raises(
        InputError, match="has no readable run.json; name a folder of a finished run"
    ):
        render_page([str(tmp_path)])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="has no readable run.json"):
        render_page([str(tmp_path)])
    with pytest.raises(InputError, match="holds none of data_card.json"):
        render_page([str(run_folder)], [str(tmp_path / "run2")])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", "[]", "has no readable run.json; name a folder of a finished run"),
        ("run.json", "{", "has no readable run.json"),
        ("run.json", b"\xff\xfe", "has no readable run.json"),
        (
            "run.json",
            json.dumps(RUN | {"metrics": None}),
            "run.json (metrics is missing or of another kind)",
        ),
        (
            "run.json",
            json.dumps(RUN | {"samples": {}}),
            "run.json (samples is missing or of another kind)",
        ),
        ("run.json", json.dumps({**RUN, "recipe": 3}), "run.json (recipe is missing"),
        (
            "trainer_state.json",
            "[1]",
            "has no readable trainer_state.json; take it out of the folder",
        ),
        ("trainer_state.json", "{}", "holds no log_history; take it out of the folder"),
        ("scores.json", "[]", "also: {folder} has no readable scores.json"),
        ("law.json", "nothing", "also: {folder} has no readable law.json"),
    ],
)
def test_files_that_are_no_records_are_one_line(name, content, says, run_folder):
    (run_folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    also = [str(run_folder)] if says.startswith("also") else []
    with pytest.raises(InputError) as error:
        render_page([str(run_folder)], also)
    assert says.format(folder=run_folder) in str(error.value) and "\n" not in str(error.value)


def test_a_run_with_little_in_its_record_is_shown(run_folder):
    little = {name: RUN[name] for name in ("recipe", "command", "config")} | {
        "data": {},
        "model": {},
        "metrics": {},
    }
    (run_folder / "run.json").write_text(json.dumps(little))
    assert "pretrain.py --seed 3" in render_page([str(run_folder)])
    odd = [
        {"step": 1, "loss": "nan"},
        {"step": "1", "loss": 3.0},
        {"loss": 3.0},
        "text",
        {"step": 2, "loss": float("nan")},
    ]
    (run_folder / "trainer_state.json").write_text(json.dumps({"log_history": odd}))
    assert render_page([str(run_folder)]).count("<svg") == 1


def test_records_of_other_kinds_are_shown_as_they_are(run_folder, tmp_path):
    odd = {"source": "a.txt", "fingerprint": "7c01", "documents": {"train": "many"}}
    write_run(tmp_path / "odd", data=odd, metrics={"eval_loss": "low"}, train={"seconds": "long"})
    study = tmp_path / "study"
    study.mkdir()
    stages = [{"stage": "source", "documents_out": None, "bytes_out": "7"}]
    (study / "data_card.json").write_text(json.dumps({"stages": stages}))
    html = render_page([str(tmp_path / "odd")], [str(study)])
    assert "a.txt" in html and "7c01" in html and ">many<" in html and "long" in html


def test_what_was_no_metric_is_in_no_table_of_metrics(run_folder, tmp_path):
    """How long it took and how far it came are said once, under speed."""
    fast = {
        "eval_runtime": 0.25,
        "eval_samples_per_second": 8.5,
        "epoch": 0.75,
        "num_input_tokens_seen": 123,
        "router_loss": 1.5,
    }
    write_run(tmp_path / "fast", metrics=fast)
    for runs in ([str(tmp_path / "fast")], [str(run_folder), str(tmp_path / "fast")]):
        names = {row[0] for table in tables(render_page(runs)) for row in table}
        assert "router loss" in names
        assert not {"runtime", "samples per second", "epoch", "num input tokens seen"} & names


def test_data_is_a_table_with_a_column_for_each_part(tmp_path):
    examples = {"train": {"read": 9, "empty": 0}, "validation": {"read": 3, "empty": 0}}
    dropped = {"long": 0, "short": 4}
    run = write_run(tmp_path / "task", data={"examples": examples, "dropped": dropped})
    html = render_page([run])
    data = html[html.index('<h2 id="data">') : html.index('<h2 id="speed">')]
    rows = [re.findall(">([^<>]+)<", row) for row in re.findall("<tr>(.*?)</tr>", data, re.S)]
    assert rows[:3] == [
        ["text", "training", "held out"],
        ["documents", "1,234,567", "3"],
        ["tokens", "none", "900"],
    ]
    assert ["examples: read", "9", "3"] in rows and ["dropped: short", "4"] in rows
    assert "empty" not in data and "long" not in data  # nothing was


def test_the_funnel_is_drawn_where_a_data_card_lies(tmp_path):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    stages = [
        {"stage": "source", "documents_out": 40, "bytes_out": 800},
        {"stage": "quality", "documents_out": 30, "bytes_out": 500},
    ]
    (prepared / "data_card.json").write_text(json.dumps({"stages": stages}))
    (prepared / "funnel.png").write_bytes(b"x")
    run = write_run(tmp_path / "run", data={"source": [str(prepared)]})
    for html in (render_page([run]), render_page([run], [str(prepared)])):
        assert html.count('style="--share:62.50%"') == 1 and ">62.5%<" in html
        assert "<img" not in html  # the same once more, white in the dark


def test_one_run_is_not_beside_itself(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parent)
    with pytest.raises(
        InputError, match=f"runs: run/ is {run_folder}, which is named already; keep one"
    ):
        render_page([str(run_folder), "run/"])


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("/proc/page.html", "output_file /proc/page.html: cannot be written"),
        ("x" * 300, "cannot be written (File name too long); name another place"),
        ("run", "output_file run: run is a folder; name another place for the file"),
        ("run/run.json/page.html", "is not a folder that can be written to"),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line(place, says, run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parent)
    with pytest.raises(InputError) as error:
        report.main(["--runs", "run", "--output_file", place, "--overwrite"])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_recipe_writes_a_runs_own_page_anew_and_no_other(run_folder, capsys):
    page = run_folder / "report.html"
    command = [sys.executable, find_recipe("report"), "--runs", str(run_folder)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0 and "report.html" in first.stdout, first.stderr
    written = page.read_text()
    assert written.startswith("<!doctype html>")
    page.write_text(written.replace("6.1928565986877375", "1"))
    report.main(["--runs", str(run_folder)])
    assert page.read_text() == written
    for taken in (["--output_file", str(page)], []):  # named, or not ours
        with pytest.raises(InputError, match="holds report.html; name another"):
            report.main(["--runs", str(run_folder), *taken])
        page.write_text("<html>my own</html>")


def test_a_finished_run_leaves_its_page_and_nothing_of_others_is_lost(
    run_folder, capsys, monkeypatch
):
    write_page(run_folder)
    page = run_folder / "report.html"
    assert page.read_text() == render_page([str(run_folder)])
    page.write_text("<html>my own</html>")
    write_page(run_folder)
    assert page.read_text() == "<html>my own</html>" and capsys.readouterr().err == ""
    page.unlink()
    (run_folder / "trainer_state.json").write_text("[1]")
    write_page(run_folder)  # says why, and ends no run
    shown = capsys.readouterr().err
    assert shown.startswith(f"no {page}: ") and shown.count("\n") == 1 and not page.exists()
    monkeypatch.setattr(page_module, "render_page", lambda runs: 1 / 0)
    write_page(run_folder)
    assert capsys.readouterr().err == f"no {page}: division by zero\n"


# ---- in a real browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


CURVE = [
    {"step": 0, "eval_loss": 6.9, "eval_bits_per_byte": 3.6, "num_input_tokens_seen": 0},
    *(
        {
            "step": step,
            "loss": 6.9 - step / 20,
            "learning_rate": 1e-3 / step,
            "grad_norm": 1.0,
            "num_input_tokens_seen": 128 * step,
        }
        for step in range(5, 35, 5)
    ),
    {"step": 30, "eval_loss": 5.5, "eval_bits_per_byte": 2.9, "num_input_tokens_seen": 3840},
]
IN_THE_PAGE = """() => ({
  headline: document.querySelector(".headline data").value,
  lines: [...document.querySelectorAll("figure.chart")].flatMap(figure => {
    const plot = figure.querySelector("svg").getBoundingClientRect();
    const tables = figure.querySelectorAll("table.points");
    return [...figure.querySelectorAll("svg g")].map((group, i) => ({
      name: figure.querySelector("figcaption b").textContent,
      table: [...tables[i].querySelectorAll("data")].map(number => +number.value),
      dots: [...group.querySelectorAll(".dot")].map(dot => {
        const place = dot.getBoundingClientRect();
        return [(place.x - plot.x) / plot.width, 1 - (place.y - plot.y) / plot.height];
      }),
    }));
  }),
})"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with all that a page can show, and the page of it beside another run."""
    place = tmp_path_factory.mktemp("pages")
    prepared = place / "prepared"
    prepared.mkdir()
    stages = [
        {"stage": "source", "documents_out": 40, "bytes_out": 800},
        {"stage": "a stage with a long name", "documents_out": 30, "bytes_out": 500},
    ]
    (prepared / "data_card.json").write_text(json.dumps({"stages": stages}))
    memory = {"memory_peak_bytes": 600_000_000, "memory_planned_bytes": 4_000_000}
    run = write_run(
        place / "a-run-with-quite-a-long-name-that-has-no-space-anywhere-in-it",
        data={"source": [str(prepared)]},
        config={"metrics": ["bleu"], "prompt": "word " * 60, "name_of_a_file": "x" * 200},
        metrics={
            "before_eval_bleu": 2.5,
            "baseline_bleu": 30.0,
            "baseline_bleu_ci95": [28.0, 33.0],
            "eval_bits_per_byte": 2.9,
        },
        train=RUN["train"] | memory | {"seconds": 75.5, "steps": 30, "flops": 4e12},
        samples=["a sample\n" * 3, "y" * 300],
    )
    for folder, log in ((run, CURVE), (write_run(place / "other"), LOG)):
        (place / folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    pages = {"one": [run], "two": [run, str(place / "other")]}
    for name, runs in pages.items():
        (place / f"{name}.html").write_text(render_page(runs, [str(prepared)]), "utf-8")
    return place


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_page_is_read_on_a_desk_and_on_a_phone_by_day_and_by_night(name, written, browser):
    faults = page_faults(browser, (written / f"{name}.html").as_uri())
    assert len(faults) == 6 and not any(faults.values()), faults


def test_what_the_browser_shows_is_what_the_files_hold(written, browser):
    page = browser.new_page()
    page.goto((written / "one.html").as_uri())
    shown = page.evaluate(IN_THE_PAGE)
    page.close()
    assert float(shown["headline"]) == RUN["metrics"]["eval_bleu"]
    wanted = [
        (title, [(log["step"], log[key]) for log in CURVE if key in log])
        for title, key in (
            ("loss", "loss"),
            ("loss", "eval_loss"),
            ("learning rate", "learning_rate"),
            ("gradient norm", "grad_norm"),
        )
    ]
    assert [(line["name"], line["table"]) for line in shown["lines"]] == [
        (title, [number for point in points for number in point]) for title, points in wanted
    ]
    for first in (0, 2, 3):  # the lines of one chart have one scale
        of_chart = [i for i, (title, _) in enumerate(wanted) if title == wanted[first][0]]
        points = [point for i in of_chart for point in wanted[i][1]]
        dots = [dot for i in of_chart for dot in shown["lines"][i]["dots"]]
        for axis in (0, 1):
            places = [dot[axis] for dot in dots]
            numbers_there = [point[axis] for point in points]
            assert len(places) == len(numbers_there)
            slope, start = (
                np.polyfit(numbers_there, places, 1) if len({*numbers_there}) > 1 else (0, 0.5)
            )
            assert np.allclose(places, slope * np.array(numbers_there) + start, atol=1e-3)
            assert slope > 0 or len({*numbers_there}) == 1
