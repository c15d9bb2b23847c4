"""Weights of 8 bits by torchao. The package lies beside the environment, since transformers loads it
wherever it finds it: `HFSCALE_TORCHAO` names its folder.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfscale.export import formats
from hfscale.export.formats import FORMATS, check_format
from hfscale.process import InputError
from tests.tiny_models import GPT2, LLAMA, VOCAB_SIZE, save_tiny_model, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif("HFSCALE_TORCHAO" not in os.environ, reason="HFSCALE_TORCHAO names no folder")
def test_llama_is_written_with_weights_of_8_bits_and_read_again(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and on the log, and more words\n")
    folder = save_tiny_model("llama", LLAMA, tmp_path / "model")
    words = [
        *("--model", str(folder), "--source", str(tmp_path / "text.txt"), "--to", "torchao"),
        *("--outtype", "int8", "--perplexity_tolerance", "0.5"),  # weights far from 0
        *("--output_dir", str(tmp_path / "export"), "--max_new_tokens", "4"),
    ]
    result = subprocess.run(
        [sys.executable, "recipes/export.py", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.environ["HFSCALE_TORCHAO"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["logits"]["largest_difference"] > 0
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "torchao"
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "export")]
    assert sizes[1] < sizes[0]


def test_gpt2_is_refused():
    with pytest.raises(InputError, match="GPT2LMHeadModel keeps its matrices in Conv1D"):
        FORMATS["torchao"].check(tiny_model("gpt2", GPT2, VOCAB_SIZE), tiny_tokenizer(), "int8")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'torchao; pip install "hfscale\[torchao\]"'):
        check_format("torchao", "int8")
