"""Text of files, models and users is text wherever it is shown: no page, card or table takes it for
markup, and no terminal obeys it.
"""

import contextlib
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from markdown_it import MarkdownIt
from rich.text import Text

from hfscale.cleaning.card import show_card, write_data_card
from hfscale.cleaning.stages import Ledger
from hfscale.data.sources import say
from hfscale.evaluation.score_report import show_scores
from hfscale.generation.terminal import show_completions, show_samples
from hfscale.probes.attention_page import OF_READING, as_text, write_page
from hfscale.process import InputError, run
from hfscale.report.page import render_page
from hfscale.report.tables import show_records, show_table
from hfscale.scaling.page import print_law
from hfscale.shown import (
    code_block,
    code_span,
    in_markdown,
    one_line,
    printable,
    python_text,
)
from hfscale.tasks.measures import show_answers
from hfscale.training.model_card import write_model_card
from tests.training.test_model_card import record_with

NASTY = (
    "<script>alert(1)</script> [x](javascript:alert(1)) ![](http://a.b/c.png) http://a.b "
    "www.a.b me@a.b | `code` ```` `` [/x] [red]x[/red] $x_{1$ {{ 7*7 }} {% if %} </pre> </data> "
    "<img src=x onerror=alert(1)> *a* _b_ # h \\ &lt; \x1b]0;title\x07 \x1b[31mred\x1b[0m "
    "\x1b]8;;http://a.b\x1b\\ \u202egnp.exe\u202c \x9b31m \x00 \x08 \r end"
)
BLOCK = f"{NASTY}\n```\n# heading\n<b>x</b>\n~~~\n    code\n- item\n| a | b |\n</pre></details>"
# What a terminal obeys, but for tabs, line ends, and the styles that rich itself writes.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Tags(HTMLParser):
    """Names of the elements of a page, and the addresses in it."""

    def __init__(self, html: str):
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "onerror")]


def markdown_tokens(text: str) -> list:
    """Tokens of a page as CommonMark with tables has it, those within lines among them."""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    return [inner for token in tokens for inner in (token, *(token.children or ()))]


def check_markdown(text: str) -> None:
    """Nothing of the nasty text became an element, and every table has the cells of its head."""
    assert not OBEYED.search(text)
    tokens = markdown_tokens(text)
    kinds = {
        token.type for token in tokens if not token.content.startswith("<!-- Written by a run")
    }
    assert not kinds & {"html_inline", "html_block", "link_open", "em_open", "code_block"}
    images = [token.attrs["src"] for token in tokens if token.type == "image"]
    assert images in ([], ["funnel.png"])
    headings = [
        tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"
    ]
    assert "heading" not in headings
    lines = re.sub(r"(?s)(`{3,}).*?\n\1", "", text).splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if before.startswith("|") and line.startswith("|"):
            columns = [len(re.findall(r"(?<!\\)\|", row)) for row in (before, line)]
            assert columns[0] == columns[1], line


# ---- the words


def test_printable_drops_what_is_obeyed_and_keeps_the_rest():
    assert printable("a\x1b]0;t\x07b\x1b[1;31mc\x1b(Bd\x1bPq\x1b\\e\x9bf\x00\r\n\tg\u202eh") == (
        "abcdef\n\tgh"
    )
    assert printable("a\x1b]0;never ended") == "a0;never ended"
    for text in ("grüße 你好 \u200dاب é\n\tx", "[b]{}|`<>"):
        assert printable(text) == text
    assert one_line(" a\n\n b\x1b[2J\tc ") == "a b c"


def test_long_texts_of_beginnings_are_dropped_at_once():
    text = "\x1b]" * 200_000 + "\x1b[" * 200_000
    assert "\x1b" not in printable(text)


@pytest.mark.parametrize(
    "text",
    [
        "<b>",
        "[a](b)",
        "![a](b)",
        "a|b",
        "*a* _b_ __c__",
        "`a`",
        "http://a.b",
        "&amp;",
        "~~a~~",
        NASTY,
    ],
)
def test_markdown_shows_the_text_and_nothing_else(text):
    [line] = [
        token
        for token in MarkdownIt("commonmark").enable("table").parse(in_markdown(text))
        if token.type == "inline"
    ]
    assert {child.type for child in line.children} <= {"text", "text_special"}
    assert "".join(child.content for child in line.children) == one_line(text)


