"""Every file that is shipped to be launched is one that can be: recipe configs and launch configs,
found by glob.
"""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from hfscale.config import check_recipe_args, shipped
from hfscale.help import WITHOUT_CONFIG

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/*.y*ml"))
SAMPLE_DATA = sorted((ROOT / "recipes" / "configs").rglob("made/*"))
PRETRAIN = [path for path in CONFIGS if path.parent.name == "pretrain"]
HARDWARE = ("bf16", "fp16", "tf32", "use_cpu")
# Parameters of the published checkpoints.
PUBLISHED = {
    "gpt2_small": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
}


def values_of(path: Path) -> dict:
    return check_recipe_args(ROOT / "recipes" / f"{path.parent.name}.py", ["--config", str(path)])


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_recipe_takes_its_configs(path):
    assert values_of(path)
    assert path.read_text("utf-8").startswith("# ")  # says what it is for


def test_each_folder_is_a_recipes_own_and_holds_one_for_a_small_machine():
    files = {path for path in (ROOT / "recipes" / "configs").rglob("*") if path.is_file()}
    assert files == {*CONFIGS, *SAMPLE_DATA}
    folders = {path.parent for path in CONFIGS}
    assert folders and all((ROOT / "recipes" / f"{folder.name}.py").is_file() for folder in folders)
    assert all((folder / "tiny_cpu.yaml").is_file() for folder in folders)


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("[a-z]*.py"))
FENCED = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_configs_or_says_why_not_and_a_page_with_its_command(recipe):
    configs = [path for path in CONFIGS if path.parent.name == recipe]
    assert bool(configs) != (recipe in WITHOUT_CONFIG)
    pages = (ROOT / "docs").glob("*.md")
    commands = [block for page in pages for block in FENCED.findall(page.read_text("utf-8"))]
    assert any(re.search(rf"^hfscale {recipe}\b", block, re.M) for block in commands)


def test_help_says_why_a_recipe_brings_no_config(capsys):
    assert {*RECIPES} > WITHOUT_CONFIG.keys()
    for recipe, why in WITHOUT_CONFIG.items():
        with pytest.raises(SystemExit):
            check_recipe_args(ROOT / "recipes" / f"{recipe}.py", ["--help"])
        assert f"shipped configs: none; it {why}" in capsys.readouterr().out


def test_no_two_configs_write_into_one_folder():
    folders = [values_of(path)["output_dir"] for path in PRETRAIN]
    assert len(folders) == len(set(folders)) > 1


@pytest.mark.parametrize("path", PRETRAIN, ids=name_of)
def test_training_arguments_take_the_values(path, tmp_path):
    from hfscale.config import parse_args
    from hfscale.training.training_args import training_arguments
    from recipes import pretrain

    values = parse_args(
        pretrain.PretrainArguments, ["--config", str(path)], recipe=pretrain.__file__
    ).training
    portable = {name: value for name, value in values.items() if name not in HARDWARE}
    args = training_arguments(
        portable | {"use_cpu": True, "output_dir": str(tmp_path / "run")}, width=32
    )
    for name in portable.keys() - {"output_dir", "report_to"}:
        assert getattr(args, name) == values[name], name
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_shape_is_the_published_models(name):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    values = values_of(ROOT / "recipes" / "configs" / "pretrain" / f"{name}.yaml")
    shape = {
        key: values[key]
        for key in (
            "num_hidden_layers",
            "num_attention_heads",
            "hidden_size",
            "max_position_embeddings",
        )
    }
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50257, **shape))
    assert model.num_parameters() == PUBLISHED[name]
    assert (
        shape["hidden_size"] // shape["num_attention_heads"] == 64
    )  # as wide a head as in all four
    tokens_per_step = (
        8 * values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * 1024
    )
    assert tokens_per_step == 2**19  # on the eight GPUs that the file speaks of


def test_char_tiny_is_the_reference():
    values = values_of(ROOT / "recipes" / "configs" / "pretrain" / "char_tiny.yaml")
    expected = {
        "tokenizer": "char",
        "split_by": "position",
        "validation_fraction": 0.1,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_size": 128,
        "max_position_embeddings": 64,
    }
    assert values.items() >= expected.items()
    assert values["per_device_train_batch_size"] * values["max_steps"] == 12 * 2000
    assert not {"resid_pdrop", "embd_pdrop", "attn_pdrop"} & values.keys()  # 0 by default
    assert values.get("gradient_accumulation_steps", 1) == 1


@pytest.mark.parametrize(
    "path", shipped("accelerate_configs", "*.yaml").values(), ids=lambda path: path.stem
)
def test_accelerate_takes_the_launch_config(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config, written = load_config_from_file(str(path)), yaml.safe_load(path.read_text("utf-8"))
    assert {name: getattr(config, name) for name in written} == written
    assert path.read_text("utf-8").startswith("# ")


def test_launch_configs_are_the_promised_ones():
    names = {
        "cpu",
        "cpu_2proc",
        "single_gpu",
        "ddp",
        "fsdp2",
        "fsdp2_offload",
        "zero1",
        "zero2",
        "zero3",
        "zero3_offload",
        "zero3_nvme",
        "multi_node_ddp",
        "multi_node_fsdp2",
        "multi_node_zero3",
    }
    assert shipped("accelerate_configs", "*.yaml").keys() >= names
    assert {p.name for p in (ROOT / "accelerate_configs").iterdir()} == {
        f"{name}.yaml" for name in shipped("accelerate_configs", "*.yaml")
    }


def test_all_of_them_go_into_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    data = setuptools["package-data"]
    packed = {
        path for pattern in data["hfscale.recipes"] for path in (ROOT / "recipes").glob(pattern)
    }
    folders = ("launch", "lm_eval_tasks")
    others = {path for folder in folders for path in (ROOT / "recipes" / folder).iterdir()}
    assert packed >= {*CONFIGS, *SAMPLE_DATA} | others
    assert "accelerators.yaml" in data["hfscale.planning"]
    templates = {
        path
        for name, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / name.replace(".", "/")).glob(pattern)
    }
    assert templates >= {*(ROOT / "hfscale").rglob("*.j2"), *(ROOT / "hfscale").rglob("*.html")}
    assert data["hfscale.accelerate_configs"] == ["*.yaml"]
    packages = {path.parent for path in (ROOT / "hfscale").rglob("__init__.py")}
    names = {".".join(path.relative_to(ROOT).parts) for path in packages}
    assert set(setuptools["packages"]) == names | {"hfscale.recipes", "hfscale.accelerate_configs"}
