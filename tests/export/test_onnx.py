"""An ONNX file is the model, in onnxruntime: with and without a past, for any batch and length."""

import json

import numpy as np
import pytest
import torch

from hfscale.export import formats
from hfscale.export.formats import check_format
from hfscale.export.runners import TorchRunner
from hfscale.process import InputError
from recipes import export
from tests.export.test_export import file_sizes_limited
from tests.tiny_models import GPT2, LLAMA, MAMBA, VOCAB_SIZE, save_tiny_model, tiny_model

onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from hfscale.export import onnx_file  # noqa: E402
from hfscale.export.onnx_file import FILES, FOLDER, OnnxRunner, write_onnx  # noqa: E402

SHAPES = {
    "gpt2": {**GPT2, "n_layer": 1},
    "llama": {**LLAMA, "num_hidden_layers": 1},
}


def as_traced(kind):
    return tiny_model(kind, SHAPES[kind], VOCAB_SIZE)


@pytest.fixture(scope="module")
def graphs():
    """Each shape as traced, which takes seconds."""
    with onnx_file.exporter_silenced():
        return {kind: onnx_ir.to_proto(onnx_file.traced(as_traced(kind))) for kind in SHAPES}


@pytest.fixture
def traced_before(graphs, monkeypatch):
    """What is written is the graph that was traced before."""

    def graph(model):
        return onnx_ir.from_proto(graphs[model.config.model_type])

    monkeypatch.setattr(onnx_file, "traced", graph)


@pytest.fixture(params=SHAPES)
def pair(request, traced_before, tmp_path):
    """A model, and its file in onnxruntime."""
    model = as_traced(request.param)
    write_onnx(tmp_path, model, "f32")
    return TorchRunner(model), OnnxRunner(tmp_path / FOLDER / FILES["f32"])


def ids_of(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (batch, length), generator=generator)


@pytest.mark.slow
def test_every_batch_and_length_has_the_logits_of_the_model(pair):
    original, exported = pair
    for batch, length in ((1, 1), (1, 5), (2, 33), (3, 64)):
        ids = ids_of(batch, length)
        torch.testing.assert_close(exported.logits(ids), original.logits(ids), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_token_by_token_with_the_cache_is_the_same_text(pair):
    original, exported = pair
    prompts = ids_of(3, 7)
    written = exported.continue_greedily(prompts, 40)
    assert torch.equal(written, original.continue_greedily(prompts, 40))
    assert len(set(written.flatten().tolist())) > 10  # no single token again and again


@pytest.mark.slow
def test_padding_on_the_left_changes_nothing(pair):
    _, exported = pair
    row = ids_of(1, 6)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1)
    given = {
        "input_ids": padded.numpy(),
        "attention_mask": np.array([[0] * 4 + [1] * 6]),
        "position_ids": np.array([[0] * 4 + list(range(6))]),
    }
    logits = exported.session.run(["logits"], given | exported.no_past(1))[0]
    torch.testing.assert_close(
        torch.from_numpy(logits[:, 4:]), exported.logits(row), rtol=0, atol=1e-4
    )


@pytest.mark.slow
def test_weights_that_one_file_cannot_hold_lie_beside_it(traced_before, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES_INSIDE", 0)
    model = as_traced("gpt2")
    write_onnx(tmp_path, model, "f32")
    names = {path.name for path in (tmp_path / FOLDER).iterdir()}
    assert names == {"model.onnx", "model.onnx_data"}
    exported = OnnxRunner(tmp_path / FOLDER / "model.onnx")
    ids = ids_of(2, 9)
    expected = TorchRunner(model).logits(ids)
    torch.testing.assert_close(exported.logits(ids), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_inputs_and_outputs_have_the_names_that_other_programs_look_for(pair):
    _, exported = pair
    assert list(exported.inputs) == [
        *("input_ids", "attention_mask", "position_ids"),
        *("past_key_values.0.key", "past_key_values.0.value"),
    ]
    assert exported.outputs == ["logits", "present.0.key", "present.0.value"]
    assert exported.inputs["input_ids"].shape == ["batch", "sequence"]
    assert exported.inputs["attention_mask"].shape == ["batch", "past + sequence"]
    past = exported.inputs["past_key_values.0.key"].shape
    assert (past[0], past[2]) == ("batch", "past")


@pytest.fixture
def words(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and on the log, and more words\n")
    model = save_tiny_model("gpt2", SHAPES["gpt2"], tmp_path / "model")
    return [
        *("--model", str(model), "--source", str(tmp_path / "text.txt")),
        *("--output_dir", str(tmp_path / "export"), "--max_new_tokens", "4"),
        *("--to", "onnx", "--outtype", "int8"),
    ]


@pytest.mark.slow
def test_int8_is_held_to_its_perplexity(words, traced_before, tmp_path, capfd):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="perplexity changes by .*, allowed is 1e-09;"):
        export.main([*words, "--perplexity_tolerance", "1e-9"])
    assert sorted(tmp_path.iterdir()) == before
    export.main([*words, "--perplexity_tolerance", "0.5"])  # weights far from 0
    assert "1 of 1" in capfd.readouterr().out
    folder = tmp_path / "export"
    record = json.loads((folder / "export.json").read_text())
    assert record["logits"]["largest_difference"] > 0
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert names >= {"onnx/model_int8.onnx", "config.json", "tokenizer.json", "manifest.json"}
    weights = onnx_ir.load(folder / "onnx" / "model_int8.onnx").graph.initializers.values()
    assert onnx_ir.DataType.INT8 in {value.dtype for value in weights}


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(words, traced_before, tmp_path):
    before = sorted(tmp_path.iterdir())
    with file_sizes_limited(60_000), pytest.raises(InputError, match="free some space"):
        export.main([*words, "--outtype", "f32"])
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_cannot_be_traced_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot trace MambaForCausalLM .*--to safetensors"):
        write_onnx(tmp_path, tiny_model("mamba", MAMBA, VOCAB_SIZE), "f32")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if "onnxr" in name else name)
    with pytest.raises(
        InputError, match=r'to onnx: not installed: onnxruntime; pip install "hfscale\[export\]"'
    ):
        check_format("onnx", "f32")


def test_numbers_of_another_format_are_refused_with_its_name():
    with pytest.raises(InputError, match="onnx has no q8_0, only f32, int8; q8_0 is one of gguf"):
        check_format("onnx", "q8_0")