def test_names_of_metrics_stay_readable():
    assert in_markdown("eval_loss, rouge-L (95 %): 1.5") == "eval_loss, rouge-L (95 %): 1.5"


@pytest.mark.parametrize("text", ["a", "`", "``a`", "a|b", BLOCK])
def test_code_holds_the_text_itself(text):
    block = MarkdownIt("commonmark").parse(f"before\n\n{code_block(text)}\n\nafter")
    [fence] = [token for token in block if token.type == "fence"]
    assert fence.content == printable(text) + "\n" and block[-2].content == "after"
    table = f"| a |\n| --- |\n| {code_span(text)} |\n"
    cells = MarkdownIt("commonmark").enable("table").parse(table)
    [span] = cells[-4].children if cells[-4].children else cells[-5].children
    assert span.type == "code_inline" and span.content == one_line(text)


def test_python_reads_the_text_back():
    assert eval(python_text(NASTY)) == printable(NASTY)


# ---- the pages


def nasty_values(value):
    """The value with the nasty text in the place of each text in it; names stay."""
    if isinstance(value, dict):
        return {key: nasty_values(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [nasty_values(entry) for entry in value]
    return NASTY if isinstance(value, str) else value


class Task:
    """A task prompt of which each text is nasty."""

    prompt = f"{{{NASTY}}} {BLOCK}"
    columns = (NASTY,)
    stop_strings = (BLOCK,)
    max_new_tokens = 5


@pytest.mark.parametrize("adapter", [None, NASTY])
@pytest.mark.parametrize("task", [None, Task])
def test_model_card(tmp_path, adapter, task):
    record = nasty_values(record_with())
    sizes = {NASTY: NASTY}
    record |= {
        "command": f"hfscale {shlex.quote(NASTY)}",
        "data": {"source": [NASTY]}
        | dict.fromkeys(("documents", "bytes", "tokens", "fingerprint"), sizes),
        "samples": [NASTY, BLOCK],
        "metrics": {NASTY: 1.5, f"{NASTY}_ci95": [1, 2], "eval_loss": 2.0},
        "versions": {NASTY: NASTY},
        "config": {"license": None, "language": None, "trust_remote_code": True},
    }
    record["model"] |= {"adapter": adapter}
    folder = tmp_path / re.sub("[/\x00]", "_", NASTY)[:60]
    folder.mkdir()
    write_model_card(folder, record, task=task)
    text = (folder / "README.md").read_text()
    check_markdown(text)
    code, *samples = [token.content for token in markdown_tokens(text) if token.type == "fence"]
    assert samples == [printable(NASTY) + "\n", printable(BLOCK) + "\n"]
    compile(code, "card", "exec")


def nasty_ledger(folder: Path) -> Ledger:
    ledger = Ledger(folder / "dropped.jsonl")
    stage = {
        "stage": NASTY,
        "documents_in": 2,
        "documents_out": 1,
        "bytes_in": 20,
        "bytes_out": 10,
        "rules": {NASTY: 1},
        "languages": {NASTY: 1},
        "largest": [{"documents": 2, "id": NASTY, "text_begins": BLOCK}],
    }
    ledger.stages.append(stage)
    ledger.examples[NASTY] = [{"id": NASTY, "value": NASTY, "text_begins": BLOCK}]
    ledger.notes = lambda: [NASTY]
    return ledger


def test_data_card(tmp_path, capsys):
    splits = DatasetDict({"train": Dataset.from_dict({"text": [NASTY]})})
    config = {"validation_fraction": 0.0, "test_fraction": 0.0}
    card = write_data_card(tmp_path, nasty_ledger(tmp_path), splits, record={"config": config})
    check_markdown((tmp_path / "data_card.md").read_text())
    show_card(card, examples=True)
    shown = capsys.readouterr().out
    assert not OBEYED.search(shown) and "[/x]" in shown


def test_report_page(tmp_path):
    run_record = {
        "recipe": NASTY,
        "command": NASTY,
        "config": {"seed": 1, NASTY: BLOCK},
        "data": {
            "source": [NASTY],
            "documents": {"train": 3, NASTY: 4},
            "fingerprint": {NASTY: NASTY},
        },
        "model": {"architecture": NASTY, "parameters": 4},
        "hardware": {"device": NASTY},
        "versions": {NASTY: NASTY},
        "train": {NASTY: NASTY},
        "metrics": {"eval_loss": 1.0, NASTY: NASTY},
        "samples": [NASTY, BLOCK],
    }
    log = [{"step": 1, "loss": 7.5}, {"step": 2, "loss": 7.25}]
    names = []
    for name in ("$a_{b$ <script>x</script>", "b\x1b]0;t\x07\u202e|[/x]"):
        names.append(str(tmp_path / name.replace("/", "_")))
        Path(names[-1]).mkdir()
        Path(names[-1], "run.json").write_text(json.dumps(run_record))
        Path(names[-1], "trainer_state.json").write_text(json.dumps({"log_history": log}))
    study = tmp_path / "study"
    study.mkdir()
    for name in ("scores.json", "law.json", "bias.json"):
        (study / name).write_text(json.dumps({NASTY: NASTY, "systems": [{NASTY: [NASTY]}]}))
    page = render_page(names, [str(study)])
    assert not OBEYED.search(page)
    tags = Tags(page)
    assert not tags.names & {"script", "img", "b x"} and "svg" in tags.names
    assert all(address.startswith("#") for address in tags.addresses)
    assert "&lt;script&gt;" in page and "49" not in page.split("samples")[-1][:3000]


def test_attention_page(tmp_path):
    record = {
        "model": {"name": NASTY},
        "sentence": NASTY,
        "tokens": [NASTY, BLOCK],
        "loss": 1.0,
        "score_names": [NASTY],
        "heads": [{"layer": 0, "head": 0, NASTY: 0.5}],
        "logit_lens": [{"loss": 1.0, "top": [[[NASTY, 0.5]], [[BLOCK, 0.5]]]}],
        "explain": None,
    }
    record["held_out"] = {name: record[name] for name in OF_READING}
    maps = np.ones((1, 2, 2, 2), np.float32)
    write_page(tmp_path / "page.html", record, [maps, maps])
    page = (tmp_path / "page.html").read_text()
    assert not OBEYED.search(page) and "\\u001b" not in page
    assert page.count("<script") == 2 and "onerror=alert" in page and "<img" not in page
    assert not OBEYED.search(as_text(record | {"heads": [], "score_names": []}))


# ---- the terminal

RECORD = {"name": NASTY, NASTY: BLOCK, "value": 1.5}
SCORES = {
    "systems": [
        {"name": NASTY, "metrics": {NASTY: 1.0}, "notes": {NASTY: NASTY}, "setting": NASTY}
    ],
    "comparisons": [
        {"first": NASTY, "second": NASTY, "metric": NASTY, "note": NASTY, "difference": 0.5}
    ],
    "data": {"counts": {}, "notes": [NASTY], "unit": NASTY, "fingerprint": NASTY},
}
LAW = {
    "laws": {
        NASTY: {
            "E": 1.0,
            "points": [],
            "splits": [{"flops": 1.0, "at": NASTY}],
            "warnings": [NASTY],
        }
    },
    "forecasts": [],
    "dropped": [NASTY, {"line": 3, "reason": NASTY}],
}


def end_in_an_error() -> None:
    def fail():
        raise InputError(NASTY)

    with contextlib.suppress(SystemExit):
        run(fail)


WRITERS = {
    "table": lambda: show_table(
        (NASTY, "b"), [(NASTY, BLOCK), (Text("styled"), "")], title=NASTY, caption=NASTY
    ),
    "narrow table": lambda: show_table(["a", *"bcdefgh"], [(NASTY * 3, *[NASTY] * 7)]),
    "records": lambda: show_records([RECORD], title=NASTY),
    "completions": lambda: show_completions(NASTY, [NASTY, BLOCK]),
    "samples": lambda: show_samples([NASTY, BLOCK]),
    "lines of sources": lambda: say([NASTY]),
    "error": end_in_an_error,
    "scores": lambda: show_scores(SCORES, Path(NASTY)),
    "law": lambda: print_law(LAW),
    "task": lambda: show_answers(
        {"eval_exact_match": 1.0, "before_eval_exact_match": 0.5}, NASTY, [NASTY], {NASTY: NASTY}
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_passes_on_what_a_terminal_obeys(name, capsys):
    WRITERS[name]()
    shown = "".join(capsys.readouterr())
    assert shown.strip() and not OBEYED.search(shown)
    assert "[/x]" in shown and "[red]x[/red]" in shown  # no markup, and not left out
