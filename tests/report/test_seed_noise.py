"""Seed noise: which runs tell it, how large it is, and when a difference is larger."""

import json
import math
import statistics

import pytest
from scipy.stats import ttest_ind

from hfscale.report.page import render_page
from hfscale.report.seed_noise import (
    compare_seeds,
    noise_of,
    seed_groups,
    siblings_of,
    single_reach,
)
from recipes import runs

RUN = {
    "recipe": "pretrain",
    "command": "pretrain",
    "config": {"learning_rate": 1e-3, "seed": 1, "data_seed": None, "output_dir": "a"},
    "data": {"fingerprint": {"train": "7c01", "validation": "ab12"}, "tokens": {"validation": 900}},
    "model": {"architecture": "GPT2LMHeadModel", "parameters": 1000},
    "hardware": {"device": "cpu", "world_size": 1},
    "train": {"steps": 7},
    "versions": {},
    "samples": [],
}
FIRST = (5.0, 5.02, 5.01)
SECOND = (4.9, 4.93)


def write_run(folder, seed, loss, rate=1e-3, text="ab12", **config):
    record = json.loads(json.dumps(RUN))
    record["config"] |= {"seed": seed, "learning_rate": rate, "output_dir": folder.name, **config}
    record["data"]["fingerprint"]["validation"] = text
    record["metrics"] = {
        "eval_loss": loss,
        "eval_perplexity": math.exp(loss),
        "eval_runtime": 3.0,
        "eval_tokens": 900,
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": []}))
    return record | {"name": folder.name}


@pytest.fixture
def place(tmp_path):
    """Two settings with three and two seeds, and a run of its own."""
    for seed, loss in enumerate(FIRST):
        write_run(tmp_path / f"a{seed}", seed, loss)
    for seed, loss in enumerate(SECOND):
        write_run(tmp_path / f"b{seed}", seed, loss, rate=2e-3)
    write_run(tmp_path / "c", 0, 4.0, rate=3e-3)
    return tmp_path


def test_a_group_is_of_runs_that_differ_in_their_seeds_alone(place):
    records = [write_run(place / "again" / str(i), seed, 5.0) for i, seed in enumerate((1, 1, 2))]
    other_data = write_run(place / "again" / "3", 1, 5.0, data_seed=7)
    other_rate = write_run(place / "again" / "4", 2, 5.0, rate=9e-3)
    other_text = write_run(place / "again" / "5", 3, 5.0, text="ef34")
    groups = seed_groups([*records, other_data, other_rate, other_text])
    # The second has the seeds of the first.
    assert [[record["name"] for record in group] for group in groups] == [["0", "2", "3"]]
    for record in records:
        record["data"] = {"fingerprint": {"train": None, "validation": None}}
    assert seed_groups(records) == []  # nobody knows what streams were judged on


def test_the_numbers_are_those_of_the_textbook():
    noise = noise_of(FIRST)
    assert noise == (statistics.mean(FIRST), statistics.stdev(FIRST), 3)
    found = compare_seeds(FIRST, SECOND)
    expected = ttest_ind(SECOND, FIRST).confidence_interval(0.95)
    assert found.difference == pytest.approx(-0.095)
    assert found.difference_ci95 == pytest.approx((expected.low, expected.high))
    assert found.is_shown and not compare_seeds(FIRST, (4.99, 5.02)).is_shown
    assert compare_seeds((5.0,), (4.0,)) is None
    # One of them may have a single seed.
    reach = single_reach([FIRST, (9.0,)])
    assert (reach.deviation, reach.seeds) == (pytest.approx(noise.deviation), 3)
    alone = compare_seeds(FIRST[:1], FIRST[:1])
    assert alone is None and single_reach([(5.0,), (4.0,)]) is None
    low, high = compare_seeds(FIRST, (5.0,)).difference_ci95
    # A run against a run: twice the variance in place of 1 / 3 and 1.
    assert reach.reach == pytest.approx((high - low) / 2 * (2 / (1 / 3 + 1)) ** 0.5)


def test_the_list_of_runs_shows_it(place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    write_run(place / "d0", 0, 4.0, rate=4e-3)
    write_run(place / "d1", 1, 4.0, rate=4e-3, text="ef34")
    runs.main([str(place)])
    shown = capsys.readouterr().out
    after = shown[shown.index("seed noise") :]
    assert "a0, a1, a2" in after and "b0, b1" in after and "eval_perplexity" not in after
    assert f"{statistics.stdev(FIRST):.4f}" in after and "eval_loss" in after
    assert "d0, d1: differ in their seed alone, but each held out another part of the text" in after
    runs.main([str(place), "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 8


def test_a_page_of_several_runs_says_whether_a_difference_is_larger(place):
    folders = [str(place / name) for name in ("a0", "a1", "a2", "b0", "b1", "c")]
    html = " ".join(render_page(folders).split())
    noise = html[html.index('id="noise"') : html.index('id="done"')]
    assert f'value="{statistics.stdev(FIRST)}"' in noise
    assert f'value="{statistics.fmean(SECOND) - statistics.fmean(FIRST)}"' in noise
    assert noise.count("larger than the seed noise.") == 4  # loss and perplexity, b and c
    assert "not larger" not in noise
    write_run(place / "e", 0, 5.015, rate=5e-3)
    html = " ".join(render_page([*folders[:3], str(place / "e")]).split())
    assert html.count("not larger than the seed noise: other seeds can make such a") == 2
    html = render_page([str(place / "a0"), str(place / "c")])
    assert "Not known: no two of these runs differ in their seed alone." in html
    assert 'id="noise"' not in render_page([str(place / "a0")])


def test_siblings_are_found_beside_a_run(place):
    (place / "broken").mkdir()
    (place / "broken" / "run.json").write_text("{")
    names = [record["name"] for record in siblings_of(place / "a1")]
    assert names == [str(place / name) for name in ("a1", "a0", "a2")]
    assert siblings_of(place / "c") == []
