"""Minimal pairs in the files of BLiMP and BabyLM: read as they are, and scored as each group."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.data.tokenizer import train_bpe
from hfscale.evaluation.lm_eval import run_lm_eval
from hfscale.process import InputError
from recipes import score

NAMES = ("Derek", "Theresa", "Katherine", "Colleen", "William", "Denise")
VERBS = ("shocking", "hiring", "kissing", "alarming", "leaving")


def island(i: int) -> dict:
    """A pair of one length: the same words in another order."""
    name, other = NAMES[i % 6], NAMES[(i + 1 + i // 6) % 6]
    words = f"Who should {name} hug after {VERBS[i % 5]} {other}?"
    wrong = f"Who should {name} hug {other} after {VERBS[i % 5]}?"
    return {
        "sentence_good": words,
        "sentence_bad": wrong,
        "field": "syntax",
        "linguistics_term": "island_effects",
        "UID": "adjunct_island",
        "pairID": str(i),
    }


def agreement(i: int, uid: str) -> dict:
    name = NAMES[i % 6]
    return island(i) | {
        "sentence_good": f"{name} has been {VERBS[i % 5]} all of them {i}.",
        "sentence_bad": f"{name} have been {VERBS[i % 5]} all of them {i}.",
        "linguistics_term": "agreement",
        "UID": uid,
    }


# As BLiMP has them: a file for each UID; and as BabyLM's supplement: neither UID nor term.
FILES = {
    "adjunct_island": [island(i) for i in range(24)],
    "agreement_1": [agreement(i, "agreement_1") for i in range(9)],
    "agreement_2": [agreement(i, "agreement_2") for i in range(9, 14)],
    "turn_taking": [
        {"sentence_good": f"Did {name} go? She did.", "sentence_bad": f"Did {name} go? I did so."}
        for name in NAMES
    ],
}


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def texts() -> list[str]:
    return [row[name] for rows in FILES.values() for row in rows for name in list(row)[:2]]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(Dataset.from_dict({"text": texts()}), 400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64}
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.3, **shape)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def place(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    for name, rows in FILES.items():
        write(Path("blimp", f"{name}.jsonl"), rows)
    Path("blimp", "README.md").write_text("What these files are.")
    return tmp_path


def run(*words: str) -> dict:
    return score.main(["--model", "model", "--output_dir", "out", "--overwrite", *words])


def log_likelihood(model, tokenizer, text: str) -> float:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
    return logits.gather(1, ids[0, 1:, None]).sum().item()


def right(model, tokenizer, row: dict) -> bool:
    good, bad = (log_likelihood(model, tokenizer, row[name]) for name in list(row)[:2])
    return good > bad


def test_a_folder_is_scored_in_all_and_by_group(place, model, tokenizer, capsys):
    record = run("--minimal_pairs", "blimp")
    expected = {
        name: [right(model, tokenizer, row) for row in rows] for name, rows in FILES.items()
    }
    [system] = record["systems"]
    groups = system["groups"]["group"]
    assert {name: group["pairs"] for name, group in groups.items()} == {
        name: len(rows) for name, rows in FILES.items()
    }
    for name, group in groups.items():
        assert group["accuracy"] == np.mean(expected[name]), name
        low, high = group["accuracy_ci95"]
        assert low <= group["accuracy"] <= high and group["ties"] == 0
    metrics = system["metrics"]
    of_pairs = [value for values in expected.values() for value in values]
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(of_pairs))
    of_groups = np.mean([np.mean(values) for values in expected.values()])
    assert metrics["eval_accuracy_group_mean"] == pytest.approx(of_groups)
    assert of_groups != pytest.approx(np.mean(of_pairs))  # groups are of other sizes
    low, high = metrics["eval_accuracy_group_mean_ci95"]
    assert low < of_groups < high
    terms = system["groups"]["linguistics_term"]
    both = expected["agreement_1"] + expected["agreement_2"]
    assert terms["agreement"]["accuracy"] == pytest.approx(np.mean(both))
    assert terms.keys() == {"agreement", "island_effects"}  # the supplement has none
    assert system["model"]["dtype"] == "torch.float32"
    assert record["data"]["counts"] == {"read": 44, "scored": 44}
    shown = capsys.readouterr().out
    assert (
        "adjunct_island" in shown and "island_effects" in shown and "accuracy_group_mean" in shown
    )


def test_intervals_of_groups_are_of_their_own_pairs(place):
    """The mean over groups is as sure as they are: 1.96 standard errors, each group's by itself."""
    [system] = run("--minimal_pairs", "blimp")["systems"]
    variance = 0.0
    for group in system["groups"]["group"].values():
        share, pairs = group["accuracy"], group["pairs"]
        variance += share * (1 - share) / pairs / len(FILES) ** 2
    low, high = system["metrics"]["eval_accuracy_group_mean_ci95"]
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.15)


