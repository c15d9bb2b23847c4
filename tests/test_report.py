"""The page of a run: every number on it is one of the files', nothing is fetched, and text cannot become markup."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from hfscale.cli import find_recipe
from hfscale.config import InputError
from hfscale.report.page import PAGE_LIMIT_BYTES, render_page

RUN = {"schema_version": 1, "recipe": "pretrain", "command": "pretrain.py --seed 3", "config": {"seed": 3, "lr": 1e-3},
       "data": {"source": ["a.txt"], "documents": {"train": 1234567, "validation": 3}},
       "model": {"architecture": "GPT2LMHeadModel", "parameters": 370432, "parameters_without_embeddings": 100096},
       "hardware": {"device": "cpu", "world_size": 2}, "versions": {"torch": "2.13.0", "peft": None},
       "train": {"tokens": 249856, "tokens_per_second": 2725.504590758705, "mfu": None},
       "metrics": {"eval_loss": 6.1928565986877375, "eval_perplexity": 489.2416791081111, "eval_bleu": 61.25,
                   "eval_bleu_ci95": [58.123456, 64.5]}, "samples": ["<script>alert(1)</script> & more"]}
LOG = [{"step": 1, "loss": 7.5}, {"step": 2, "loss": 7.25}, {"step": 2, "eval_loss": 7.0}]


class Page(HTMLParser):
    """Values and texts of <data> elements, cells of the table of metrics, and addresses that a browser would fetch."""

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
        self.fetched += [v for k, v in attrs.items() if k in ("src", "href") and tag != "use"
                         and not v.startswith(("#", "data:"))]

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
    named = numbers({key: RUN[key] for key in ("config", "data", "model", "hardware", "train", "metrics")})
    assert sorted(page.values) == sorted(named)
    assert page.shown["489.2416791081111"] == "489.2" and page.shown["1234567"] == "1,234,567"
    assert page.shown["2725.504590758705"] == "2,725.5" and page.shown["0.001"] == "0.001"


def test_runs_stand_side_by_side(run_folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    record = RUN | {"metrics": {"eval_loss": 5.5}}
    (other / "run.json").write_text(json.dumps(record))
    html = render_page([str(run_folder), str(other)])
    row = html[html.index('<th scope="row">loss</th>'):].split("</tr>")[0]
    assert row.count("<td>") == 2 and "6.1928565986877375" in row and '"5.5"' in row
    row = html[html.index('<th scope="row">perplexity</th>'):].split("</tr>")[0]
    assert "<td>–</td>" in row  # not measured in the other run


def test_it_fetches_nothing_and_text_stays_text(run_folder):
    html = render_page([str(run_folder)])
    page = Page(html)
    assert page.fetched == [] and "script" not in page.tags and "&lt;script&gt;" in html
    assert "@import" not in html and "url(http" not in html and html.count("<svg") == 2


def test_studies_and_pictures_are_shown_while_there_is_room(run_folder, tmp_path):
    (run_folder / "funnel.png").write_bytes(b"x" * 1000)
    (run_folder / "huge.png").write_bytes(b"x" * PAGE_LIMIT_BYTES)
    study = tmp_path / "study"
    study.mkdir()
    (study / "law.json").write_text(json.dumps({"laws": {"grid": {"E": 1.625, "E_ci95": [1.5, 1.75]}}}))
    html = render_page([str(run_folder)], [str(study)])
    assert html.count("<img") == 1 and "huge.png: too large for this page" in html and len(html) < 3_000_000
    assert {1.625, 1.5, 1.75} <= set(Page(html).values)


def test_folders_without_a_record_are_refused(run_folder, tmp_path):
    with pytest.raises(InputError, match="has no readable run.json; name a folder of a finished run"):
        render_page([str(tmp_path)])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="has no readable run.json"):
        render_page([str(tmp_path)])
    with pytest.raises(InputError, match="holds none of data_card.json"):
        render_page([str(run_folder)], [str(tmp_path / "run2")])


def test_the_recipe_writes_the_page_once(run_folder):
    command = [sys.executable, find_recipe("report"), "--runs", str(run_folder)]
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0 and "report.html" in first.stdout, first.stderr
    assert second.returncode == 2 and "exists; name another or pass --overwrite" in second.stderr
    assert (run_folder / "report.html").read_text().startswith("\n") is False
