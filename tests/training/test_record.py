"""The record of a run: what it begins with, and what it says of the model."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from hfscale.models import weights_fingerprint
from hfscale.training.record import _json_values
from tests.training.test_model_card import QUIET, SHAPE, TRAIN, place  # noqa: F401


@pytest.mark.slow
def test_the_command_can_be_typed_again(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"line {i} is {i * 3}" for i in range(80)))
    words = ["--accelerate", "cpu", "--source", "text.txt", "--output_dir", "a run"]
    words += ["--max_position_embeddings", "32", *SHAPE, *TRAIN, *QUIET]
    result = subprocess.run(
        [sys.executable, "-m", "hfscale.cli", "pretrain", *words],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    record = json.loads((tmp_path / "a run" / "run.json").read_text())
    assert shlex.split(record["command"]) == ["hfscale", "pretrain", *words]
    beginning = ["schema_version", "recipe", "command", "config", "versions", "hardware", "seconds"]
    assert list(record)[:7] == beginning
    assert record["recipe"] == "pretrain" and "training" not in record["config"]
    assert record["config"]["max_steps"] == 2 and record["config"]["num_hidden_layers"] == 1
    assert record["hardware"]["device"] == "cpu" and record["hardware"]["world_size"] == 1
    assert record["seconds"] > record["train"]["seconds"] > 0
    assert record["train"]["cpu_seconds"] > 0


def test_json_holds_no_number_that_is_not_finite():
    values = {"loss": 800.0, "perplexity": math.inf, "list": [math.nan, 1, "inf"], "type": int}
    assert _json_values(values) == {
        "loss": 800.0,
        "perplexity": None,
        "list": [None, 1, "inf"],
        "type": "<class 'int'>",
    }


def test_a_fingerprint_is_of_the_weights_alone(place, tmp_path):  # noqa: F811
    small = shutil.copytree(place / "small", tmp_path / "small")
    fingerprint = weights_fingerprint(str(small))
    (small / "README.md").write_text("other words")
    (small / "model.fp16.safetensors").write_bytes(b"a copy that nobody reads")
    assert weights_fingerprint(str(small)) == fingerprint
    weights = bytearray((small / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (small / "model.safetensors").write_bytes(weights)
    assert weights_fingerprint(str(small)) not in (fingerprint, None)
    assert weights_fingerprint(str(tmp_path)) is None
    assert weights_fingerprint("nobody/has-this") is None


def test_an_adapters_fingerprint_counts_its_base(place, tmp_path):  # noqa: F811
    tuned = shutil.copytree(place / "tuned", tmp_path / "tuned")
    config = json.loads((tuned / "adapter_config.json").read_text())
    base = shutil.copytree(place / "small", tmp_path / "base")
    config["base_model_name_or_path"] = str(base)
    (tuned / "adapter_config.json").write_text(json.dumps(config))
    fingerprint = weights_fingerprint(str(tuned))
    assert fingerprint == weights_fingerprint(str(place / "tuned"))
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    assert weights_fingerprint(str(tuned)) != fingerprint


def test_a_hub_id_has_the_fingerprint_of_its_folder_in_the_cache(place, tmp_path, monkeypatch):  # noqa: F811
    snapshot = tmp_path / "models--user--small" / "snapshots" / "abc"
    shutil.copytree(place / "small", snapshot)
    (tmp_path / "models--user--small" / "refs").mkdir()
    (tmp_path / "models--user--small" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights_fingerprint("user/small") == weights_fingerprint(str(place / "small"))