@pytest.mark.parametrize("space", ["", " "], ids=["as it stands", "as lm-eval's own"])
def test_accuracies_are_those_of_lm_eval(place, model, tokenizer, space):
    """Its template for BLiMP puts a space before each sentence; without, it is BLiMP's own way."""
    template = Path(find_spec("lm_eval").origin).parent / "tasks" / "blimp" / "_template_yaml"
    rows = FILES["adjunct_island"] + FILES["agreement_1"]
    theirs = write(place / "theirs.jsonl", rows)
    ours = write(
        place / "ours.jsonl",
        [row | {name: space + row[name] for name in list(row)[:2]} for row in rows],
    )
    text = template.read_text("utf-8").replace("dataset_path: nyu-mll/blimp", "dataset_path: json")
    delimiter = "" if space else 'target_delimiter: ""\n'
    files = f"dataset_kwargs: {{data_files: {{train: {theirs}}}}}\n"
    Path("tasks").mkdir()
    Path("tasks", "own.yaml").write_text(f"task: own_blimp\n{files}{delimiter}{text}", "utf-8")
    expected, _ = run_lm_eval(model, tokenizer, ["own_blimp"], include="tasks")
    [system] = run("--minimal_pairs", ours)["systems"]
    assert system["metrics"]["eval_accuracy_ties"] == 0
    assert 0 < expected["own_blimp_acc"] < 1
    assert system["metrics"]["eval_accuracy"] == expected["own_blimp_acc"]


def test_a_constant_model_scores_a_half(place, model, tokenizer):
    """Where the first of equal sentences is taken, as by argmax, it scores 1."""
    constant = GPT2LMHeadModel(model.config)
    constant.load_state_dict({name: 0 * value for name, value in model.state_dict().items()})
    constant.save_pretrained("model")
    rows = FILES["adjunct_island"]
    logliks = [
        [log_likelihood(constant, tokenizer, row[name]) for name in list(row)[:2]] for row in rows
    ]
    assert np.mean(np.argmax(logliks, axis=1) == 0) == 1
    [system] = run("--minimal_pairs", "blimp/adjunct_island.jsonl")["systems"]
    metrics = system["metrics"]
    assert metrics["eval_accuracy"] == metrics["eval_accuracy_group_mean"] == 0.5
    assert metrics["eval_accuracy_ties"] == 1
    assert system["groups"]["group"]["adjunct_island"]["ties"] == 1


def test_a_sentence_twice_is_named_and_counted_apart(place, capsys):
    same = [island(i) | {"sentence_bad": island(i)["sentence_good"]} for i in (2, 5, 7, 9)]
    write(place / "blimp" / "adjunct_island.jsonl", [*FILES["adjunct_island"], *same])
    record = run("--minimal_pairs", "blimp/*.jsonl")
    assert record["data"]["counts"] == {"read": 48, "identical": 4, "scored": 44}
    [note] = record["data"]["notes"]
    assert note.startswith("4 pairs are one sentence twice") and note.endswith("and 1 more")
    assert "adjunct_island.jsonl:25, " in note and "\n" not in note
    assert "4 left out (4 one sentence twice)" in " ".join(capsys.readouterr().out.split())
    write(place / "same.jsonl", same)
    with pytest.raises(InputError, match=r"minimal_pairs same.jsonl: each pair is one sentence"):
        run("--minimal_pairs", "same.jsonl")


