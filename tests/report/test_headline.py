"""The number that a page begins with, and what is said beside it."""

import pytest

from hfscale.report.headline import against, bar_rows, compared, headline


def record(measured, **config):
    return {"metrics": measured, "config": config}


LANGUAGE = {
    "eval_loss": 3.0,
    "eval_perplexity": 20.0,
    "eval_bits_per_byte": 1.5,
    "eval_tokens": 900,
    "eval_runtime": 0.25,
}
TASK = {
    **LANGUAGE,
    "eval_bleu": 31.5,
    "eval_bleu_ci95": [29.0, 34.0],
    "before_eval_bleu": 0.0,
    "before_eval_bleu_ci95": [0.0, 0.0],
    "baseline_bleu": 30.0,
    "baseline_bleu_ci95": [28.0, 32.0],
    "eval_exact_match": 12.0,
    "baseline_exact_match": 20.0,
    "eval_finished": 1.0,
    "before_eval_finished": 0.0,
}


@pytest.mark.parametrize(
    ("metrics", "config", "metric"),
    [
        (LANGUAGE, {}, "bits_per_byte"),
        ({"eval_perplexity": 20.0, "eval_loss": 3.0}, {}, "perplexity"),
        (TASK, {"metrics": ["bleu", "exact_match"]}, "bleu"),
        (TASK, {"metrics": ["pass@k", "exact_match", "bleu"]}, "exact_match"),  # what was measured
        (LANGUAGE | {"eval_mine.py:words": 3.0}, {"metrics": ["mine.py:words"]}, "mine.py:words"),
        ({"eval_loss": 0.5, "eval_reward_accuracy": 0.75}, {}, "reward_accuracy"),
    ],
)
def test_the_number_that_matters(metrics, config, metric):
    chosen = headline(record(metrics, **config))
    assert chosen.metric == metric and chosen.after == metrics[f"eval_{metric}"]


def test_without_held_out_text_there_is_none():
    assert headline(record({"train_loss": 3.0, "eval_loss": None})) is None


@pytest.mark.parametrize(
    ("metrics", "history", "says"),
    [
        (
            {"eval_bits_per_byte": 1.5, "before_eval_bits_per_byte": 3.0},
            [],
            "Before training it was 3, now it is 50% less.",
        ),
        (  # a log's evaluation before the first step
            {"eval_bits_per_byte": 3.0},
            [{"step": 0, "eval_bits_per_byte": 2.0}, {"step": 9, "eval_bits_per_byte": 1.0}],
            "Before training it was 2, now it is 50% more.",
        ),
        (
            {"eval_perplexity": 3.0},
            [{"step": 9, "eval_perplexity": 2.0}],
            "There is no measurement before training, and no baseline, to compare it with.",
        ),
        (
            {
                "eval_exact_match": 12.0,
                "baseline_exact_match": 20.0,
                "before_eval_exact_match": 12.0,
            },
            [],
            "Before training it was 12, the same; the baseline (most frequent) has 20, but the "
            "model is worse by 8.",
        ),
        (
            {name: TASK[name] for name in TASK if "bleu" in name},
            [],
            "Before training it was 0, so the model is better by 31.5; the baseline (most frequent) "
            "has 30, and the intervals overlap: the difference may be chance.",
        ),
        (
            {"eval_reward_accuracy": 0.75},
            [],
            "Before training every pair is a tie, which counts 0.5.",
        ),
    ],
)
def test_what_stands_beside_it(metrics, history, says):
    assert against(headline(record(metrics, baseline="most_frequent"), history)) == says


def test_bars_are_what_was_measured_before_and_after():
    bars = {
        metric.metric: [(bar.name, bar.value) for bar in bar_rows(metric)]
        for metric in compared(record(TASK, baseline="copy_source"))
    }
    assert bars == {  # no counts, no times, nothing that has nothing beside it
        "bleu": [
            ("before training", 0.0),
            ("baseline: copy source", 30.0),
            ("after training", 31.5),
        ],
        "exact_match": [("baseline: copy source", 20.0), ("after training", 12.0)],
    }
