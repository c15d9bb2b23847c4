"""Metrics of the user's own in `score`: a function, an evaluate metric's folder, and bad ones."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hfscale.config import parse_args
from hfscale.metrics.evaluate_metrics import check_metric_names
from hfscale.metrics.user_metrics import as_numbers
from hfscale.process import InputError
from recipes import score

ANSWERS = [("the cat", "the cat"), ("a dog ran", "a dog"), ("", "no"), ("yes", "yes")]
METRICS_FILE = """
import numpy as np
import helper

def length(predictions, references):
    return helper.mean_length(predictions)

def starts_right(predictions, references):
    return [text[:1] == golds[0][:1] for text, golds in zip(predictions, references)]

def both(predictions, references, scale=1):
    lengths = np.array([len(text) for text in predictions]) * scale
    return {"characters": lengths, "longest": int(lengths.max())}

def raises(predictions, references):
    return 1 / predictions.count("nothing")

def stops(predictions, references):
    raise SystemExit(0)

def nothing(predictions, references):
    return None

def word(predictions, references):
    return "good"

def empty(predictions, references):
    return {}

def no_number(predictions, references):
    return float("nan")

def one_infinite(predictions, references):
    return [1.0] * (len(predictions) - 1) + [float("inf")]

def too_few(predictions, references):
    return [1.0] * (len(predictions) - 1)

def items(predictions, references):
    return 1.0

def chrf(predictions, references):
    return 1.0

def only_predictions(predictions):
    return 1.0
"""
FOLDER_METRIC = """
import datasets
import evaluate

class {name}(evaluate.Metric):
    def _info(self):
        features = datasets.Features(
            predictions=datasets.Value("{kind}"), references={references}
        )
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions, references, scale=1):
        return {{
            "mean_characters": scale * sum(map(len, predictions)) / len(predictions),
            "characters_each": [len(text) for text in predictions],
            "by_length": [1.0, 2.0],
            "kind": "characters",
        }}
