"""Adapters on GPT-2: how many weights they train, that they merge, save and load exactly, and what
is refused.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hfscale.adapters import load_for_training, merge_saved_adapter
from hfscale.arguments import AdapterArguments
from hfscale.config import check_recipe_args, shipped
from hfscale.data.tokenizer import train_bpe
from hfscale.models import load_model
from hfscale.process import InputError
from tests.tiny_models import APART, LLAMA, TOGETHER, save_tiny_model

IDS = torch.arange(3, 23).reshape(2, 10)
SHAPE = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
METHODS = {
    "lora": {"lora_r": 4},
    "dora": {"lora_r": 4, "use_dora": True},
    "rslora": {"lora_r": 4, "use_rslora": True},
    "IA3": {"peft_type": "IA3"},
    "VERA": {"peft_type": "VERA"},
    "GRALORA": {"peft_type": "GRALORA"},
    "HIRA": {"peft_type": "HIRA"},
    "RANDLORA": {"peft_type": "RANDLORA"},
    "FOURIERFT": {"peft_type": "FOURIERFT"},
    "LN_TUNING": {"peft_type": "LN_TUNING"},
}


def save_base(folder: Path, seed: int = 0, **shape: int) -> str:
    tokenizer = train_bpe(Dataset.from_dict({"text": ["some words to train on"]}), 270)
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=0, **SHAPE | shape)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def logits_of(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids, use_cache=False).logits


def train(model, ids=IDS, steps: int = 3):
    """A few large steps, so that an adapter which is lost or added twice shows."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 3e-2)
    torch.manual_seed(1)
    for _ in range(steps):
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# ---- sizes


def test_rank_16_trains_two_percent_of_gpt2_small_and_saves_few_megabytes(tmp_path, monkeypatch):
    """The default targets on GPT-2 small's real shape; counted by hand: rank x (inputs + outputs)
    of each layer.
    """
    torch.manual_seed(0)
    small = GPT2LMHeadModel(GPT2Config())
    tokenizer = train_bpe(Dataset.from_dict({"text": ["some words to train on"]}), 270)
    monkeypatch.setattr("hfscale.adapters.load_model", lambda name, **kwargs: small)
    model = load_for_training(AdapterArguments(model=str(tmp_path), lora_r=16), tokenizer)
    trained, whole = model.get_nb_trainable_parameters()
    assert trained == 12 * 16 * ((768 + 2304) + (768 + 768) + 2 * (768 + 3072)) == 2_359_296
    assert whole - trained == 124_439_808
    assert trained / (whole - trained) <= 0.02
    model.save_pretrained(tmp_path / "adapter")
    assert sum(p.stat().st_size for p in (tmp_path / "adapter").iterdir()) < 15e6


