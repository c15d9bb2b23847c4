"""The score recipe: the file that it writes, the same on one rank and two, and what it refuses."""

import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hfscale.arguments import DataArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.splits import load_splits
from hfscale.data.tokenizer import train_bpe
from hfscale.metrics import perplexity
from hfscale.metrics.intervals import NO_SPREAD
from hfscale.metrics.perplexity import perplexity_metrics, rolling_windows, score_documents
from hfscale.process import InputError
from recipes import score

ROOT = Path(__file__).parents[2]
LINES = [
    f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}" + " and on the log" * (i % 6)
    for i in range(23)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = train_bpe(Dataset.from_dict({"text": LINES}), 300)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=24,
            initializer_range=0.3,
        )
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(LINES) + "\n\n \n")
    return path


@pytest.fixture
def recipe(folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    usual = ["--source", str(text_file), "--sample_by", "line"]
    return lambda *words: score.main(
        [*usual, *([] if "--model" in words else ["--model", str(folder)]), *words]
    )


def metrics_of(folder: Path) -> dict:
    [system] = json.loads((folder / "scores.json").read_text())["systems"]
    return system["metrics"]


def test_scores_json_holds_the_numbers_and_how_they_came(recipe, folder, tmp_path, capsys):
    recipe("--max_length", "16", "--batch_size", "3", "--seed", "5")
    record = json.loads((tmp_path / "runs" / "score" / "scores.json").read_text())
    model, tokenizer = (
        GPT2LMHeadModel.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    expected, notes = perplexity_metrics(
        score_documents(model, tokenizer, LINES, max_length=16, stride=8), seed=5
    )
    [system] = record["systems"]
    metrics = system["metrics"]
    assert (
        metrics.keys() == {f"eval_{name}" for name in expected} and system["notes"] == notes == {}
    )
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-6)
    assert metrics["eval_documents"] == 23 and metrics["eval_bytes"] == sum(map(len, LINES))
    low, high = metrics["eval_perplexity_ci95"]
    assert low < metrics["eval_perplexity"] < high
    assert metrics["eval_loss"] == pytest.approx(math.log(metrics["eval_perplexity"]))
    assert record["schema_version"] == 1 and record["comparisons"] == []
    assert (system["context"], system["stride"], record["config"]["seed"]) == (16, 8, 5)
    assert system["name"] == str(folder) and system["prefix_token"] == "<|endoftext|>"
    assert ", 300 tokens, " in system["tokenizer"]
    assert system["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["versions"]["torch"] == torch.__version__
    out = capsys.readouterr().out
    for shown in (
        "perplexity",
        f"{metrics['eval_bits_per_byte']:.6g}",
        "stride",
        f"{metrics['eval_tokens']:,}",
    ):
        assert shown in out


def test_fingerprint_is_of_the_text_alone(recipe, tmp_path):
    (tmp_path / "more.txt").write_text("another line")
    recipe("--output_dir", "a")
    recipe("--output_dir", "b", "--max_length", "8", "--batch_size", "2")
    recipe("--output_dir", "c", "--source", "more.txt")  # the flag again: one more source
    records = [json.loads((tmp_path / name / "scores.json").read_text()) for name in "abc"]
    prints = [record["data"]["fingerprint"] for record in records]
    assert prints[0] == prints[1] != prints[2] and len(prints[0]) == 16
    assert metrics_of(tmp_path / "c")["eval_documents"] == 24


def test_without_a_source_it_scores_what_the_run_held_out(folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = DataArguments(source=[str(text_file)], sample_by="line", validation_fraction=0.2)
    held_out = load_splits(data, seed=7)["validation"]
    run_json = folder / "run.json"
    record = {
        "config": vars(data) | {"seed": 7, "learning_rate": 1.0},
        "data": {"fingerprint": {"validation": text_fingerprint(held_out)}},
    }
    try:
        run_json.write_text(json.dumps(record))
        score.main(["--model", str(folder), "--output_dir", str(tmp_path / "out")])
        metrics = metrics_of(tmp_path / "out")
        assert metrics["eval_documents"] == len(held_out) == 5
        assert metrics["eval_bytes"] == sum(len(text.encode()) for text in held_out["text"])
        record["data"]["fingerprint"]["validation"] = "0" * 16
        run_json.write_text(json.dumps(record))
        with pytest.raises(InputError, match="no longer the text"):
            score.main(["--model", str(folder), "--output_dir", str(tmp_path / "other")])
    finally:
        run_json.unlink()
    with pytest.raises(InputError, match="no run.json"):
        score.main(["--model", str(folder), "--output_dir", str(tmp_path / "other")])
    run_json.write_text(
        json.dumps(
            {
                "config": {"task_source": ["task.jsonl"], "seed": 0},
                "data": {"fingerprint": {"validation": "0"}},
            }
        )
    )
    try:
        with pytest.raises(
            InputError, match="was not trained on text but on task.jsonl; give a text, or the task"
        ):
            score.main(["--model", str(folder), "--output_dir", str(tmp_path / "other")])
    finally:
        run_json.unlink()
    assert not (tmp_path / "other").exists()


def test_one_document_has_no_interval_and_says_so(recipe, tmp_path, capsys):
    recipe("--sample_by", "document")
    [system] = json.loads((tmp_path / "runs" / "score" / "scores.json").read_text())["systems"]
    assert (
        system["metrics"]["eval_perplexity"] > 1
        and system["metrics"]["eval_perplexity_ci95"] is None
    )
    assert system["notes"]["eval_perplexity_ci95"].startswith("one item")
    assert "one item" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_length", "25"], "max_length: got 25"),
        (["--max_length", "8", "--stride", "9"], "stride: got 9"),
        (["--batch_size", "0"], "batch_size: got '0', expected at least 1"),
        (["--model", "./missing"], "model ./missing: "),
        (["--source", "missing.txt"], "missing.txt: no such file"),
        (["--dtype", "float3"], "did you mean float32"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(recipe, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        recipe(*words)
    assert list(tmp_path.iterdir()) == []


def test_earlier_scores_are_kept_unless_told(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.json").write_text("{}")
    with pytest.raises(InputError, match="holds scores.json"):
        recipe("--output_dir", "out")
    assert (tmp_path / "out" / "scores.json").read_text() == "{}"
    recipe("--output_dir", "out", "--overwrite")
    assert metrics_of(tmp_path / "out")["eval_documents"] == 23
    with pytest.raises(InputError, match="out/scores.json is not a folder that can be written to"):
        recipe("--output_dir", "out/scores.json")


@pytest.mark.slow
def test_non_finite_logits_stop_with_status_1(folder, text_file, tmp_path, run_warm):
    model = GPT2LMHeadModel.from_pretrained(folder)
    model.transformer.h[0].mlp.c_fc.bias.data[0] = math.nan
    model.save_pretrained(tmp_path / "nan")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "nan" / name).write_bytes((folder / name).read_bytes())
    result = launch(
        run_warm,
        [
            "--model",
            str(tmp_path / "nan"),
            "--source",
            str(text_file),
            "--output_dir",
            str(tmp_path / "out"),
        ],
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: document 0")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_ranks_give_the_same_numbers(folder, text_file, tmp_path, run_warm):
    results = []
    for processes in (1, 2):
        words = [
            "--model",
            str(folder),
            "--source",
            str(text_file),
            "--sample_by",
            "line",
            "--batch_size",
            "4",
            "--output_dir",
            str(tmp_path / str(processes)),
        ]
        result = launch(run_warm, words, processes)
        assert result.returncode == 0, result.stderr[-3000:]
        results.append(metrics_of(tmp_path / str(processes)))
        assert result.stdout.count("bits_per_byte") == 1  # the main rank alone prints
    assert results[0] == results[1]


@pytest.mark.slow
def test_two_ranks_answer_a_task_as_one(folder, tmp_path, run_warm):
    """Drawn answers and likelihoods of choices."""
    write_lines(
        tmp_path / "task.jsonl",
        [{"q": line[:9], "a": line[9:], "c": ["the mat", "a log"], "answer": 1} for line in LINES],
    )
    words = [
        "--model",
        str(folder),
        "--task_source",
        str(tmp_path / "task.jsonl"),
        "--task_validation_source",
        str(tmp_path / "task.jsonl"),
        "--prompt",
        "{q}",
        "--target",
        "{a}",
        "--choices",
        "c",
        "--metrics",
        "chrf",
        "accuracy",
        "--max_new_tokens",
        "6",
        "--do_sample",
        "--batch_size",
        "4",
    ]
    results = []
    for processes in (1, 2):
        result = launch(
            run_warm, [*words, "--output_dir", str(tmp_path / str(processes))], processes
        )
        assert result.returncode == 0, result.stderr[-3000:]
        answers = (tmp_path / str(processes) / "predictions.jsonl").read_text()
        results.append((metrics_of(tmp_path / str(processes)), answers))
    assert results[0] == results[1]
    assert 0 <= results[0][0]["eval_accuracy"] <= 1 and results[0][0]["eval_items"] == 23


def launch(run_warm, words: list[str], processes: int = 1):
    launcher = (
        []
        if processes == 1
        else [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / "accelerate_configs" / "cpu_2proc.yaml"),
        ]
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return run_warm(
        [sys.executable, *launcher, str(ROOT / "recipes" / "score.py"), *words],
        env=env,
        timeout=300,
    )


# ---- several systems, tasks, saved predictions

ANSWERS = [
    {"prediction": f"the cat number {i}", "reference": f"the cat number {i % 3}"} for i in range(12)
]


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def better(folder, tmp_path_factory):
    """The model of `folder` after a few steps on the text."""
    path = tmp_path_factory.mktemp("better")
    model, tokenizer = (
        GPT2LMHeadModel.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = tokenizer(LINES[:8], return_tensors="pt", padding=True, truncation=True, max_length=20)[
        "input_ids"
    ]
    for _ in range(20):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_better_model_is_named_with_its_difference(
    recipe, folder, better, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "400")  # the folders' names are long
    recipe("--model", str(folder), str(better), "--output_dir", "out")
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    first, second = (system["metrics"] for system in record["systems"])
    found = {row["metric"]: row for row in record["comparisons"]}
    assert found.keys() == {
        "eval_loss",
        "eval_perplexity",
        "eval_bits_per_byte",
        "eval_word_perplexity",
    }
    for name, row in found.items():
        assert row["difference"] == pytest.approx(second[name] - first[name])
        assert row["difference_ci95"][0] < row["difference"] < row["difference_ci95"][1] < 0
        assert (row["better"], row["p_value"] < 0.05) == ("second", True)
    assert (
        record["systems"][0]["model"]["fingerprint"] != record["systems"][1]["model"]["fingerprint"]
    )
    assert len(re.findall(r"│ second +│$", capsys.readouterr().out, re.M)) == 4


def test_other_tokenizer_compares_only_what_is_per_byte_or_word(recipe, folder, tmp_path):
    other = tmp_path / "other"
    GPT2LMHeadModel.from_pretrained(folder).save_pretrained(other)
    train_bpe(Dataset.from_dict({"text": LINES}), 280).save_pretrained(other)
    recipe("--model", str(folder), str(other), "--output_dir", "out")
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())["comparisons"]
    assert {row["metric"] for row in rows} == {"eval_bits_per_byte", "eval_word_perplexity"}


def test_a_killed_run_goes_on_and_ends_the_same(recipe, folder, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recipe("--output_dir", "whole", "--batch_size", "4")
    score_batch, done = perplexity._batch_nll, []

    def stop_at_the_fourth(*args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return score_batch(*args)

    monkeypatch.setattr(perplexity, "_batch_nll", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        recipe("--output_dir", "out", "--batch_size", "4")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished"]
    with pytest.raises(
        InputError, match="holds an unfinished run; --resume auto goes on, --overwrite starts anew"
    ):
        recipe("--output_dir", "out", "--batch_size", "4")
    with pytest.raises(InputError, match=r"other settings \(batch_size was 4, is 5\)"):
        recipe("--output_dir", "out", "--batch_size", "5", "--resume", "auto")
    done[:] = [0] * 4  # from here on it does not stop, and counts
    recipe("--output_dir", "out", "--batch_size", "4", "--resume", "auto")
    windows = sum(
        len(rolling_windows(len(tokenizer(line)["input_ids"]) + 1, 24, 12)) for line in LINES
    )
    assert len(done) == 4 + math.ceil(windows / 4) - 3
    assert metrics_of(tmp_path / "out") == metrics_of(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.json"]


def test_saved_predictions_are_scored_and_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = write_lines(tmp_path / "a.jsonl", ANSWERS)
    b = write_lines(
        tmp_path / "b.jsonl",
        [
            {"prediction": row["reference"], "references": [row["reference"], "x"]}
            for row in ANSWERS
        ],
    )
    score.main(["--predictions", a, "--metrics", "exact_match", "bleu", "--output_dir", "one"])
    assert (
        metrics_of(tmp_path / "one")["eval_exact_match"] == 25
        and metrics_of(tmp_path / "one")["eval_items"] == 12
    )
    with pytest.raises(InputError, match="their references differ"):
        score.main(["--predictions", a, b, "--output_dir", "two"])
    assert not (tmp_path / "two").exists()
    c = write_lines(
        tmp_path / "c.jsonl", [row | {"prediction": row["reference"]} for row in ANSWERS]
    )
    score.main(["--predictions", a, c, "--metrics", "exact_match", "bleu", "--output_dir", "two"])
    record = json.loads((tmp_path / "two" / "scores.json").read_text())
    [row] = [row for row in record["comparisons"] if row["metric"] == "eval_exact_match"]
    assert (row["difference"], row["better"]) == (75, "second")
    assert "smooth:exp" in record["systems"][0]["signatures"]["bleu"]
    assert "all items scored alike" in record["systems"][1]["notes"]["eval_exact_match_ci95"]


def answers_of(folder: Path, right: int, items: int) -> list[str]:
    """Two files of predictions for so many items: of the first none is right, of the second so
    many.
    """
    golds = [f"the cat number {i} sat" for i in range(items)]
    first = [{"prediction": "no idea", "reference": gold} for gold in golds]
    second = [
        row | {"prediction": gold} if i < right else row
        for i, (row, gold) in enumerate(zip(first, golds, strict=True))
    ]
    return [
        write_lines(folder / f"{name}.jsonl", rows) for name, rows in (("a", first), ("b", second))
    ]


@pytest.mark.parametrize(
    ("items", "p_value", "better", "shown"),
    [
        (1, 1, None, "1"),
        (2, 0.5, None, "0.5"),
        (5, 0.0625, None, "0.062"),
        (6, 0.03125, "second", "0.031"),
        (12, 2 / 2**12, "second", "0.00049"),
        (40, 2 / 1002, "second", "< 0.002"),
        (200, 2 / 1002, "second", "< 0.002"),
    ],
)
def test_a_claim_needs_enough_items(tmp_path, monkeypatch, capsys, items, p_value, better, shown):
    """All items better, as clear as it can be: what it shows depends on how many there are."""
    monkeypatch.chdir(tmp_path)
    files = answers_of(tmp_path, items, items)
    score.main(["--predictions", *files, "--metrics", "exact_match", "chrf", "--output_dir", "out"])
    rows = json.loads(Path("out/scores.json").read_text())["comparisons"]
    assert [(row["metric"], row["p_value"], row["better"]) for row in rows] == [
        (name, p_value, better) for name in ("eval_exact_match", "eval_chrf")
    ]
    printed = capsys.readouterr().out
    assert len(re.findall(rf"│ {shown} +│ {better or 'none'} +│", printed)) == 2
    too_few = f"only {items} of {items} items differ, so the p-value is at least {p_value:.4g}: too few to show"
    assert ((rows[0]["note"] or "").startswith(too_few), too_few in printed) == (
        (better is None,) * 2
    )


def test_few_that_differ_among_many_show_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = answers_of(tmp_path, 3, 300)
    score.main(["--predictions", *files, "--metrics", "exact_match", "--output_dir", "out"])
    [row] = json.loads(Path("out/scores.json").read_text())["comparisons"]
    assert (row["difference"], row["p_value"], row["better"]) == (1, 0.25, None)
    assert row["note"].startswith("only 3 of 300 items differ")


def test_all_right_and_all_wrong_carry_the_same_note(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = answers_of(tmp_path, 40, 40)
    score.main(
        ["--predictions", *files, "--metrics", "exact_match", "rouge", "--output_dir", "out"]
    )
    record = json.loads(Path("out/scores.json").read_text())
    for system in record["systems"]:
        assert set(system["notes"].values()) == {NO_SPREAD} and len(system["notes"]) == 5
    names = "eval_exact_match, eval_rouge1, eval_rouge2, eval_rougeL, eval_rougeLsum"
    printed = capsys.readouterr().out
    for path in files:
        assert f"{path}: {names}: {NO_SPREAD}\n" in printed


def test_task_from_model_to_predictions_and_back(folder, tmp_path, monkeypatch):
    """What it wrote scores the same when it is read again, also without its references."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_lines(
        tmp_path / "task.jsonl", [{"q": line[:9], "a": [line[9:20], "sat"]} for line in LINES]
    )
    task = [
        "--task_source",
        "task.jsonl",
        "--task_validation_source",
        "task.jsonl",
        "--prompt",
        "{q}",
        "--target",
        "{a}",
        "--metrics",
        "chrf",
        "f1",
    ]
    score.main(["--model", str(folder), *task, "--max_new_tokens", "8", "--output_dir", "first"])
    record = json.loads((tmp_path / "first" / "scores.json").read_text())
    [system] = record["systems"]
    assert (system["context"], system["max_new_tokens"], system["do_sample"]) == (24, 8, False)
    assert system["end_tokens"] == [
        "<|endoftext|>"
    ]  # none but the tokenizer's: the folder names no other
    assert system["metrics"]["eval_items"] == 23 and system["metrics"]["eval_chrf"] > 0
    score.main(
        [
            "--predictions",
            "first/predictions.jsonl",
            "--metrics",
            "chrf",
            "f1",
            "--output_dir",
            "second",
        ]
    )
    lines = [json.loads(line) for line in Path("first/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 23 and set(lines[0]) == {
        "prompt",
        "references",
        "prediction",
        "finished",
        "cut_tokens",
    }
    write_lines(tmp_path / "bare.jsonl", [{"prediction": line["prediction"]} for line in lines])
    score.main(["--predictions", "bare.jsonl", *task, "--output_dir", "third"])
    assert (
        metrics_of(tmp_path / "first")
        == metrics_of(tmp_path / "second")
        == metrics_of(tmp_path / "third")
    )


@pytest.mark.slow
def test_scores_say_where_tests_ran_inside_the_programs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("task.jsonl").write_text("".join(json.dumps({"q": f"line {i}"}) + "\n" for i in range(30)))
    words = [
        "--model",
        str(folder),
        "--task_source",
        "task.jsonl",
        "--prompt",
        "{q}",
        "--target",
        "{q}",
        "--test_code",
        "assert f() == 1",
        "--metrics",
        "pass_at_k",
        "--max_new_tokens",
        "2",
        "--stop_strings",
        "\n",
        "--allow_code_execution",
    ]
    words += ["--test_program", "#{prediction}\ndef f(): return 1\n{test}"]
    for name, tests_apart, noted in (("apart", "true", False), ("inside", "false", True)):
        score.main([*words, "--tests_apart", tests_apart, "--output_dir", name])
        [system] = json.loads(Path(name, "scores.json").read_text())["systems"]
        assert system["metrics"]["eval_pass@1"] == 1
        assert ("eval_pass_at_k" in system["notes"]) == noted


def test_all_items_of_a_quiz_are_scored_and_counted(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_lines(
        tmp_path / "quiz.jsonl",
        [
            {"q": f"line {i}: the cat sat on", "options": ["mat", "the log"], "gold": i % 2}
            for i in range(30)
        ],
    )
    score.main(
        [
            "--model",
            str(folder),
            "--task_source",
            "quiz.jsonl",
            "--prompt",
            "{q}",
            "--choices",
            "options",
            "--label",
            "gold",
            "--metrics",
            "accuracy",
        ]
    )
    record = json.loads(Path("runs/score/scores.json").read_text())
    assert record["systems"][0]["metrics"]["eval_items"] == 30
    assert (
        record["data"]["counts"] == {"read": 30, "scored": 30}
        and record["data"]["unit"] == "example"
    )
    assert (
        "examples: 30 read, 0 left out, 0 dropped, 30 scored, 0 shortened\n"
        in capsys.readouterr().out
    )


def test_minimal_pairs_are_scored_from_the_beginning_of_a_text(folder, tmp_path, monkeypatch):
    """Without a prompt a choice is all there is: the accuracy is that of its perplexity."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    pairs = [{"good": line, "bad": line.replace("the cat", "cat the")} for line in LINES[:6]]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    words = [
        "--model",
        str(folder),
        "--task_source",
        "pairs.jsonl",
        "--metrics",
        "accuracy",
        "--overwrite",
    ]
    score.main([*words, "--choices", "good", "bad"])
    model, tokenizer = (
        GPT2LMHeadModel.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    lines = [
        json.loads(line) for line in Path("runs/score/predictions.jsonl").read_text().splitlines()
    ]
    for pair, line in zip(pairs, lines, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(pair["good"])["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:24]])).logits[0].log_softmax(-1)
        if len(ids) <= 24:
            expected = sum(logits[i, ids[i + 1]].item() for i in range(len(ids) - 1))
            assert line["logliks"][0] == pytest.approx(expected, rel=1e-5)
        assert (line["prompt"], line["answer"]) == ("", 0)
    first = metrics_of(tmp_path / "runs/score")["eval_accuracy"]
    score.main([*words, "--choices", "bad", "good"])
    assert metrics_of(tmp_path / "runs/score")["eval_accuracy"] == pytest.approx(1 - first)


def test_choices_that_tie_share_the_item(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_lines(
        tmp_path / "same.jsonl",
        [
            {
                "q": "the cat " * (i % 5),
                "options": ["sat on", "sat on", "sat on", "a log" * 40],
                "answer": i % 4,
            }
            for i in range(24)
        ],
    )
    score.main(
        [
            "--model",
            str(folder),
            "--task_source",
            "same.jsonl",
            "--prompt",
            "{q}x",
            "--choices",
            "options",
            "--metrics",
            "accuracy",
            "--batch_size",
            "3",
        ]
    )
    metrics = metrics_of(tmp_path / "runs/score")
    assert (
        metrics["eval_accuracy"] == pytest.approx(18 / 24 / 3)
        and metrics["eval_accuracy_ties"] == 1
    )


def test_a_dry_run_shows_the_counts_and_the_first_item_and_writes_nothing(
    folder, text_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_lines(
        tmp_path / "task.jsonl", [{"q": "the cat " * (9 * i), "a": "sat"} for i in range(4)]
    )
    before = sorted(tmp_path.iterdir())
    score.main(
        [
            "--model",
            str(folder),
            "--task_source",
            "task.jsonl",
            "--prompt",
            "{q} Answer:",
            "--target",
            "{a}",
            "--metrics",
            "chrf",
            "--max_new_tokens",
            "4",
            "--dry_run",
        ]
    )
    shown = capsys.readouterr().out
    assert "examples: 4 read, 0 left out, 0 dropped, 4 scored, 3 shortened" in shown
    assert "task.jsonl:1" in shown and "Answer:" in shown and "['sat']" in shown
    score.main(
        ["--model", str(folder), "--source", str(text_file), "--sample_by", "line", "--dry_run"]
    )
    shown = capsys.readouterr().out
    assert "documents: 23 read, 0 left out, 0 dropped, 23 scored\n" in shown and LINES[0] in shown
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        "--source missing.txt",
        "--source broken.jsonl",
        "--predictions broken.jsonl",
        "--task_source broken.jsonl --prompt {q} --target {a} --metrics chrf",
        "--task_source task.jsonl --prompt {p} --target {a} --metrics chrf",
        "--task_source task.jsonl --prompt {q} --target {a} --metrics pass_at_k --test_program {x} "
        "--allow_code_execution",
        "--task_source task.jsonl --prompt {q} --target {a} --metrics rouge",
        "--metrics chrf",
        "--model ./missing",
    ],
)
def test_what_is_wrong_is_found_before_weights_are_read(folder, tmp_path, monkeypatch, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "transformers.PreTrainedModel.from_pretrained", None
    )  # calling it would be a TypeError
    Path("broken.jsonl").write_text('{"q": "a"\n')
    write_lines(tmp_path / "task.jsonl", [{"q": "who", "a": "кошка"}])
    model = [] if "--model" in words else ["--model", str(folder)]
    with pytest.raises(InputError) as error:
        score.main([*model, *words.split()])
    assert "\n" not in str(error.value) and not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--predictions missing.jsonl", "missing.jsonl: cannot be read"),
        ("--predictions bad.jsonl", r"bad\.jsonl:1: not JSON .*; mend or remove the line"),
        (
            "--predictions column.jsonl",
            r"column\.jsonl:2: expected JSON with .* it has predicted, reference",
        ),
        (
            "--predictions bare.jsonl",
            r"bare\.jsonl:1: expected .* reference, or references .* it has prediction",
        ),
        ("--predictions empty.jsonl", "predictions empty.jsonl: no rows in it; expected JSON with"),
        ("--predictions blank.jsonl", "references of blank.jsonl:1 are empty"),
        (
            "--predictions bare.jsonl --task_source task.jsonl --prompt {q} --target {q} --metrics "
            "chrf",
            r"bare\.jsonl: 1 lines for 20 examples",
        ),
        (
            "--task_source task.jsonl --prompt {q} --target {missing} --metrics chrf",
            "no column 'missing'",
        ),
        ("--task_source task.jsonl --prompt {q} --target {q}", "metrics: missing"),
        (
            "--task_source task.jsonl --prompt {q} --target {q} --metrics pass_at_k",
            "pass --allow_code_execution",
        ),
        (
            "--task_source task.jsonl --prompt {q} --target {q} --metrics chrf --max_new_tokens 24",
            "max_new_tokens: got 24",
        ),
        (
            "--task_source task.jsonl --prompt {q} --target - --metrics rouge",
            "rouge: task.jsonl:1: the tokenizer",
        ),
        ("--task_source task.jsonl --source task.jsonl", "give one of them"),
        ("--pass_at 2", "pass_at: got"),
        ("--num_samples 2", "without --do_sample"),
        ("--resume auto --overwrite", "give one of the two"),
    ],
)
def test_bad_tasks_and_predictions_are_refused_and_leave_nothing(
    folder, tmp_path, monkeypatch, words, match
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("bad.jsonl").write_text("{\n")
    write_lines(tmp_path / "column.jsonl", [ANSWERS[0], {"predicted": "a", "reference": "b"}])
    write_lines(tmp_path / "bare.jsonl", [{"prediction": "a"}])
    write_lines(tmp_path / "blank.jsonl", [{"prediction": "a", "references": [" "]}])
    write_lines(tmp_path / "task.jsonl", [{"q": str(i)} for i in range(20)])
    Path("empty.jsonl").touch()
    with pytest.raises(InputError, match=match) as error:
        score.main(["--model", str(folder), "--output_dir", "out", *words.split()])
    assert "\n" not in str(error.value) and not Path("out").exists()