"""
STRING = 'datasets.Value("string")'


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with predictions, functions and evaluate metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"prediction": text, "references": [gold]} for text, gold in ANSWERS]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("better.jsonl").write_text(
        "".join(json.dumps(row | {"prediction": row["references"][0]}) + "\n" for row in rows)
    )
    Path("several.jsonl").write_text('{"prediction": "a", "references": ["a", "b"]}\n')
    Path("mine.py").write_text(METRICS_FILE)
    Path("helper.py").write_text(
        "def mean_length(texts):\n    return sum(map(len, texts)) / len(texts)\n"
    )
    Path("broken.py").write_text("def length(:\n")
    Path("failing.py").write_text("import json\njson.loads('{')\n")
    for folder, kind, references in (
        ("characters", "string", STRING),
        ("lists", "string", f"datasets.List({STRING})"),
        ("numbers", "int32", 'datasets.Value("int32")'),
    ):
        Path(folder).mkdir()
        Path(folder, f"{folder}.py").write_text(
            FOLDER_METRIC.format(name=folder.title(), kind=kind, references=references)
        )
    Path("nothing").mkdir()
    Path("no_class").mkdir()
    Path("no_class/no_class.py").write_text("x = 1\n")
    return tmp_path


def scores_of(*words: str) -> dict:
    score.main([*words, "--output_dir", "out", "--overwrite"])
    return json.loads(Path("out/scores.json").read_text())


def test_a_function_gives_one_number_or_one_per_item():
    record = scores_of(
        *("--predictions", "answers.jsonl", "better.jsonl", "--metrics", "exact_match"),
        *("mine.py:length", "mine.py:starts_right", "mine.py:both"),
        *("--metric_options", '{"mine.py:both": {"scale": 10}}'),
    )
    metrics = record["systems"][0]["metrics"]
    lengths = np.array([len(text) for text, _ in ANSWERS])
    assert metrics["eval_length"] == lengths.mean() and "eval_length_ci95" not in metrics
    assert "no interval" in record["systems"][0]["notes"]["eval_length"]
    assert metrics["eval_starts_right"] == 3 / 4
    # The same items, right and wrong, as exact match would have them: 100 times its interval.
    low, high = metrics["eval_starts_right_ci95"]
    assert low < 3 / 4 < high == 1
    assert metrics["eval_characters"] == 10 * lengths.mean()
    assert metrics["eval_longest"] == 10 * lengths.max()
    assert metrics["eval_exact_match"] == 50
    # What has a number per item is compared; one number for all cannot be.
    assert [row["metric"] for row in record["comparisons"]] == [
        "eval_exact_match",
        "eval_starts_right",
        "eval_characters",
    ]
    assert record["comparisons"][1]["difference"] == 1 / 4
    signatures = record["systems"][0]["signatures"]
    assert re.fullmatch(r"function:both\|sha256:[0-9a-f]{16}\|scale:10", signatures["mine.py:both"])


def test_a_function_per_item_has_the_interval_of_a_built_in_metric():
    Path("exact.py").write_text(
        "def exact(predictions, references):\n"
        "    return [100 * (text in golds) for text, golds in zip(predictions, references)]\n"
    )
    record = scores_of(
        "--predictions", "answers.jsonl", "--metrics", "exact.py:exact", "exact_match"
    )
    metrics = record["systems"][0]["metrics"]
    assert metrics["eval_exact"] == metrics["eval_exact_match"]
    assert metrics["eval_exact_ci95"] == metrics["eval_exact_match_ci95"]


@pytest.mark.parametrize("folder", ["characters", "./lists/"])
def test_a_folder_holds_an_evaluate_metric(folder):
    record = scores_of("--predictions", "answers.jsonl", "--metrics", folder, "bleu")
    metrics = record["systems"][0]["metrics"]
    mean = sum(len(text) for text, _ in ANSWERS) / len(ANSWERS)
    assert metrics["eval_mean_characters"] == metrics["eval_characters_each"] == mean
    assert "eval_characters_each_ci95" in metrics and "eval_mean_characters_ci95" not in metrics
    # Two numbers for four items, and a text, are no values.
    assert "eval_by_length" not in metrics and "eval_kind" not in metrics
    assert record["systems"][0]["signatures"][folder].startswith(f"module:{Path(folder).name}|")


def test_yaml_names_metrics_as_the_command_line_does():
    Path("mine.yaml").write_text(
        "metrics: [chrf, 'mine.py:both', characters]\n"
        "metric_options: {'mine.py:both': {scale: 2}, characters: {scale: 3}}\n"
        "predictions: answers.jsonl\n"
    )
    metrics = scores_of("--config", "mine.yaml")["systems"][0]["metrics"]
    assert metrics["eval_characters"] * 3 == metrics["eval_mean_characters"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "rogue",
            r"^metrics: got 'rogue', expected one of bleu, chrf, .*, FILE\.py:FUNCTION, .*; did "
            r"you mean rouge\?$",
        ),
        ("perplexity", "^metrics: got 'perplexity', expected one of bleu"),
        ("mine.py", r"^metrics: got 'mine\.py', expected one of .* FILE\.py:FUNCTION"),
        ("some/metric", "^metrics: got 'some/metric', .* with --trust_remote_code a Hub id"),
        ("some/metric --trust_remote_code", "^metrics: some/metric: .*doesn't exist"),
        ("absent.py:length", r"^metrics: absent\.py:length: no such file absent\.py"),
        ("mine.py:lenght", r"no function 'lenght' in mine\.py; did you mean length\?"),
        ("mine.py:np", "no function 'np' in mine"),
        ("broken.py:length", r"broken\.py:1: not Python"),
        (
            "failing.py:length",
            r"raised JSONDecodeError in failing\.py:2: ",
        ),
        (
            "mine.py:raises",
            r"mine\.py:raises: raised ZeroDivisionError in .*mine\.py:\d+: division by zero",
        ),
        ("mine.py:stops", r"raised SystemExit in .*: 0"),
        ("mine.py:nothing", "returned None as nothing for 4 items; expected a number, one number"),
        ("mine.py:word", "returned 'good' as word for 4 items"),
        ("mine.py:empty", "returned no value"),
        ("mine.py:no_number", "returned nan as no_number; expected finite numbers"),
        ("mine.py:one_infinite", "returned inf as one_infinite for item 3; expected finite"),
        ("mine.py:too_few", "returned 3 numbers as too_few for 4 items"),
        ("mine.py:items", "names a value items, which is a name of the recipes' own"),
        ("chrf mine.py:chrf", "^metrics: chrf: two of the metrics give a value of this name"),
        ("mine.py:only_predictions", "is called with predictions, references and .*too many"),
        (
            'mine.py:length --metric_options {"mine.py:length":{"scale":2}}',
            "is called with predictions, references and its metric_options .*'scale'",
        ),
        ('chrf --metric_options {"mine.py:length":{}}', "is not among the metrics"),
        ("nothing", r"^metrics: nothing: holds no evaluate metric; .* nothing\.py in it"),
        ("no_class", "^metrics: no_class: cannot be loaded as an evaluate metric"),
        (
            "numbers",
            "^metrics: numbers: takes .*expected predictions and references that are texts",
        ),
        (
            "characters --predictions several.jsonl",
            "^metrics: characters: takes one reference per item, and item 0 has 2",
        ),
    ],
)
def test_bad_metrics_are_one_line_and_leave_nothing(words, message):
    before = sorted(Path().iterdir())
    predictions = [] if "--predictions" in words else ["--predictions", "answers.jsonl"]
    with pytest.raises(InputError, match=message) as error:
        score.main([*predictions, "--output_dir", "out", "--metrics", *words.split()])
    assert "\n" not in str(error.value)
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before


def test_a_metric_that_does_not_work_shows_before_a_model_is_read(monkeypatch):
    """It is tried on the first right answers; those of the task are lists of several."""
    monkeypatch.setattr("hfscale.models.load_model", None)
    monkeypatch.setattr("hfscale.models.check_models", lambda *args, **kwargs: None)
    monkeypatch.setattr("hfscale.data.tokenizer.load_model_tokenizer", lambda *args, **kwargs: None)
    Path("task.jsonl").write_text('{"q": "who", "a": "the cat"}\n' * 30)
    task = "--model m --task_source task.jsonl --prompt {q} --target {a} --output_dir out"
    with pytest.raises(InputError, match="returned 19 numbers as too_few for 20 items"):
        score.main([*task.split(), "--metrics", "mine.py:too_few"])
    assert not Path("out").exists()


def test_names_are_checked_without_reading_a_file():
    check_metric_names(["bleu", "absent.py:f", "characters"], {"bleu": {"tokenize": "char"}})
    args = parse_args(score.ScoreArguments, ["--metrics", "a.py:f"], recipe=score.__file__)
    assert args.metrics == ["a.py:f"]


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (1, ()),
        (True, ()),
        (np.float32(2), ()),
        ([1, 2.5], (2,)),
        (np.arange(3), (3,)),
        ("1", None),
        (None, None),
        ([[1], [2, 3]], None),
        ([[1, 2]], None),
        (["a"], None),
        (1j, None),
    ],
)
def test_numbers_are_told_from_other_things(value, shape):
    array = as_numbers(value)
    assert (None if array is None else array.shape) == shape
