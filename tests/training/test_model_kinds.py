"""Recipes on models that are no GPT-2: from training to texts, or one line before the work."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    OPTForCausalLM,
    T5ForConditionalGeneration,
    ViTForImageClassification,
)

from hfscale.models import check_models, load_model
from hfscale.process import InputError
from recipes import (
    attention_maps,
    bias_probe,
    chat,
    finetune,
    finetune_preference,
    finetune_reward,
    finetune_task,
    generate,
    quickstart,
    score,
)
from tests.tiny_models import (
    BART,
    FILLING,
    LLAMA,
    MAMBA,
    OPT,
    TOGETHER,
    save_tiny_model,
    tiny_tokenizer,
)

LINES = [
    f"item {i}: {name} saw the {thing} and went on"
    for i in range(20)
    for name in ("Anna", "Ben")
    for thing in ("box", "map")
]
HELD_OUT = LINES[::9]
QUIET = [
    "--report_to",
    "none",
    "--disable_tqdm",
    "--save_strategy",
    "no",
    "--bf16",
    "false",
    "--use_cpu",
]
QUIET += ["--max_steps", "1"]
# Packed documents see each other in all of these; the last does not shift its labels by itself.
KINDS = {
    "opt": OPT,
    "mamba": MAMBA,
    "rwkv": TOGETHER["rwkv"],
    "bart": BART,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with texts, a task, and a model of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "text.txt").write_text("\n".join(LINES))
    (folder / "held_out.txt").write_text("\n".join(HELD_OUT))
    rows = [{"sum": f"{a} plus {b}", "result": str(a + b)} for a in range(6) for b in range(5)]
    (folder / "task.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for kind, fields in KINDS.items():
        save_tiny_model(kind, fields, folder / kind)
    return folder


def tune(place: Path, model: str | Path, output: str, *words: str) -> Path:
    finetune.main(
        [
            "--model",
            str(place / model),
            "--source",
            str(place / "text.txt"),
            "--validation_source",
            str(place / "held_out.txt"),
            "--sample_by",
            "line",
            "--max_length",
            "60",
            "--output_dir",
            str(place / output),
            *QUIET,
            *words,
        ]
    )
    return place / output


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def loss_alone(folder: Path) -> float:
    """Mean over all tokens of the held-out lines, each read by itself."""
    model = load_model(str(folder), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total = tokens = 0
    for text in HELD_OUT:
        ids = torch.tensor(
            [[tokenizer.eos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]]
        )
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return total / tokens


@pytest.mark.parametrize("kind", ["rwkv", "bart"])
def test_from_training_to_texts(kind, place, capsys):
    folder = tune(place, kind, f"{kind}-tuned")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("packing: ")]
    assert len(lines) == 1 and "each gets a row of its own" in lines[0]
    record = record_of(folder)
    assert record["config"]["packing"] == "none"
    assert record["metrics"]["before_eval_loss"] == pytest.approx(
        loss_alone(place / kind), abs=2e-5
    )
    assert record["metrics"]["eval_loss"] == pytest.approx(loss_alone(folder), abs=2e-5)

    score.main(
        [
            "--model",
            str(folder),
            "--source",
            str(place / "held_out.txt"),
            "--sample_by",
            "line",
            "--max_length",
            "60",
            "--output_dir",
            str(place / f"{kind}-scores"),
        ]
    )
    generate.main(
        [
            "--model",
            str(folder),
            "--prompts",
            "item 3",
            "Ben saw the",
            "--max_new_tokens",
            "4",
            "--output_file",
            str(place / f"{kind}.jsonl"),
        ]
    )
    assert len((place / f"{kind}.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("kind", ["opt", "mamba"])
def test_a_packing_asked_for_by_name_is_refused(kind, place):
    with pytest.raises(InputError, match="^packing bfd_split: .* use --packing none") as error:
        tune(place, kind, "refused", "--packing", "bfd_split")
    assert "\n" not in str(error.value) and not (place / "refused").exists()


@pytest.mark.parametrize("kind", ["opt", "mamba", "bart"])
def test_a_task_is_trained_one_example_a_row(kind, place):
    words = [
        "--model",
        str(place / kind),
        "--task_source",
        str(place / "task.jsonl"),
        "--prompt",
        "{sum}: ",
        "--target",
        "{result}",
        "--metrics",
        "exact_match",
        "--max_new_tokens",
        "4",
        "--max_length",
        "60",
        *QUIET,
    ]
    folder = place / f"{kind}-task"
    finetune_task.main([*words, "--output_dir", str(folder)])
    record = record_of(folder)
    assert record["config"]["packing"] == "none"
    assert record["config"]["train_sampling_strategy"] == "group_by_length"
    with pytest.raises(InputError, match="^packing bfd: "):
        finetune_task.main([*words, "--packing", "bfd", "--output_dir", str(place / "refused")])


def test_a_dry_run_shows_rows_of_unequal_length(place, capsys):
    finetune.main(
        [
            "--model",
            str(place / "mamba"),
            "--source",
            str(place / "text.txt"),
            "--sample_by",
            "line",
            "--dry_run",
            *QUIET,
        ]
    )
    shown = capsys.readouterr().out
    assert re.search(r"train rows x tokens\W+76 x up to \d+ ", shown)
    assert re.search(r"train places not scored\W+0.00%", shown)


def test_quickstart_takes_any_model(place):
    quickstart.main(
        [
            "--model",
            str(place / "opt"),
            "--source",
            str(place / "text.txt"),
            "--validation_source",
            str(place / "held_out.txt"),
            "--sample_by",
            "line",
            "--max_length",
            "60",
            "--output_dir",
            str(place / "quick"),
            *QUIET,
        ]
    )
    assert record_of(place / "quick")["config"]["packing"] == "none"


def test_a_model_that_cannot_generate_is_trained_all_the_same(place, monkeypatch, capsys):
    def fail(*inputs, **settings):
        raise IndexError("no cache of this form")

    monkeypatch.setattr(OPTForCausalLM, "generate", fail)
    record = record_of(tune(place, "opt", "no-samples"))
    assert record["samples"] == []
    says = "model: OPTForCausalLM cannot generate text: IndexError: no cache of this form"
    assert f"no samples: {says}" in capsys.readouterr().err.splitlines()
    with pytest.raises(InputError, match=f"^{says}$"):
        generate.main(["--model", str(place / "opt"), "--prompts", "item"])


def test_a_cache_that_cannot_be_tried_out_is_one_line(place, tmp_path):
    """Upstream's cache of a model whose layers are all linear does not know how long it is."""
    fields = {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}
    save_tiny_model("qwen3_next", fields, tmp_path / "linear")
    says = "^model: Qwen3NextForCausalLM cannot generate text: ValueError: "
    with pytest.raises(InputError, match=says) as error:
        generate.main(["--model", str(tmp_path / "linear"), "--prompts", "item"])
    assert "\n" not in str(error.value)