def test_attention_alone_and_upper_layers_alone(base, tokenizer):
    def adapted(**values):
        model = load_for_training(AdapterArguments(model=base, lora_r=4, **values), tokenizer)
        return sorted(
            {
                n.split(".lora_")[0].removeprefix("base_model.model.transformer.h.")
                for n, p in model.named_parameters()
                if p.requires_grad
            }
        )

    every = [
        f"{i}.{layer}"
        for i in (0, 1)
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert adapted() == every
    assert adapted(lora_target_modules=["attn.c_attn", "attn.c_proj"]) == [
        n for n in every if ".attn." in n
    ]
    assert adapted(freeze_layers=1) == every[4:]
    assert adapted(freeze_layers=1, lora_target_modules=["c_fc"]) == ["1.mlp.c_fc"]


def test_frozen_layers_do_not_move(base, tokenizer):
    before = load_file(Path(base, "model.safetensors"))
    model = train(load_for_training(AdapterArguments(model=base, freeze_layers=1), tokenizer))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    kept = {
        n
        for n in before
        if n.startswith(("transformer.h.0.", "transformer.wte", "transformer.wpe"))
    }
    assert before.keys() - moved == kept
    full = train(load_for_training(AdapterArguments(model=base), tokenizer))
    assert all(p.requires_grad for p in full.parameters())


# ---- saved, loaded, merged


@pytest.mark.parametrize("method", METHODS)
def test_saved_loaded_and_merged_models_agree(method, base, tokenizer, tmp_path):
    model = load_for_training(AdapterArguments(model=base, **METHODS[method]), tokenizer)
    untrained = logits_of(load_model(base))
    expected = logits_of(train(model))
    assert (expected - untrained).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert isinstance(loaded, PeftModel)
    assert (logits_of(loaded) - expected).abs().max() < 1e-6
    merge_saved_adapter(str(tmp_path))
    assert not list(tmp_path.glob("adapter*"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is GPT2LMHeadModel
    assert (logits_of(plain) - expected).abs().max() < 1e-4
    assert plain.lm_head.weight.data_ptr() == plain.transformer.wte.weight.data_ptr()


def test_grown_vocabulary_is_learned_tied_and_comes_back(base, tokenizer, tmp_path):
    args = AdapterArguments(model=base, lora_r=4, add_tokens=["<|im_start|>", "hfscale"])
    model = load_for_training(args, tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "hfscale"]) == [270, 271]
    assert tokenizer.decode([270, 271], skip_special_tokens=True) == "hfscale"
    ids = torch.cat([IDS, torch.tensor([[270], [271]])], dim=1)
    before = logits_of(model, ids)
    expected = logits_of(train(model, ids), ids)
    assert (expected - before)[..., 270:].abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert (
        sum(t.numel() for t in saved.values()) < 4 * 2 * 1000
    )  # the two rows, not both embeddings
    assert [tuple(t.shape) for n, t in saved.items() if "token" in n] == [(2, 32)]
    assert (logits_of(load_model(str(tmp_path)), ids) - expected).abs().max() < 1e-6
    tokenizer.save_pretrained(tmp_path)
    assert (
        logits_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path), ids) - expected
    ).abs().max() < 1e-6
    merge_saved_adapter(str(tmp_path))
    plain = load_model(str(tmp_path))
    assert plain.config.vocab_size == 272 == len(AutoTokenizer.from_pretrained(tmp_path))
    assert (logits_of(plain, ids) - expected).abs().max() < 1e-4
    assert plain.lm_head.weight.data_ptr() == plain.transformer.wte.weight.data_ptr()
    old = load_file(Path(base, "model.safetensors"))["transformer.wte.weight"]
    assert torch.equal(plain.transformer.wte.weight[:270], old)  # the rows of old tokens stay


UNTIED = {
    "llama": LLAMA,
    "gpt_neox": APART["gpt_neox"],
    "qwen3": LLAMA,
    "rwkv": TOGETHER["rwkv"],
    "phi": LLAMA,
    "gptj": APART["gptj"],
}  # the last two with a bias in the output layer


@pytest.mark.parametrize("kind", UNTIED)
@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_rows_of_new_tokens_come_back_where_embeddings_are_two_matrices(
    kind, padding, method, tmp_path
):
    """The same model at each load, and merged: the one that was trained. With padding, the new
    tokens take rows that the embeddings had.
    """
    folder = save_tiny_model(kind, UNTIED[kind], tmp_path / "base", padding)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = AdapterArguments(model=str(folder), add_tokens=["<|new|>", "hfscale"], **METHODS[method])
    model = load_for_training(args, tokenizer)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    new = tokenizer.convert_tokens_to_ids(["<|new|>", "hfscale"])
    assert new == [270, 271]
    ids = torch.cat([IDS, torch.tensor(new)[:, None]], dim=1)
    before = logits_of(model, ids)
    expected = logits_of(train(model, ids), ids)
    assert (expected - before)[..., new].abs().max() > 0.1
    assert (expected - before)[:, -1].abs().max() > 0.1  # what follows the new tokens
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    for _ in range(2):
        torch.manual_seed(_)
        assert (logits_of(load_model(str(tmp_path / "adapter")), ids) - expected).abs().max() < 1e-5
    merge_saved_adapter(str(tmp_path / "adapter"))
    plain = load_model(str(tmp_path / "adapter"))
    assert (logits_of(plain, ids) - expected).abs().max() < 1e-4
    assert plain.config.vocab_size == 270 + max(2, padding)