def test_columns_of_other_names(place):
    rows = [
        {"good": row["sentence_good"], "bad": row["sentence_bad"], "kind": f"k{i % 2}"}
        for i, row in enumerate(FILES["adjunct_island"])
    ]
    by_file = run("--minimal_pairs", write(place / "babylm.jsonl", rows))["systems"][0]
    assert by_file["groups"].keys() == {"group"} and by_file["groups"]["group"].keys() == {"babylm"}
    others = [{"a": row["good"], "b": row["bad"], "kind": row["kind"]} for row in rows]
    named = ["--choices", "a", "b", "--group_column", "kind"]
    system = run("--minimal_pairs", write(place / "others.jsonl", others), *named)["systems"][0]
    assert system["metrics"]["eval_accuracy"] == by_file["metrics"]["eval_accuracy"]
    assert {name: group["pairs"] for name, group in system["groups"]["group"].items()} == {
        "k0": 12,
        "k1": 12,
    }
    few = run("--minimal_pairs", "others.jsonl", *named, "--validation_examples", "5")
    assert few["data"]["counts"] == {"read": 24, "beyond": 14, "scored": 10}


def test_two_models_are_compared_pair_by_pair(place, model, tokenizer):
    torch.manual_seed(1)
    other = GPT2LMHeadModel(model.config)
    other.save_pretrained("other")
    tokenizer.save_pretrained("other")
    record = run("--model", "other", "--minimal_pairs", "blimp")
    first, second = (system["metrics"] for system in record["systems"])
    found = {row["metric"]: row for row in record["comparisons"]}
    for name in ("eval_accuracy", "eval_accuracy_group_mean"):
        assert found[name]["difference"] == pytest.approx(second[name] - first[name])
        low, high = found[name]["difference_ci95"]
        assert low <= found[name]["difference"] <= high


@pytest.mark.parametrize(
    ("rows", "words", "says"),
    [
        (
            [{"text": "a", "label": 1}],
            "",
            "bad.jsonl:1: no minimal pair; expected the columns sentence_good and sentence_bad, or "
            "good and bad .*; it has text, label",
        ),
        ([{"good": "a", "bad": " "}], "", "bad.jsonl:1: bad is empty; mend the pair"),
        ([{"good": "a", "bad": "b"}, {"good": "c"}], "", "bad.jsonl:2: no column 'bad'; it has"),
        ([{"good": "a", "bad": ["b"]}], "", "bad.jsonl:1: column 'bad' "),
        ([{"good": "a", "bad": "b"}], "--group_column kind", "bad.jsonl:1: no column 'kind'"),
        ([{"good": "a", "bad": "b"}], "--choices good", "choices: got good; a minimal pair is in"),
        ([], "", "minimal_pairs bad.jsonl: no (rows|pairs) in it"),
        (None, "", "minimal_pairs bad.jsonl: no file of pairs is there; give a file, a folder"),
        ([], "--source a.txt", "minimal_pairs, lm_eval, .*: give one of them"),
        ([], "--metrics accuracy", "metrics: is not of minimal pairs, which are judged by"),
        ([], "--stride 3", "stride: is of text that is read in windows; leave it out"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, rows, words, says):
    if rows is not None:
        write(place / "bad.jsonl", rows)
    with pytest.raises(InputError, match=says) as error:
        run("--minimal_pairs", "bad.jsonl", *words.split())
    assert "\n" not in str(error.value) and not Path("out").exists()


def test_a_group_column_is_of_minimal_pairs(place):
    with pytest.raises(InputError, match="group_column: is of --minimal_pairs, and none are given"):
        run("--source", "a.txt", "--group_column", "UID")