# ---- new tokens of an adapter


def test_the_rows_of_new_tokens_are_those_of_the_trained_model(place):
    """Two embedding matrices: scored twice, read by generate, and merged."""
    save_tiny_model("llama", LLAMA, place / "llama")
    words = [
        "--lora_r",
        "4",
        "--add_tokens",
        " the",
        " and",
        "--learning_rate",
        "0.1",
        "--packing",
        "bfd_split",
    ]
    folder = tune(place, "llama", "llama-lora", *words)
    merged = tune(place, "llama", "llama-merged", *words, "--merge")
    trained_loss = record_of(folder)["metrics"]["eval_loss"]
    assert loss_alone(folder) == pytest.approx(trained_loss, abs=2e-5)
    assert loss_alone(merged) == pytest.approx(trained_loss, abs=2e-5)
    losses = []
    for i, model in enumerate((folder, folder, merged)):
        output = place / f"llama-scores-{i}"
        score.main(
            [
                "--model",
                str(model),
                "--source",
                str(place / "held_out.txt"),
                "--sample_by",
                "line",
                "--output_dir",
                str(output),
            ]
        )
        losses.append(
            json.loads((output / "scores.json").read_text())["systems"][0]["metrics"]["eval_loss"]
        )
    assert losses[0] == losses[1] == pytest.approx(losses[2], abs=1e-5)
    texts = []
    for i, model in enumerate((folder, folder, merged)):
        output = place / f"llama-{i}.jsonl"
        generate.main(
            [
                "--model",
                str(model),
                "--prompts",
                "Anna saw the",
                "--do_sample",
                "false",
                "--max_new_tokens",
                "8",
                "--output_file",
                str(output),
            ]
        )
        texts.append({**json.loads(output.read_text()), "model": None})
    assert texts[0] == texts[1] == texts[2]