def test_a_tied_output_layer_with_a_bias_is_refused(tmp_path):
    folder = save_tiny_model("ctrl", APART["ctrl"], tmp_path)
    args = AdapterArguments(model=str(folder), lora_r=4, add_tokens=["new"])
    with pytest.raises(
        InputError, match="^add_tokens: the output layer of CTRLLMHeadModel has a bias"
    ) as error:
        load_for_training(args, AutoTokenizer.from_pretrained(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["ctrl", "mamba", "jamba", "falcon", "bloom", "opt", "gpt_neo"])
def test_adapters_of_other_kinds_train_save_load_and_merge(kind, tmp_path):
    """Among them layers named by numbers, as in a Sequential, and layers whose weights are read
    past them.
    """
    folder = save_tiny_model(kind, (APART | TOGETHER)[kind], tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_for_training(AdapterArguments(model=str(folder), lora_r=4), tokenizer)
    untrained = logits_of(model)
    expected = logits_of(train(model))
    assert (expected - untrained).abs().max() > 1e-2
    idle = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and ".lora_B." in name and not p.any()
    ]
    assert not idle
    model.save_pretrained(tmp_path / "adapter")
    assert (logits_of(load_model(str(tmp_path / "adapter"))) - expected).abs().max() < 1e-5
    merge_saved_adapter(str(tmp_path / "adapter"))
    assert (logits_of(load_model(str(tmp_path / "adapter"))) - expected).abs().max() < 1e-3


def test_grown_vocabulary_of_a_whole_model(base, tokenizer, tmp_path):
    model = load_for_training(AdapterArguments(model=base, add_tokens=["new"]), tokenizer)
    expected = logits_of(train(model), IDS)
    model.save_pretrained(tmp_path)
    plain = load_model(str(tmp_path))
    assert plain.config.vocab_size == 271
    assert torch.equal(logits_of(plain), expected)
    assert plain.lm_head.weight.data_ptr() == plain.transformer.wte.weight.data_ptr()


def test_tokens_that_are_known_grow_nothing(base, tokenizer, capsys):
    model = load_for_training(
        AdapterArguments(model=base, lora_r=4, add_tokens=["<|endoftext|>"]), tokenizer
    )
    assert model.config.vocab_size == 270 == len(tokenizer)
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == "add_tokens: the tokenizer has '<|endoftext|>' already"
    assert model.peft_config["default"].trainable_token_indices is None


def test_base_is_found_beside_the_adapter(tmp_path, monkeypatch):
    """Trained with relative paths in one folder, loaded from another one after both were moved."""
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    save_base(Path("runs/base"))
    tokenizer = AutoTokenizer.from_pretrained("runs/base")
    model = train(load_for_training(AdapterArguments(model="runs/base", lora_r=4), tokenizer))
    model.save_pretrained("runs/lora")
    monkeypatch.chdir(tmp_path)
    shutil.move("a", "b")
    assert (
        json.loads(Path("b/runs/lora/adapter_config.json").read_text())["base_model_name_or_path"]
        == "runs/base"
    )
    assert torch.equal(logits_of(load_model("b/runs/lora")), logits_of(model))


def test_adapter_of_plain_peft_loads(base, tmp_path):
    """Not made here: other targets, bias and whole embeddings in the file."""
    torch.manual_seed(2)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=2,
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        bias="all",
    )
    model = train(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert (logits_of(load_model(str(tmp_path))) - logits_of(model)).abs().max() < 1e-6


# ---- refused


@pytest.fixture
def adapter(base, tokenizer, tmp_path) -> Path:
    folder = tmp_path / "adapter"
    load_for_training(AdapterArguments(model=base, lora_r=4), tokenizer).save_pretrained(folder)
    return folder


def point_to(adapter: Path, base: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


@pytest.mark.parametrize("shape", [{"n_embd": 64}, {"n_layer": 1}, {"n_layer": 3}], ids=str)
def test_adapter_for_another_base_model(adapter, tmp_path, shape):
    point_to(adapter, save_base(tmp_path / "other", **shape))
    with pytest.raises(
        InputError, match="does not fit its base model .*it was made for another one"
    ) as error:
        load_model(str(adapter))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["runs/missing", "some/model"])
def test_adapter_without_its_base(adapter, where):
    point_to(adapter, where)
    with pytest.raises(
        InputError, match=f"^adapter .*: its base model {where}: cannot be loaded: no such folder"
    ):
        load_model(str(adapter))


def pickled(adapter: Path, value: object) -> None:
    """The adapter's weights, and this value, in a file that pickle reads."""
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights) | {"more": value}, adapter / "adapter_model.bin")
    weights.unlink()


