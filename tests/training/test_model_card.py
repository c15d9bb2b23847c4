"""The model card: what the Hub reads of it, that its lines work, and whose it is."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hfscale.folders import check_output_dir, is_edited_card, mark_card
from hfscale.process import InputError
from hfscale.training.model_card import card_data, hub_id, without_folders, write_model_card
from recipes import finetune, pretrain

QUIET = ["--disable_tqdm", "--report_to", "none", "--bf16", "false", "--use_cpu"]
TRAIN = ["--max_steps", "2", "--save_strategy", "no", "--sample_by", "line"]
SHAPE = [
    "--tokenizer",
    "train:300",
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--hidden_size",
    "32",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small model and an adapter of it."""
    place = tmp_path_factory.mktemp("cards")
    lines = [f"line {i} counts to {i * 3}" for i in range(80)]
    (place / "text.txt").write_text("\n".join(lines))
    with contextlib.chdir(place):
        pretrain.main(
            [
                "--source",
                str(place / "text.txt"),
                "--output_dir",
                "small",
                "--max_position_embeddings",
                "32",
            ]
            + ["--license", "mit", "--language", "en", "de", *SHAPE, *TRAIN, *QUIET]
        )
        finetune.main(
            ["--model", str(place / "small"), "--source", "text.txt", "--lora_r", "2"]
            + ["--output_dir", "tuned", *TRAIN, *QUIET]
        )
    return place


def front_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def python_of(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def record_with(**changes) -> dict:
    record = {
        "recipe": "finetune",
        "command": "hfscale finetune --model gpt2 --source user/text",
        "config": {"license": None, "language": None, "trust_remote_code": False},
        "data": {"source": ["user/text", "embedded:python-docs"]}
        | dict.fromkeys(("documents", "bytes", "tokens", "fingerprint"), {}),
        "model": {
            "architecture": "GPT2LMHeadModel",
            "parameters": 1000,
            "trained_parameters": 10,
            "base": "gpt2",
            "adapter": None,
        },
        "metrics": {
            "eval_loss": 2.5,
            "eval_perplexity": None,
            "eval_tokens": 100,
            "eval_runtime": 1.5,
            "eval_forget_loss": 3.5,
            "before_eval_loss": 4.5,
        },
        "versions": {"peft": "1.2"},
        "samples": ["a text"],
    }
    return record | changes


def test_what_the_hub_reads(place):
    card = ModelCard.load(place / "small" / "README.md")
    metrics = json.loads((place / "small" / "run.json").read_text())["metrics"]
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert (card.data.license, card.data.language) == ("mit", ["en", "de"])
    assert card.data.base_model is None and card.data.datasets is None
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["loss"].metric_value == metrics["eval_loss"]
    assert results["perplexity"].metric_value == metrics["eval_perplexity"]
    assert set(results) == {"loss", "perplexity", "bits_per_byte"}
    assert (results["loss"].dataset_name, results["loss"].dataset_split) == (
        "text.txt",
        "validation",
    )


def test_ids_of_the_hub_are_named_and_local_places_are_not(place):
    data = card_data(record_with(), "tuned").to_dict()
    assert data["base_model"] == "gpt2" and data["datasets"] == ["user/text"]
    assert data["model-index"][0]["results"] == [
        {
            "task": {"type": "text-generation"},
            "dataset": {
                "name": "user/text, embedded:python-docs",
                "type": "user/text",
                "split": "validation",
            },
            "metrics": [{"type": "loss", "value": 2.5}],
        }
    ]
    for name in ("small", "tuned"):
        card = (place / name / "README.md").read_text()
        assert str(place) not in card and "/tmp" not in card
    assert "--model small --source text.txt --lora_r 2" in card


def test_an_adapters_card_keeps_its_base_and_library():
    model = record_with()["model"] | {"adapter": "LORA"}
    data = card_data(record_with(model=model), "tuned").to_dict()
    assert data["library_name"] == "peft" and data["base_model"] == "gpt2"
    assert {"lora", "base_model:adapter:gpt2"} <= set(data["tags"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "tuned"])
def test_the_cards_own_lines_load_the_model(place, name):
    code = python_of((place / name / "README.md").read_text())
    what = "pipe.model" if name == "small" else "model"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(type({what}).__name__)"],
        cwd=place,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    expected = "GPT2LMHeadModel" if name == "small" else "PeftModelForCausalLM"
    assert result.stdout.split()[-1] == expected


def test_a_pushed_model_is_named_by_its_id(tmp_path):
    write_model_card(tmp_path, record_with(), hub_model_id="user/tuned")
    assert 'pipeline("text-generation", model="user/tuned")' in (tmp_path / "README.md").read_text()


def edit_text(card: str) -> str:
    return card.replace("## Limits\n", "## Limits\n\nNot for children.\n")


def edit_front(card: str) -> str:
    return card.replace("---\n", "---\nlicense: mit\n", 1)


def replace_all(card: str) -> str:
    return "# My own words\n"


@pytest.mark.parametrize("edit", [edit_text, edit_front, replace_all])
def test_what_people_wrote_stays(tmp_path, capsys, edit):
    path = tmp_path / "README.md"
    write_model_card(tmp_path, record_with())
    edited = edit(path.read_text())
    path.write_text(edited)
    write_model_card(tmp_path, record_with(samples=["another text"]))
    assert path.read_text() == edited
    assert "edited by hand and stays as it is" in capsys.readouterr().err
    (tmp_path / "training_args.bin").touch()
    with pytest.raises(InputError, match=r"no run wrote README\.md; move it away"):
        check_output_dir(str(tmp_path), resume=None, overwrite=True)


def test_a_runs_own_card_is_replaced(tmp_path):
    path = tmp_path / "README.md"
    for sample in ("a text", "another text"):
        write_model_card(tmp_path, record_with(samples=[sample]))
        assert sample in path.read_text() and not is_edited_card(path)
    path.write_text("---\nlibrary_name: peft\n---\n\n# Model Card for Model ID\n")  # peft's draft
    write_model_card(tmp_path, record_with())
    assert "hfscale's recipe" in path.read_text()


def test_what_peft_adds_to_a_card_is_no_edit(place, tmp_path):
    """peft writes into the card that is there whenever it saves an adapter beside it."""
    from peft import AutoPeftModelForCausalLM

    path = tmp_path / "README.md"
    card = (place / "tuned" / "README.md").read_text()
    older = re.sub(r"^- peft .*\n", "", card, flags=re.MULTILINE)  # of a release that is gone
    path.write_text(older)
    with contextlib.chdir(place):
        AutoPeftModelForCausalLM.from_pretrained("tuned").save_pretrained(tmp_path)
    assert path.read_text() != older
    assert not is_edited_card(path)


def test_the_mark_is_of_the_content():
    card = "---\nlicense: mit\n---\n\n# A model\n\nIts text.\n"
    marked = mark_card(card)
    assert "license: mit" in marked and marked.endswith("# A model\n\nIts text.\n")
    assert front_of(marked) == {"license": "mit"}


def test_names_of_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_id("gpt2") == "gpt2" and hub_id("user/model") == "user/model"
    assert [hub_id(name) for name in ("runs", "books/*.txt", "embedded:x", "/a/b", None)] == [
        None
    ] * 5
    assert without_folders("/home/me/text.txt") == "text.txt"
    assert without_folders("--source=/home/me/*.txt") == "--source=*.txt"
    assert without_folders("user/model") == "user/model"
