"""The score recipe: the file that it writes, the same on one rank and two, and what it refuses."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.config import DataArguments, InputError
from hfscale.data.corpus import load_splits, text_fingerprint
from hfscale.data.tokenizer import train_bpe
from hfscale.evaluation.perplexity import perplexity_metrics, score_documents
from recipes import score

ROOT = Path(__file__).parents[1]
LINES = [f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}" + " and on the log" * (i % 6)
         for i in range(23)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = train_bpe(Dataset.from_dict({"text": LINES}), 300)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=2, n_head=2, n_embd=32, n_positions=24,
                               initializer_range=0.3)).save_pretrained(path)
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
    return lambda *words: score.main([*usual, *([] if "--model" in words else ["--model", str(folder)]), *words])


def metrics_of(folder: Path) -> dict:
    [system] = json.loads((folder / "scores.json").read_text())["systems"]
    return system["metrics"]


def test_scores_json_holds_the_numbers_and_how_they_came(recipe, folder, tmp_path, capsys):
    recipe("--context", "16", "--batch_size", "3", "--seed", "5")
    record = json.loads((tmp_path / "runs" / "score" / "scores.json").read_text())
    from transformers import AutoTokenizer

    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected, notes = perplexity_metrics(score_documents(model, tokenizer, LINES, context=16, stride=8), seed=5)
    [system] = record["systems"]
    metrics = system["metrics"]
    assert metrics.keys() == {f"eval_{name}" for name in expected} and system["notes"] == notes == {}
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-6)
    assert metrics["eval_documents"] == 23 and metrics["eval_bytes"] == sum(map(len, LINES))
    low, high = metrics["eval_perplexity_ci95"]
    assert low < metrics["eval_perplexity"] < high
    assert metrics["eval_loss"] == pytest.approx(math.log(metrics["eval_perplexity"]))
    assert record["schema_version"] == 1 and record["comparisons"] == []
    assert (system["context"], system["stride"], record["config"]["seed"]) == (16, 8, 5)
    assert system["name"] == str(folder) and system["prefix_token"] == "<|endoftext|>"
    assert system["tokenizer"].startswith("PreTrainedTokenizerFast, 300 tokens, ") or "300 tokens" in system["tokenizer"]
    assert system["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["versions"]["torch"] == torch.__version__
    out = capsys.readouterr().out
    for shown in ("perplexity", f"{metrics['eval_bits_per_byte']:.6g}", "stride", f"{metrics['eval_tokens']:,}"):
        assert shown in out


def test_fingerprint_is_of_the_text_alone(recipe, tmp_path):
    (tmp_path / "more.txt").write_text("another line")
    recipe("--output_dir", "a")
    recipe("--output_dir", "b", "--context", "8", "--batch_size", "2")
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
    record = {"config": vars(data) | {"seed": 7, "learning_rate": 1.0},
              "data": {"fingerprint": {"validation": text_fingerprint(held_out)}}}
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
    assert not (tmp_path / "other").exists()


def test_one_document_has_no_interval_and_says_so(recipe, tmp_path, capsys):
    recipe("--sample_by", "document")
    [system] = json.loads((tmp_path / "runs" / "score" / "scores.json").read_text())["systems"]
    assert system["metrics"]["eval_perplexity"] > 1 and system["metrics"]["eval_perplexity_ci95"] is None
    assert system["notes"]["eval_perplexity_ci95"].startswith("one item")
    assert "one item" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["--context", "25"], "context: got 25"),
    (["--context", "8", "--stride", "9"], "stride: got 9"),
    (["--batch_size", "0"], "batch_size: got 0"),
    (["--model", "./missing"], "model ./missing: "),
    (["--source", "missing.txt"], "missing.txt: no such file"),
    (["--dtype", "float3"], "did you mean float32"),
])
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
    with pytest.raises(InputError, match="is a file"):
        recipe("--output_dir", "out/scores.json")


def test_non_finite_logits_stop_with_status_1(folder, text_file, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(folder)
    model.transformer.h[0].mlp.c_fc.bias.data[0] = math.nan
    model.save_pretrained(tmp_path / "nan")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "nan" / name).write_bytes((folder / name).read_bytes())
    result = launch(["--model", str(tmp_path / "nan"), "--source", str(text_file), "--output_dir",
                     str(tmp_path / "out")])
    assert result.returncode == 1 and "FloatingPointError: document 0" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_ranks_give_the_same_numbers(folder, text_file, tmp_path):
    results = []
    for processes in (1, 2):
        words = ["--model", str(folder), "--source", str(text_file), "--sample_by", "line", "--batch_size", "4",
                 "--output_dir", str(tmp_path / str(processes))]
        result = launch(words, processes)
        assert result.returncode == 0, result.stderr[-3000:]
        results.append(metrics_of(tmp_path / str(processes)))
        assert result.stdout.count("bits_per_byte") == 1  # the main rank alone prints
    assert results[0] == results[1]


def launch(words: list[str], processes: int = 1) -> subprocess.CompletedProcess:
    launcher = [] if processes == 1 else ["-m", "accelerate.commands.launch", "--config_file",
                                          str(ROOT / "accelerate_configs" / "cpu_2proc.yaml")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *launcher, str(ROOT / "recipes" / "score.py"), *words], env=env, text=True,
                          capture_output=True, timeout=300)
