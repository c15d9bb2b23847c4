"""`export --merge`: the mean of models, checked tensor by tensor, and adapters as peft combines them."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hfscale.models import load_model
from hfscale.process import InputError
from recipes import export
from tests.tiny_models import GPT2, LLAMA, VOCAB_SIZE, save_tiny_model, tiny_model

TEXT = "the cat sat on the mat and on the log, and some more words\n"
SMALL = {**GPT2, "n_layer": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three models alike, two adapters on the first, one on the second, and a text."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(TEXT)
    for seed, name in enumerate("abc"):
        save_tiny_model("gpt2", SMALL, folder / name)
        torch.manual_seed(seed)
        weights = load_file(folder / name / "model.safetensors")
        drawn = {key: torch.randn_like(value) * 0.1 for key, value in weights.items()}
        save_file(drawn, folder / name / "model.safetensors", {"format": "pt"})
    for seed, (base, name) in enumerate((("a", "x"), ("a", "y"), ("b", "z"))):
        save_adapter(folder / base, folder / name, seed)
    return folder


def save_adapter(base, folder, seed, **settings):
    torch.manual_seed(seed)
    settings = {"r": 2 + seed, "lora_alpha": 8, "target_modules": ["c_attn"]} | settings
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **settings)
    model = get_peft_model(load_model(str(base)), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def merge(place, output, *names, to=()):
    words = ["--source", str(place / "text.txt"), "--output_dir", str(output)]
    folders = [str(place / name) if isinstance(name, str) else str(name) for name in names]
    return export.main(["--merge", *folders, *words, "--max_new_tokens", "2", *to])


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_two_models_give_the_mean_of_each_tensor(place, tmp_path):
    record = merge(place, tmp_path / "out", "a", "b", to=["--weights", "3", "1"])
    a, b, out = (weights_of(folder) for folder in (place / "a", place / "b", tmp_path / "out"))
    assert out.keys() == a.keys()
    for name, mean in out.items():
        assert torch.allclose(mean, 0.75 * a[name] + 0.25 * b[name], atol=1e-7), name
    merged = [(str(place / "a"), 0.75), (str(place / "b"), 0.25)]
    assert record["model"]["merged_from"] == merged
    card = (tmp_path / "out" / "README.md").read_text()
    assert "a` (0.75)" in card and "b` (0.25) (the mean of the weights)" in card
    tied = load_model(str(tmp_path / "out"))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_a_model_with_itself_is_the_model(place, tmp_path):
    """... to the bit, also three times, where a third is no float."""
    merge(place, tmp_path / "out", "a", "a", "a")
    a, out = weights_of(place / "a"), weights_of(tmp_path / "out")
    assert all(torch.equal(out[name], a[name]) for name in a)


def test_models_of_half_precision_in_shards(place, tmp_path):
    """The mean is rounded once, to the type of the files."""
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        tiny_model("llama", LLAMA, VOCAB_SIZE).bfloat16().save_pretrained(
            folder, max_shard_size="20KB"
        )
        AutoTokenizer.from_pretrained(place / "a").save_pretrained(folder)
    assert len([*folders[0].glob("model-*.safetensors")]) > 1
    merge(place, tmp_path / "out", *folders)
    one, two = (load_model(str(folder)).state_dict() for folder in folders)
    out = load_model(str(tmp_path / "out")).state_dict()
    for name in out:
        mean = ((one[name].float() + two[name].float()) / 2).bfloat16()
        assert torch.equal(out[name], mean.float()), name


def deltas(place, name):
    """What an adapter adds to each weight, from its file alone."""
    config = json.loads((place / name / "adapter_config.json").read_text())
    weights = load_file(place / name / "adapter_model.safetensors")
    [down] = [value for key, value in weights.items() if "lora_A" in key]
    [up] = [value for key, value in weights.items() if "lora_B" in key]
    return (up @ down).T * config["lora_alpha"] / config["r"]  # Conv1D: inputs first


LAYER = "transformer.h.0.attn.c_attn.weight"


@pytest.mark.parametrize("how", [[], ["--combination_type", "svd"]], ids=["cat", "svd"])
def test_adapters_give_the_mean_of_what_they_add(place, tmp_path, how):
    """svd keeps as many directions as the larger adapter has: the nearest such matrix."""
    merge(place, tmp_path / "out", "x", "y", to=how)
    added = weights_of(tmp_path / "out")[LAYER] - weights_of(place / "a")[LAYER]
    mean = (deltas(place, "x") + deltas(place, "y")) / 2
    if how:
        u, s, v = torch.linalg.svd(mean, full_matrices=False)
        mean = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
    assert torch.allclose(added, mean, atol=1e-5)


def test_linear_is_not_the_mean(place, tmp_path):
    """peft adds A and B apart: an adapter with itself counts twice."""
    merge(place, tmp_path / "out", "x", "x", to=["--combination_type", "linear"])
    added = weights_of(tmp_path / "out")[LAYER] - weights_of(place / "a")[LAYER]
    assert torch.allclose(added, 2 * deltas(place, "x"), atol=1e-5)


def test_ties_keeps_the_largest_values(place, tmp_path):
    """With one sign and all values kept it is linear; dropped values change it."""
    outs = []
    for density in ("1", "0.5"):
        how = ["--combination_type", "ties", "--density", density]
        merge(place, tmp_path / density, "x", "x", to=how)
        outs.append(weights_of(tmp_path / density)[LAYER] - weights_of(place / "a")[LAYER])
    # The mean over those of one sign, of A and of B, each with the root of the weight.
    assert torch.allclose(outs[0], deltas(place, "x") / 2, atol=1e-5)
    assert not torch.allclose(outs[0], outs[1], atol=1e-5)


def unlike(place, tmp_path, kind):
    """A folder that differs from `a`, or `x`, in one thing."""
    folder = tmp_path / kind
    if kind in ("dora", "rslora"):
        save_adapter(place / "a", folder, 0, **{f"use_{kind}": True})
        return folder
    shutil.copytree(place / "b", folder)
    weights = weights_of(folder)
    if kind == "shape":
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:32].clone()
    elif kind == "dtype":
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"].half()
    elif kind == "names":
        del weights["transformer.wpe.weight"]
    elif kind == "heads":
        config = json.loads((folder / "config.json").read_text()) | {"n_head": 2}
        (folder / "config.json").write_text(json.dumps(config))
    elif kind == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["elsewhere"])
        tokenizer.save_pretrained(folder)
    elif kind == "empty":
        (folder / "model.safetensors").unlink()
        return folder
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("first", "kind", "says"),
    [
        (
            "a",
            "shape",
            r"shape/model.safetensors: transformer.wpe.weight is F32 \[32, 32\], and F32",
        ),
        (
            "a",
            "dtype",
            r"dtype/model.safetensors: transformer.wpe.weight is F16 \[64, 32\], and F32",
        ),
        ("a", "names", "names: has no tensor transformer.wpe.weight, which .*/a has"),
        ("a", "heads", "heads/config.json: n_head is 2, and 4 in"),
        ("a", "tokenizer", "tokenizer: its tokenizer is another than that of"),
        ("a", "empty", "empty: cannot be loaded|empty: holds no model.safetensors"),
        ("x", "dora", "dora: its adapter has use_dora, which peft does not combine right"),
        ("x", "rslora", "rslora: its adapter has use_rslora, which peft does not combine right"),
    ],
)
def test_what_differs_first_is_named(place, tmp_path, first, kind, says):
    other = unlike(place, tmp_path, kind)
    with pytest.raises(InputError, match=says) as error:
        merge(place, tmp_path / "out", first, other)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "words", "says"),
    [
        ("a", [], "merge .*/a: one folder has nothing to merge with"),
        ("an", [], "merge .*/n: no such folder"),
        ("ax", [], "merge .*/x: is an adapter, and .*/a is not"),
        ("xz", [], "merge .*/z: is an adapter of .*/b, and .*/x of .*/a, which has other weights"),
        ("xy", ["--combination_type", "linear"], "merge: combination_type linear: .* same r value"),
        ("xy", ["--combination_type", "ties"], "density: combination_type ties needs one above 0"),
        ("xy", ["--density", "0.5"], "density: combination_type cat goes without it"),
        ("ab", ["--combination_type", "svd"], "combination_type: is of adapters"),
        ("ab", ["--weights", "1"], "weights: got 1, expected one for each of 2"),
        ("ab", ["--weights", "1", "-1"], "weights: their sum is 0"),
        ("ab", ["--model", "c"], "model c: --merge names all folders"),
    ],
)
def test_arguments_that_do_not_fit(place, tmp_path, names, words, says):
    with pytest.raises(InputError, match=says) as error:
        merge(place, tmp_path / "out", *names, to=words)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(place, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: exists; name another"):
        merge(place, tmp_path / "out", "a", "b")
    with pytest.raises(InputError, match="weights: belongs to --merge, which is not given"):
        export.main(["--model", str(place / "a"), "--weights", "1"])


def test_integers_that_differ_have_no_mean(place, tmp_path):
    for name, number in (("one", 1), ("two", 2)):
        shutil.copytree(place / "a", tmp_path / name)
        weights = weights_of(place / "a") | {"steps": torch.tensor([number])}
        save_file(weights, tmp_path / name / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="two: steps holds I64 numbers that have no mean"):
        merge(place, tmp_path / "out", tmp_path / "one", tmp_path / "two")


def test_the_adapters_are_those_of_the_folders(place):
    """Of this file: what it computes from the files is what peft adds."""
    model = PeftModel.from_pretrained(load_model(str(place / "a")), str(place / "y"))
    added = model.merge_and_unload().state_dict()[LAYER] - weights_of(place / "a")[LAYER]
    assert torch.allclose(added, deltas(place, "y"), atol=1e-5)