# ---- refused, by every recipe that loads a model


@pytest.fixture(scope="module")
def wrong_models(place) -> dict[str, tuple[Path, str]]:
    """Models that do not continue text, and what is said of each."""
    sizes = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
        "vocab_size": 270,
    }
    T5ForConditionalGeneration(AutoConfig.for_model("t5", **sizes)).save_pretrained(place / "t5")
    vit = AutoConfig.for_model(
        "vit",
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
    )
    ViTForImageClassification(vit).save_pretrained(place / "vit")
    save_tiny_model("bert", FILLING["bert"], place / "bert")
    shutil.copytree(place / "bart", place / "whole-bart")
    config = json.loads((place / "whole-bart" / "config.json").read_text())
    (place / "whole-bart" / "config.json").write_text(
        json.dumps(config | {"is_encoder_decoder": True})
    )
    for name in ("t5", "vit"):
        tiny_tokenizer().save_pretrained(place / name)
    return {
        "t5": "the kind t5 has an encoder",
        "whole-bart": "the kind bart has an encoder",
        "vit": "no causal language model of the kind vit",
        "bert": "BertLMHeadModel sees later tokens",
    }


RECIPES = {
    "finetune": (finetune, ["--source", "text.txt", *QUIET]),
    "finetune_task": (
        finetune_task,
        ["--task_source", "task.jsonl", "--prompt", "{sum}", "--target", "{result}", *QUIET],
    ),
    "finetune_preference": (finetune_preference, QUIET),
    "finetune_reward": (finetune_reward, ["--task_source", "embedded:sums", *QUIET]),
    "quickstart": (quickstart, ["--source", "text.txt", "--sample_by", "line", *QUIET]),
    "score": (score, ["--source", "text.txt"]),
    "generate": (generate, ["--prompts", "a", "--output_file", "out.jsonl"]),
    "chat": (chat, ["--prompts", "a"]),
    "bias_probe": (bias_probe, ["--config", "templates"]),
    "attention_maps": (attention_maps, []),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("wrong", ["t5", "whole-bart", "vit", "bert"])
def test_models_that_do_not_continue_text(name, wrong, place, wrong_models, monkeypatch):
    monkeypatch.chdir(place)
    recipe, words = RECIPES[name]
    output = [] if name in ("generate", "chat") else ["--output_dir", "refused"]
    with pytest.raises(InputError, match=f"^model {wrong}: .*{wrong_models[wrong]}") as error:
        recipe.main(["--model", wrong, *words, *output])
    assert "\n" not in str(error.value)
    assert not Path("refused").exists() and not Path("out.jsonl").exists()


KINDS_THAT_DO_NOT = {
    "t5": "has an encoder",
    "marian": "has an encoder",
    "pegasus": "has an encoder",
    "whisper": "has an encoder",
    "clip": "no causal language model of the kind clip",
    "vit": "no causal language model of the kind vit",
    "llava": "no causal language model of the kind llava",
    "wav2vec2": "no causal language model of the kind wav2vec2",
    "detr": "has an encoder",
}


@pytest.mark.parametrize("kind", KINDS_THAT_DO_NOT)
def test_a_kind_is_refused_by_its_configuration(kind, tmp_path):
    """Before weights are looked for: there are none."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    says = f"^model {tmp_path}: cannot be loaded: .*{KINDS_THAT_DO_NOT[kind]}"
    for read in (load_model, lambda name: check_models([name])):
        with pytest.raises(InputError, match=says) as error:
            read(str(tmp_path))
        assert "\n" not in str(error.value)


def test_a_kind_that_this_transformers_does_not_know(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama-of-2030"}')
    with pytest.raises(InputError, match="^model .*llama-of-2030") as error:
        load_model(str(tmp_path))
    assert "\n" not in str(error.value)