class Code:
    """What a pickle can hold: here something that would make a file when it is read."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_pickle_in_an_adapters_folder_runs_no_code(adapter, tmp_path):
    pickled(adapter, Code(tmp_path / "made"))
    says = r"^adapter .*: its \.bin file is a pickle that holds more than weights"
    with pytest.raises(InputError, match=says) as error:
        load_model(str(adapter))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def test_an_old_adapter_in_a_pickle_of_weights_loads(adapter):
    expected = logits_of(load_model(str(adapter)))
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    assert torch.equal(logits_of(load_model(str(adapter))), expected)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("adapter_config.json", "{", "cannot be read: "),
        ("adapter_config.json", "[]", "cannot be read: "),
        ("adapter_config.json", '{"peft_type": "NONE"}', "cannot be read: "),
        ("adapter_config.json", '{"peft_type": "LORA"}', "names no base model"),
        ("adapter_model.safetensors", "junk", "cannot be read: "),
        ("run.json", "[]", None),
        ("run.json", "{", None),
    ],
)
def test_broken_files_of_an_adapter(adapter, name, content, says):
    (adapter / name).write_text(content)
    if says is None:
        assert isinstance(load_model(str(adapter)), PeftModel)
        return
    with pytest.raises(InputError, match=f"^adapter .*: .*{says}") as error:
        load_model(str(adapter))
    assert "\n" not in str(error.value)


def test_an_adapter_of_an_adapter_is_refused(adapter):
    point_to(adapter, str(adapter))
    with pytest.raises(InputError, match="^adapter .*: its base model .*: is an adapter itself"):
        load_model(str(adapter))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"lora_r": 10**8},
            "lora_r: got 100000000, expected at most 128, the wider side of the widest layer",
        ),
        (
            {"peft_type": "VERA", "peft_kwargs": {"r": 10**8}},
            "peft_kwargs: r: got 100000000, expected at most 1024",
        ),
        ({"add_tokens": [""]}, "add_tokens: got an empty one"),
        ({"add_tokens": ["a<", "b<", "a<"]}, "add_tokens: 'a<' is given twice"),
        (
            {"lora_r": 4, "lora_target_modules": ["c_attn", "q_proj"]},
            "q_proj .* these do: c_attn, c_fc, c_proj ",
        ),
        ({"lora_r": 4, "lora_target_modules": ["wte"]}, "wte ends the name of no linear layer"),
        (
            {"lora_r": 4, "lora_target_modules": ["lm_head"]},
            "lm_head ends the name of no linear layer",
        ),
        ({"lora_r": 4, "peft_type": "IA3"}, "give one of the two"),
        ({"load_in_4bit": True}, "load_in_4bit: works with --lora_r or --peft_type"),
        ({"lora_r": 4, "freeze_layers": 2}, "freeze_layers: got 2, the model has 2 blocks"),
        ({"freeze_layers": -1}, "freeze_layers: got -1"),
        (
            {"freeze_layers": 1, "add_tokens": ["x"]},
            "add_tokens: their embeddings would not be trained",
        ),
        (
            {"peft_type": "VERA", "add_tokens": ["x"]},
            "add_tokens: their embeddings would not be trained",
        ),
        ({"peft_type": "IA3", "lora_target_modules": ["c_attn"]}, "IA3 has layers of its own"),
        ({"lora_r": 4, "peft_kwargs": {"rang": 3}}, "peft_kwargs: LORA: .*rang"),
        ({"lora_r": 4, "peft_kwargs": {"r": 3}}, "peft_kwargs: r cannot be set here"),
        (
            {"lora_r": 4, "peft_kwargs": {"modules_to_save": ["wte"]}},
            "peft_kwargs: modules_to_save cannot be set",
        ),
        ({"use_dora": True}, "use_dora: works with --lora_r"),
        ({"lora_dropout": 0.1}, "lora_dropout: works with --lora_r"),
        ({"merge": True}, "merge: works with --lora_r or --peft_type"),
        ({"lora_target_modules": ["c_attn"]}, "lora_target_modules: works with"),
    ],
)
def test_settings_that_cannot_work(base, tokenizer, values, says):
    with pytest.raises(InputError, match=says) as error:
        load_for_training(AdapterArguments(model=base, **values), tokenizer)
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_checkpoint_to_start_from(adapter, tokenizer):
    with pytest.raises(InputError, match="is an adapter; make a plain model of it first"):
        load_for_training(AdapterArguments(model=str(adapter)), tokenizer)


def test_dropout_of_adapters_is_off_when_they_answer(base, tokenizer):
    model = load_for_training(AdapterArguments(model=base, lora_r=4, lora_dropout=0.5), tokenizer)
    train(model)
    assert torch.equal(logits_of(model), logits_of(model))
    assert not math.isnan(logits_of(model).sum())


@pytest.mark.parametrize(("flag", "least"), [("lora_r", 1), ("freeze_layers", 0)])
def test_the_parser_knows_the_smallest_values(flag, least):
    recipe = shipped("recipes", "*.py")["finetune"]
    says = f"^command line: --{flag}: got '-1', expected at least {least}$"
    with pytest.raises(InputError, match=says):
        check_recipe_args(recipe, [f"--{flag}", "-1"])
