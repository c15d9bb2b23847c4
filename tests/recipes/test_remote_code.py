"""Python files that lie beside a model or tokenizer run only with --trust_remote_code, and nobody
is asked.
"""

import io
import json
import shutil
from pathlib import Path

import pytest

from hfscale.arguments import StreamArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.splits import load_splits
from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.models import load_model
from hfscale.process import InputError
from recipes import (
    attention_maps,
    bias_probe,
    chat,
    distill,
    finetune,
    finetune_picture,
    finetune_preference,
    finetune_reward,
    finetune_task,
    generate,
    memorization,
    pretrain,
    quickstart,
    score,
    serve,
    train_tokenizer,
)
from tests.recipes.test_bad_input import LINES, save_model

CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

Path("MARKER").write_text("this code ran")


class OtherConfig(GPT2Config):
    model_type = "other"


class OtherModel(GPT2LMHeadModel):
    config_class = OtherConfig


class OtherTokenizer(PreTrainedTokenizerFast):
    pass
"""
SENTENCES = "--prompts a --max_new_tokens 1"
PAIRS = "--source pairs.jsonl"
TASK = "--task_source pairs.jsonl --prompt {prompt} --target {chosen}"
# Which words make each recipe load the model (MODEL) or the tokenizer (TOKENIZER) of a folder.
COMMANDS = [
    (attention_maps, "--model MODEL"),
    (bias_probe, "--model MODEL --pairs pairs.csv"),
    (chat, f"--model MODEL {SENTENCES}"),
    (distill, "--teacher_model_name_or_path MODEL --source good.txt --sample_by line"),
    (distill, "--teacher_model_name_or_path good --model MODEL --source good.txt"),
    (finetune, "--model MODEL --source good.txt --sample_by line"),
    (finetune, "--model good --tokenizer TOKENIZER --source good.txt --sample_by line"),
    (finetune_picture, "--encoder MODEL"),
    (finetune_preference, f"--model MODEL {PAIRS}"),
    (finetune_reward, f"--model MODEL {TASK}"),
    (finetune_task, f"--model MODEL {TASK}"),
    (finetune_task, f"--model good --tokenizer TOKENIZER {TASK}"),
    (generate, f"--model MODEL {SENTENCES}"),
    (generate, f"--model ADAPTER {SENTENCES}"),
    (memorization, "--model MODEL"),
    (
        pretrain,
        "--tokenizer TOKENIZER --source good.txt --sample_by line --max_position_embeddings 16",
    ),
    (quickstart, "--model MODEL --source good.txt --sample_by line"),
    (serve, "--model MODEL --port 0"),
    (serve, "--model ADAPTER --port 0"),
    (chat, "--model MODEL --web --port 0"),
    (score, "--model MODEL --source good.txt"),
    (score, "--model good --tokenizer TOKENIZER --source good.txt"),
    (train_tokenizer, "--compare TOKENIZER --source good.txt --sample_by line --vocab_size 300"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A plain model `good`; copies whose model, tokenizer, or base model needs code that leaves a
    file `marker`.
    """
    place = tmp_path_factory.mktemp("remote-code")
    save_model(place / "good")
    code = CODE.replace("MARKER", str(place / "marker"))
    for name in ("MODEL", "TOKENIZER"):
        shutil.copytree(place / "good", place / name)
        (place / name / "other.py").write_text(code)
    change_json(
        place / "MODEL" / "config.json",
        model_type="other",
        auto_map={"AutoConfig": "other.OtherConfig", "AutoModelForCausalLM": "other.OtherModel"},
    )
    (
        place / "TOKENIZER" / "config.json"
    ).unlink()  # whose model type would name a class that is there
    change_json(
        place / "TOKENIZER" / "tokenizer_config.json",
        tokenizer_class="OtherTokenizer",
        auto_map={"AutoTokenizer": [None, "other.OtherTokenizer"]},
    )
    (place / "ADAPTER").mkdir()
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(place / "MODEL"),
    }
    (place / "ADAPTER" / "adapter_config.json").write_text(json.dumps(adapter))
    (place / "good.txt").write_text("\n".join(LINES))
    pairs = [{"prompt": f"a{i}", "chosen": f"b{i}", "rejected": "c"} for i in range(20)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (place / "pairs.csv").write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\na b,a c,stereo,age\n"
    )
    text = {"source": [str(place / "good.txt")], "sample_by": "line"}
    fingerprint = text_fingerprint(load_splits(StreamArguments(**text), seed=0)["validation"])
    (place / "MODEL" / "run.json").write_text(
        json.dumps(
            {"config": text | {"seed": 0}, "data": {"fingerprint": {"validation": fingerprint}}}
        )
    )
    return place


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def answers_yes(monkeypatch):
    """Whoever asks on standard input is told yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))


@pytest.mark.parametrize(
    ("recipe", "words"), COMMANDS, ids=lambda v: v if isinstance(v, str) else v.__name__
)
def test_no_recipe_runs_it_or_asks(recipe, words, folders, answers_yes, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    with pytest.raises(
        InputError, match="brings code of its own.*pass --trust_remote_code if you trust it"
    ) as error:
        recipe.main(
            [
                *words.split(),
                *(
                    []
                    if recipe in (generate, chat, serve)
                    else ["--output_dir", str(tmp_path / "out")]
                ),
            ]
        )
    assert "\n" not in str(error.value)
    assert not Path("marker").exists()


def test_it_runs_when_trusted(folders, monkeypatch):
    monkeypatch.chdir(folders)
    assert type(load_model("MODEL", trust_remote_code=True)).__name__ == "OtherModel"
    assert Path("marker").read_text() == "this code ran"
    Path("marker").unlink()
    assert load_pretrained_tokenizer("TOKENIZER", trust_remote_code=True)("cat")["input_ids"]
    assert Path("marker").read_text() == "this code ran"
    Path("marker").unlink()
    generate.main(
        [*f"--model MODEL {SENTENCES} --output_file texts.jsonl --trust_remote_code".split()]
    )
    assert json.loads(Path("texts.jsonl").read_text())["completions"]
