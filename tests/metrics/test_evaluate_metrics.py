"""The metrics behind evaluate's interface: alone, combined with others, and over processes."""

import multiprocessing

import evaluate
import numpy as np
import pytest

from hfscale.metrics.evaluate_metrics import SumMetric
from hfscale.metrics.texts import METRICS, TEXT_METRICS, item_statistics, metric_values, signature
from hfscale.process import InputError

PREDICTIONS = ["the cat sat on the mat", "A dog ran away.", "three black birds", "no"]
REFERENCES = [
    ["the cat sat on a mat", "a cat is on the mat"],
    ["The dog ran"],
    ["three birds", "birds"],
    ["yes"],
]
INPUTS = {
    "perplexity": {
        "nll": [1.5, 6.0, 2.0],
        "tokens": [1, 4, 2],
        "bytes": [3, 20, 5],
        "words": [1, 3, 1],
    },
    "accuracy": {
        "logliks": [[-2, -3], [-4, -1], [-6, -5, -8]],
        "tokens": [[1, 3], [1, 1], [3, 2, 8]],
        "num_bytes": [[2, 10], [3, 3], [12, 5, 6]],
        "answers": [1, 0, 0],
    },
    "pass_at_k": {"n": [4, 4, 4], "c": [1, 2, 0]},
} | dict.fromkeys(TEXT_METRICS, {"predictions": PREDICTIONS, "references": REFERENCES})
EXPECTED = {
    "perplexity": {
        "loss": 9.5 / 7,
        "perplexity": np.exp(9.5 / 7),
        "bits_per_byte": 9.5 / np.log(2) / 28,
        "word_perplexity": np.exp(9.5 / 5),
    },
    "accuracy": {"accuracy": 0, "accuracy_per_token": 1 / 3, "accuracy_per_byte": 2 / 3},
    "pass_at_k": {"pass@1": 0.25},
}

LOCAL_METRIC = """
import datasets
import evaluate

class Length(evaluate.Metric):
    def _info(self):
        features = datasets.Features(predictions=datasets.Value("string"), references={references})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {{"characters": sum(map(len, predictions))}}
"""


def expected(metric, **options):
    if metric not in TEXT_METRICS:
        return EXPECTED[metric]
    return metric_values(
        metric, item_statistics(metric, PREDICTIONS, REFERENCES, **options).sum(axis=0), **options
    )


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_computes(metric, tmp_path):
    metric_object = SumMetric(metric, cache_dir=str(tmp_path))
    assert metric_object.compute(**INPUTS[metric]) == pytest.approx(expected(metric))
    for i in range(
        len(next(iter(INPUTS[metric].values())))
    ):  # item by item, and a second time with one object
        names = {"predictions": "prediction", "references": "reference"}
        metric_object.add(
            **{names.get(name, name): column[i] for name, column in INPUTS[metric].items()}
        )
    found = metric_object.compute()
    assert found == pytest.approx(expected(metric)) and all(
        type(number) is float for number in found.values()
    )
    assert metric_object.description == signature(metric)


@pytest.mark.parametrize(
    "references", ['datasets.List(datasets.Value("string"))', 'datasets.Value("string")']
)
def test_they_combine_with_each_other_and_with_a_metric_from_a_folder(tmp_path, references):
    folder = tmp_path / "length"
    folder.mkdir()
    (folder / "length.py").write_text(LOCAL_METRIC.format(references=references))
    metrics = [SumMetric(metric, cache_dir=str(tmp_path / "cache")) for metric in TEXT_METRICS]
    together = evaluate.combine([*metrics, str(folder)])
    golds = REFERENCES if "List" in references else [texts[0] for texts in REFERENCES]
    found = together.compute(predictions=PREDICTIONS, references=golds)
    assert found.pop("characters") == sum(map(len, PREDICTIONS))
    single = [[texts[0]] for texts in REFERENCES]
    for metric in TEXT_METRICS:
        rows = item_statistics(metric, PREDICTIONS, REFERENCES if "List" in references else single)
        for name, number in metric_values(metric, rows.sum(axis=0)).items():
            assert found.pop(name) == pytest.approx(number)
    assert found == {}


def test_options_are_the_metrics_own(tmp_path):
    for metric, options in (
        ("bleu", {"tokenize": "char"}),
        ("chrf", {"word_order": 2}),
        ("f1", {"squad_version": 1}),
        ("rouge", {"tokenizer": "character"}),
    ):
        found = SumMetric(metric, options=options, cache_dir=str(tmp_path)).compute(
            **INPUTS[metric]
        )
        assert found == pytest.approx(expected(metric, **options))
    found = SumMetric("pass_at_k", options={"ks": [1, 2]}, cache_dir=str(tmp_path)).compute(
        **INPUTS["pass_at_k"]
    )
    assert found == pytest.approx({"pass@1": 0.25, "pass@2": (1 / 2 + 5 / 6 + 0) / 3})


def on_one_rank(rank: int, folder: str, results) -> None:
    found = {}
    for metric in METRICS:
        share = {name: column[rank::2] for name, column in INPUTS[metric].items()}
        shared = SumMetric(
            metric, num_process=2, process_id=rank, experiment_id="two", cache_dir=folder
        )
        found[metric] = shared.compute(**share)
    results.put((rank, found))


def test_two_processes_with_a_shared_folder_give_the_number_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(target=on_one_rank, args=(rank, str(tmp_path), results))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for rank in ranks:
        rank.join()
    assert found[1] == dict.fromkeys(METRICS)  # the value is on rank 0
    for metric in METRICS:
        assert found[0][metric] == pytest.approx(expected(metric), abs=1e-12)


def test_unknown_metrics_and_lengths_that_differ_are_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean rouge?"):
        SumMetric("rogue")
    with pytest.raises(InputError, match="^bleu: sacrebleu does not take"):
        SumMetric("bleu", options={"tokenise": "zh"})
    with pytest.raises(ValueError, match=r"number of predictions \(4\) and references \(1\)"):
        SumMetric("bleu", cache_dir=str(tmp_path)).compute(
            predictions=PREDICTIONS, references=["a"]
        )
    with pytest.raises(InputError, match="^bleu: references of item 0 are empty"):
        SumMetric("bleu", cache_dir=str(tmp_path)).compute(predictions=["a"], references=[""])
