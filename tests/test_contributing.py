"""What CONTRIBUTING.md tells to do, done as it stands there: its files written, its commands run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfscale.architectures import ARCHITECTURES
from hfscale.new_models import count_new_parameters, new_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FILE = re.compile(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```", re.M | re.S)
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
SECTION = "Change the optimizer, log one more value"
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.M)[1:]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files of the page, as a reader would write them."""
    folder = tmp_path_factory.mktemp("contributor")
    for name, text in FILE.findall(PAGE):
        (folder / name).write_text(text)
    return folder


def follow(run_warm, place: Path, section: str) -> str:
    """Run the commands of a section; what they print on stdout."""
    shown = ""
    for block in COMMANDS.findall(SECTIONS[section]):
        for line in block.splitlines():
            name, *words = shlex.split(line)
            program = {"hfscale": ["-m", "hfscale.cli"], "python": []}[name]
            command = [sys.executable, *program, *words]
            result = run_warm(command, cwd=place, env=dict(os.environ), timeout=300)
            assert result.returncode == 0, f"{line}\n{result.stderr}"
            shown += result.stdout
    return shown


@pytest.mark.slow
def test_add_a_recipe(place, run_warm):
    lengths = [
        int(line.split()[0]) for line in follow(run_warm, place, "Add a recipe").splitlines()
    ]
    assert len(lengths) == 3 and lengths == sorted(lengths, reverse=True) and lengths[-1] > 12


@pytest.mark.slow
def test_add_a_task_and_a_metric(place, run_warm):
    follow(run_warm, place, "Add a task")
    record = json.loads((place / "scores" / "animals" / "scores.json").read_text())
    assert record["systems"][0]["metrics"].keys() >= {"eval_exact_match", "eval_exact_match_ci95"}
    follow(run_warm, place, "Add a metric")
    record = json.loads((place / "scores" / "one-word" / "scores.json").read_text())
    metrics = record["systems"][0]["metrics"]
    lines = (place / "scores" / "one-word" / "predictions.jsonl").read_text().splitlines()
    answers = [json.loads(line)["prediction"] for line in lines]
    share = sum(len(answer.split()) == 1 for answer in answers) / len(answers)
    assert metrics["eval_one_word"] == pytest.approx(share)
    assert "eval_one_word_ci95" in metrics


@pytest.mark.slow
def test_add_a_source_and_a_model(place, run_warm):
    follow(run_warm, place, "Add a source")
    record = json.loads((place / "runs" / "counting" / "run.json").read_text())
    assert sum(record["data"]["documents"].values()) == 200
    follow(run_warm, place, "Add an architecture")
    record = json.loads((place / "runs" / "mistral" / "run.json").read_text())
    assert record["model"]["architecture"] == "MistralForCausalLM"
    assert record["train"]["steps"] == 20


def test_an_architecture_is_one_entry(place, monkeypatch):
    """With it, depth and width make the published model, to the last parameter."""
    monkeypatch.setitem(ARCHITECTURES, "mistral", None)  # put back at the end
    exec((place / "mistral.py").read_text())
    sizes = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    config = new_config("mistral", vocab_size=32000, **sizes)
    assert count_new_parameters(config) == 7_241_732_096


@pytest.mark.slow
def test_change_the_optimizer_and_log_one_more_value(place):
    """A copy of the recipe, a file of one's own and one line."""
    words = shlex.split(COMMANDS.findall(SECTIONS["Add a source"])[0])[2:]
    folder = words[words.index("--output_dir") + 1]
    words[words.index("--output_dir") + 1] = f"{folder}-mine"
    subprocess.run(
        [sys.executable, "-m", "hfscale.cli", "copy", "pretrain", "logged"], cwd=place, check=True
    )
    recipe = place / "logged" / "pretrain.py"
    text = recipe.read_text()
    [line] = re.findall(r"^ *from hfscale.training.trainer import LMTrainer$", text, re.M)
    [own] = re.findall(r"`(from weight_norm import .*?)`", SECTIONS[SECTION])
    recipe.write_text(text.replace(line.strip(), own))
    (place / "logged" / "weight_norm.py").write_text((place / "weight_norm.py").read_text())
    subprocess.run(
        [sys.executable, "-m", "hfscale.cli", "logged/pretrain.py", *words]
        + ["--logging_steps", "5"],
        cwd=place,
        check=True,
    )
    state = json.loads((place / f"{folder}-mine" / "trainer_state.json").read_text())
    norms = [log["weight_norm"] for log in state["log_history"] if "loss" in log]
    assert len(norms) == 4 and len(set(norms)) == 4
    # Adagrad alone keeps a sum.
    state_file = next((place / f"{folder}-mine").glob("checkpoint-*/optimizer.pt"))
    states = torch.load(state_file, weights_only=True)["state"].values()
    assert all("sum" in state for state in states)
