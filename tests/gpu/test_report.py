"""Figures, verdicts and the two files."""

import json
import math

import pytest

from tests.gpu.report import HEADER, Figure, Result, markdown, write_report


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        (Figure("", "", 2.0, at_least=1.0), True),
        (Figure("", "", 0.5, at_least=1.0), False),
        (Figure("", "", math.nan, at_most=1.0), False),
        (Figure("", "", 1.05, interval=[0.9, 1.2], at_least=1.0), None),
        (Figure("", "", 1.05, interval=[1.01, 1.09], at_least=0.9, at_most=1.1), True),
        (Figure("", "", 1.05, interval=[1.2, 1.3], at_least=0.9, at_most=1.1), False),
    ],
)
def test_a_verdict_is_given_only_where_the_interval_allows_it(figure, holds):
    assert figure.holds() is holds


def test_one_json_and_one_table(tmp_path):
    results = [
        Result("step", "done", 3.2, [Figure("small", "speed", 1234.5, "tokens/s", [1.0, 2.0])]),
        Result("step", "done", 1.0, [Figure("small", "MFU", 40.0, "%", at_least=50)]),
        Result("sharding", "failed: Error: a | b", 0.4),
    ]
    write_report(tmp_path, results, {"device": "a card"}, is_trial=False)
    table = (tmp_path / "gpu.md").read_text().splitlines()
    assert table == [
        "device: a card",
        "",
        HEADER,
        "|---|---|---|---|---|---|---|",
        "| step | small | speed | 1,234 tokens/s | 1 to 2 |  |  |",
        "| step | | done (3 s) | | | | |",
        "| step | small | MFU | 40.0 % |  | at least 50 | NO |",
        "| step | | done (1 s) | | | | |",
        "| sharding | | failed: Error: a / b (0 s) | | | | |",
    ]
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert (content["trial"], content["about"]) == (False, {"device": "a card"})
    assert content["parts"][1]["figures"][0]["holds"] == "no"
    assert content["parts"][2]["status"] == "failed: Error: a | b"


def test_a_trial_is_marked_and_judges_nothing(tmp_path):
    results = [Result("step", "done", 1.0, [Figure("small", "MFU", 40.0, "%", at_least=50)])]
    assert "**A trial" in markdown(results, {}, is_trial=True)
    assert "NO" not in markdown(results, {}, is_trial=True)
    write_report(tmp_path, results, {}, is_trial=True)
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["trial"] and content["parts"][0]["figures"][0]["holds"] is None
