"""What is shown of a task's answers: values beside each other, and what they cannot show."""

import pytest
from datasets import Dataset

from hfscale.arguments import TaskArguments
from hfscale.metrics.intervals import NO_SPREAD, ONE_ITEM
from hfscale.process import InputError
from hfscale.tasks.measures import (
    check_task_metrics,
    load_answer_metrics,
    measure_answers,
    not_measured,
    show_answers,
)


def metrics_of(value: float, interval: list[float] | None) -> dict:
    return {
        "before_eval_chrf": 3.0,
        "before_eval_chrf_ci95": [2.0, 4.0],
        "baseline_chrf": 9.0,
        "baseline_chrf_ci95": [8.0, 11.0],
        "eval_chrf": value,
        "eval_chrf_ci95": interval,
    }


@pytest.mark.parametrize(
    ("value", "interval", "note"),
    [
        (100.0, [100.0, 100.0], f"eval_chrf: {NO_SPREAD}\n"),
        (0.0, [0.0, 0.0], f"eval_chrf: {NO_SPREAD}\n"),
        (50.0, None, f"eval_chrf: {ONE_ITEM}\n"),
    ],
)
def test_results_that_resampling_cannot_judge_carry_the_note_of_score(
    capsys, value, interval, note
):
    show_answers(
        metrics_of(value, interval),
        "most_frequent",
        ["a sample"],
        {"f1": "a whole phrase is one token"},
    )
    shown = capsys.readouterr().out
    assert note in shown and "f1: a whole phrase is one token\n" in shown and "a sample" in shown


def test_others_carry_none(capsys):
    show_answers(metrics_of(50.0, [45.0, 55.0]), "most_frequent", [])
    shown = capsys.readouterr().out
    assert "50" in shown and NO_SPREAD not in shown and ONE_ITEM not in shown


def test_options_of_metrics_are_checked_before_training():
    for options, match in (
        ({"f1": {}}, "'f1' is not among the metrics"),
        ({"rouge": {"tokenizer": "word"}}, "rouge: got"),
    ):
        with pytest.raises(InputError, match=match):
            check_task_metrics(TaskArguments(metrics=["rouge"], metric_options=options))
    args = TaskArguments(
        metrics=["rouge", "pass_at_k"], metric_options={"rouge": {"tokenizer": "words"}}
    )
    assert not_measured(args) == ["pass_at_k"]


def test_answers_are_measured_by_functions_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def length(predictions, references, scale=1):\n"
        "    return [scale * len(text) for text in predictions]\n"
    )
    args = TaskArguments(
        metrics=["exact_match", "mine.py:length", "accuracy"],
        metric_options={"mine.py:length": {"scale": 2}},
        choices="c",
    )
    assert not_measured(args) == ["accuracy"]
    examples = Dataset.from_dict({"references": [["a"], ["bc", "b"], ["d"]]})
    metrics, answers = measure_answers(
        ["a", "b", "long"], examples, args, load_answer_metrics(args), "eval"
    )
    assert answers == ["a", "b", "long"]
    assert metrics["eval_exact_match"] == pytest.approx(200 / 3)
    assert metrics["eval_length"] == 4 and metrics["eval_length_ci95"][1] <= 8
