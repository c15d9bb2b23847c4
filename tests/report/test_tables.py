"""Tables on the terminal: names whole, one format for a column, p-values as what they can say."""

import math

import pytest

from hfscale.report.tables import cell, in_one_format, number, p_value, show_records, show_table

NAMES = ["zero3_offload_with_a_long_name", "runs/pretrain-tiny", "[bold]/models"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.1436, 0.8428], ["0.1436", "0.8428"]),
        ([11.15, 471.5], ["11.15", "471.50"]),  # one alone: 471.5
        ([25.0, 4.23], ["25.000", "4.230"]),  # one alone: 25
        ([0.3777, 3500.0], ["0.3777", "3,500.0000"]),
        ([7300932, 12], ["7,300,932", "12"]),
        ([7300932.0, 12.0], ["7,300,932", "12"]),
        ([1.5e18, 3e20], ["1.500e+18", "3.000e+20"]),
        ([606_509_879.9, 32.5], ["6.065e+08", "3.250e+01"]),
        ([0.0004, -0.0002, 0.001], ["0.000400", "-0.000200", "0.001000"]),
        ([5e-5, 0.001], ["0.000050", "0.001000"]),
        ([2e-7, 0.5], ["2.000e-07", "5.000e-01"]),  # not a nought
        ([0.003, 4062.2], ["0.0030", "4,062.2000"]),
        ([0.0003, 4062.2], ["3.000e-04", "4.062e+03"]),
        ([206.4, 0.77, 91_110_256.02], ["2.064e+02", "7.700e-01", "9.111e+07"]),
        ([0.0, 3e-4, -4062.2], ["0", "3.000e-04", "-4.062e+03"]),  # not 0.000e+00
        ([0, 0.0], ["0", "0"]),
        ([0.5, None, "not given", True], ["0.5000", "none", "not given", "True"]),
        ([-1e-17, 2.5, math.nan, math.inf], ["0.000", "2.500", "nan", "inf"]),
        ([], []),
    ],
)
def test_numbers_of_a_column_have_one_format(values, shown):
    assert in_one_format(values) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1_557_611_200, "1,557,611,200"),
        (1_546_861_756_069_969_920, "1.547e+18"),
        (1.5e18, "1.500e+18"),
        (2725.504, "2,725.5"),
        (0.001, "0.001"),
        (None, "none"),
        (False, "False"),
    ],
)
def test_a_number_alone(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "floor", "shown"),
    [
        (2 / 1001, 2 / 1001, "< 0.002"),
        (4 / 1001, 2 / 1001, "0.004"),
        (1 / 10_001, 1 / 10_001, "< 0.0001"),
        (0.0014, 0.0014, "< 0.002"),
        (0.0625, None, "0.062"),
        (0.5, 2 / 1001, "0.5"),
    ],
)
def test_a_p_value_at_its_floor_is_below_it(value, floor, shown, capsys):
    record = {"p_value": value} | ({"p_value_floor": floor} if floor else {})
    assert p_value(value, floor) == shown
    assert cell(record, "p_value") == (shown if floor else number(value))
    if floor:
        show_records([record | {"name": "a"}])
        out = capsys.readouterr().out
        assert shown in out and "floor" not in out


@pytest.mark.parametrize("width", [80, 40, 20])
def test_no_name_and_no_number_is_broken(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [[name, *(f"{i}.{i}{i}{i}e+1{i}" for i in range(9))] for name in NAMES]
    show_table(
        ["config", *(f"GPU-hours-{i}" for i in range(9))],
        rows,
        title="the title",
        caption="the end",
    )
    out = capsys.readouterr().out
    for word in {word for row in rows for word in row} | {f"GPU-hours-{i}" for i in range(9)}:
        assert word in out
    assert out.count("the title") == out.count("the end") == 1
    parts = out.count("config")
    assert parts > 1 and out.count(NAMES[0]) in (1, parts)  # beside each part, or once above them
    assert max(map(len, out.splitlines())) <= max(width, len(f"1: {NAMES[0]}"))


def test_long_names_stand_above_a_table_that_must_be_cut(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    names = [f"runs/{'a-long-name-' * 4}{i}" for i in range(2)]
    show_table(["model", "tokens", "loss", "perplexity"], [[name, "1", "2", "3"] for name in names])
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [f"1: {names[0]}", f"2: {names[1]}"]
    assert out.count("model") == 1 and "│ 2     │ 1" in out and out.count(names[0]) == 1


def test_prose_is_broken_between_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    prose = "a sentence that is far longer than the line of the terminal, with commas"
    show_table(["name", "what"], [[NAMES[0], prose]])
    out = capsys.readouterr().out
    words = [word for line in out.splitlines() for word in line.split("│")[2:3]]
    assert " ".join(" ".join(words).split()) == prose and max(map(len, out.splitlines())) <= 60


def test_a_table_that_fits_stays_one(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show_records(
        [{"law": "a", "E": 1.5, "E_ci95": [1.25, 1.75]}, {"law": "b", "E": 12.0, "E_ci95": None}]
    )
    out = capsys.readouterr().out
    assert out.count("law") == 1 and "1.500 [1.250, 1.750]" in out and "12.000" in out
