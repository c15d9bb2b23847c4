"""Models, new and loaded: which sizes are made, which files are read, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfscale.config import check_recipe_args
from hfscale.models import context_limit, load_model, weights_fingerprint
from hfscale.new_models import new_config
from hfscale.process import InputError
from tests.tiny_models import (
    APART,
    BART,
    CONTEXT,
    GPT2,
    LLAMA,
    MAMBA,
    OPT,
    TOGETHER,
    VOCAB_SIZE,
    save_tiny_model,
    tiny_model,
)

ROOT = Path(__file__).parents[1]
IDS = torch.arange(3, 23).reshape(2, 10)


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits.float()


# ---- values that no model has


@pytest.mark.parametrize(
    ("recipe", "words", "says"),
    [
        (
            "pretrain",
            "--hidden_size 1000000000",
            "--hidden_size: got '1000000000', expected 1 to 1000000",
        ),
        (
            "pretrain",
            "--num_hidden_layers 1000000",
            "--num_hidden_layers: got '1000000', expected 1 to 1000",
        ),
        (
            "finetune_task",
            "--num_hidden_layers 0",
            "--num_hidden_layers: got '0', expected 1 to 1000",
        ),
        ("finetune", "--lora_r 0", "--lora_r: got '0', expected at least 1"),
        ("finetune", "--lora_alpha 0", "--lora_alpha: got '0', expected 1e-06 to"),
        ("finetune_preference", "--lora_alpha inf", "--lora_alpha: got 'inf', expected 1e-06 to"),
        ("finetune_task", "--lora_dropout -1", "--lora_dropout: got '-1', expected 0 to 0.99"),
        ("finetune", "--lora_dropout 1", "--lora_dropout: got '1', expected 0 to 0.99"),
    ],
)
def test_values_beyond_all_sense_are_refused_at_once(recipe, words, says):
    with pytest.raises(InputError, match=says) as error:
        check_recipe_args(ROOT / "recipes" / f"{recipe}.py", words.split())
    assert "\n" not in str(error.value)


# ---- loaded ones: files of every kind


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_tiny_model("llama", LLAMA, tmp_path_factory.mktemp("models") / "plain")


def rewritten(plain: Path, folder: Path, form: str) -> Path:
    """The same model in files of another form."""
    shutil.copytree(plain, folder)
    model = AutoModelForCausalLM.from_pretrained(plain)
    state = model.state_dict()
    (folder / "model.safetensors").unlink()
    if form == "sharded":
        model.save_pretrained(folder, max_shard_size="20KB")
    elif form in ("bin", "old_bin"):
        torch.save(
            state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin"
        )
    elif form == "sharded_bin":
        files = {name: f"pytorch_model-{1 + i % 2:05}-of-00002.bin" for i, name in enumerate(state)}
        for file in set(files.values()):
            torch.save({name: state[name] for name in state if files[name] == file}, folder / file)
        index = {"metadata": {}, "weight_map": files}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        model.to(getattr(torch, form)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "form", ["sharded", "bin", "old_bin", "sharded_bin", "float16", "bfloat16"]
)
def test_the_same_model_in_other_files(plain, tmp_path, form):
    folder = rewritten(plain, tmp_path / form, form)
    model = load_model(str(folder), dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rounding = {"float16": 0.02, "bfloat16": 0.2}.get(form, 1e-6)
    assert (logits_of(model) - logits_of(load_model(str(plain)))).abs().max() < rounding
    assert weights_fingerprint(str(folder)) is not None


class Code:
    """What a pickle can hold: here something that would make a file when it is read."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("form", ["bin", "old_bin"])
def test_a_pickle_in_a_models_folder_runs_no_code(plain, tmp_path, form):
    folder = rewritten(plain, tmp_path / form, form)
    state = torch.load(folder / "pytorch_model.bin")
    state["more"] = Code(tmp_path / "made")
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
    says = r"^model .*: its \.bin file is a pickle that holds more than weights"
    with pytest.raises(InputError, match=says) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value) and not (tmp_path / "made").exists()


def test_a_shard_that_is_missing(plain, tmp_path):
    folder = rewritten(plain, tmp_path / "sharded", "sharded")
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(InputError, match="^model .*: cannot be loaded: .*model-00002-of-"):
        load_model(str(folder))


def test_a_model_without_its_output_layer(plain, tmp_path):
    AutoModelForCausalLM.from_pretrained(plain).model.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="do not hold 1 of the weights .* such as lm_head.weight"):
        load_model(str(tmp_path / "bare"))


# ---- what a configuration says


@pytest.mark.parametrize(
    ("kind", "fields", "limit"),
    [
        ("gpt2", APART["gpt2"], CONTEXT),
        ("llama", LLAMA, CONTEXT),
        ("mpt", TOGETHER["mpt"], CONTEXT),
        ("rwkv", TOGETHER["rwkv"], CONTEXT),
        ("fuyu", APART["fuyu"], CONTEXT),
        ("roberta", TOGETHER["roberta"], CONTEXT - 2),
        ("opt", OPT, CONTEXT),
        ("bart", BART, CONTEXT),
        ("mamba", MAMBA, None),
        ("bloom", TOGETHER["bloom"], None),
        ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, None),
    ],
)
def test_the_context_that_a_model_states(kind, fields, limit):
    model = tiny_model(kind, fields, VOCAB_SIZE)
    assert context_limit(model) == limit
    if limit:
        with torch.no_grad():
            model(torch.randint(2, VOCAB_SIZE, (1, limit)), use_cache=False)  # no more than fits


def test_config_json_has_the_context_by_the_name_that_converters_read(tmp_path):
    """llama.cpp's reads n_ctx, which transformers writes no more."""
    config = new_config("gpt2", max_position_embeddings=48)
    config.save_pretrained(tmp_path / "new")
    save_tiny_model("gpt2", GPT2, tmp_path / "loaded")
    load_model(str(tmp_path / "loaded")).save_pretrained(tmp_path / "saved")
    for name, context in (("new", 48), ("saved", CONTEXT)):
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert written["n_ctx"] == written["n_positions"] == context
