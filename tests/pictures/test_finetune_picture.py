"""A model that reads pictures, from the command line to plain transformers."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    set_seed,
)

from hfscale.data.tokenizer import train_bpe
from hfscale.new_models import new_model
from hfscale.pictures.attention import cross_attention, look
from hfscale.pictures.model import load_decoder, picture_model
from hfscale.process import InputError
from recipes import finetune_picture, generate
from tests.tiny_runs import DOCUMENTS

SHAPE = (
    "--num_hidden_layers 2 --num_attention_heads 2 --hidden_size 32 --max_position_embeddings 32 "
    "--image_size 16 --encoder_layers 1 --tokenizer train:400"
)
STEPS = (
    "--train_examples 60 --validation_examples 6 --max_steps 4 --save_steps 2 --logging_steps 1 "
    "--per_device_train_batch_size 6 --learning_rate 1e-3 --max_new_tokens 6 --use_cpu --bf16 false "
    "--report_to none --disable_tqdm"
)
WORDS = f"{SHAPE} {STEPS}".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "run"
    finetune_picture.main([*WORDS, "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS, 300)


def text_model(tokenizer) -> GPT2LMHeadModel:
    set_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    return new_model(tokenizer, **sizes, max_position_embeddings=64)


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


# ---- the run


def test_what_a_run_leaves(run):
    record = json.loads((run / "run.json").read_text())
    metrics = record["metrics"]
    assert losses(run)[-1] < losses(run)[0] and len(losses(run)) == 4
    for name in ("exact_match", "bleu", "colour_accuracy", "attribute_accuracy"):
        for when in ("before_eval", "baseline", "eval"):
            assert f"{when}_{name}_ci95" in metrics
        effect = metrics[f"eval_{name}"] - metrics[f"baseline_{name}"]
        assert metrics[f"picture_effect_{name}"] == pytest.approx(effect)
    assert record["config"]["attributes"] == ["count", "colour", "shape", "position"]
    assert record["train"]["tokens"] == pytest.approx(4 * 6 * 16, rel=0.5)  # no pixels among them
    assert record["model"]["architecture"] == "VisionEncoderDecoderModel"
    page = (run / "report.html").read_text()
    assert "what the model looked at in a picture for each word that it wrote" in page
    card = (run / "README.md").read_text()
    assert "pipeline_tag: image-to-text" in card
    size = Image.open(run / "caption_attention.png").size
    assert size[0] > 200 and size[1] > 200


def test_the_lines_of_the_model_card_write_what_generate_writes(run, tmp_path, monkeypatch, capsys):
    """A picture that is larger, and not square, through transformers alone and through hfscale."""
    monkeypatch.chdir(run.parent)
    picture = Image.effect_mandelbrot((50, 30), (-3, -2.5, 2, 2.5), 50).convert("RGB")
    picture.save("picture.png")
    lines = (run / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(lines.replace("'run'", repr(str(run))), {})
    [by_transformers] = capsys.readouterr().out.splitlines()
    words = ["--model", str(run), "--pictures", "picture.png"]
    [caption] = generate.main([*words, "--json"])
    assert caption == by_transformers.strip()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["prompt"] == "picture.png" and record["completions"] == [caption]
    for more, says in (
        (["--temperature", "0.5"], "leave out temperature"),
        (["--prompts", "a"], "give one of the three"),
    ):
        with pytest.raises(InputError, match=says):
            generate.main([*words, *more])
    with pytest.raises(InputError, match="pictures: gone.png: no such picture"):
        generate.main(["--model", str(run), "--pictures", "gone.png"])


def test_text_models_write_no_captions(tokenizer, tmp_path):
    text_model(tokenizer).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = ["--model", str(tmp_path / "gpt2"), "--pictures", str(tmp_path / "a.png")]
    with pytest.raises(InputError, match="kind gpt2 does not write captions; give the folder"):
        generate.main(words)
    place = ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="kind gpt2 does not read pictures .*or --encoder new"):
        finetune_picture.main([*WORDS, *place, "--encoder", str(tmp_path / "gpt2")])
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_cut_short_goes_on(run, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(run / "checkpoint-2", cut / "checkpoint-2")
    words = [*WORDS, "--output_dir", str(cut), "--resume", "auto"]
    with pytest.raises(InputError, match="other settings .*encoder_layers was 1, is 2"):
        finetune_picture.main([*words, "--encoder_layers", "2"])
    finetune_picture.main(words)
    assert (cut / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert losses(cut) == losses(run)


def test_bad_pictures_leave_an_earlier_run_as_it_was(run, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "metadata.csv").write_text("file_name,text\ngone.png,a picture\n")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    words = [*WORDS, "--output_dir", str(run), "--source", str(tmp_path / "own"), "--overwrite"]
    with pytest.raises(InputError, match="metadata.csv:2: .*gone.png: no such picture"):
        finetune_picture.main(words)
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.slow(seconds=10)
def test_two_processes_learn_as_one(run, tmp_path, run_warm):
    words = [*WORDS, "--per_device_train_batch_size", "3", "--output_dir", str(tmp_path / "two")]
    launch = ["--accelerate", "cpu_2proc", "--num_processes", "2"]
    command = [sys.executable, "-m", "hfscale.cli", "finetune_picture", *launch, *words]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = run_warm(command, cwd=tmp_path, env=env, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(run), rel=1e-5)
    one, two = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "two"))
    for name, weights in one.items():
        assert torch.allclose(weights, two[name], atol=1e-4), name


def test_what_is_not_for_pictures(tmp_path, monkeypatch):
    words = [*WORDS, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="auto_batch: sizes are not tried out with pictures"):
        finetune_picture.main([*words, "--auto_batch"])
    with pytest.raises(InputError, match="muon: knows the matrices of text models alone"):
        finetune_picture.main([*words, "--optimizer", "muon"])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="asks for FSDP: a model that reads pictures is whole"):
        finetune_picture.main(words)
    assert not (tmp_path / "run").exists()


# ---- saved parts


def test_an_encoder_and_a_gpt2_that_lie_there(run, tokenizer, tmp_path, capsys):
    """Both keep their weights; the layers between them are new."""
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    words = f"{STEPS} --encoder {tmp_path / 'vit'} --model {tmp_path / 'gpt2'}".split()
    place = ["--output_dir", str(tmp_path / "run")]
    base = text_model(tokenizer)
    base.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match="vit: cannot be loaded: Can't load image processor"):
        finetune_picture.main([*words, *place])
    ViTImageProcessorPil().save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match="takes pictures of 16 x 16 pixels, .* makes 224 x 224"):
        finetune_picture.main([*words, *place])
    shutil.copy(run / "preprocessor_config.json", tmp_path / "vit")
    finetune_picture.main([*words, *place, "--dry_run"])
    assert "2 x 2" in capsys.readouterr().out and not (tmp_path / "run").exists()
    decoder = load_decoder(str(tmp_path / "gpt2"))
    ids = torch.arange(10)[None]
    assert torch.equal(decoder(ids).logits, base(ids).logits)
    with pytest.raises(InputError, match="leave them out, or take --model new"):
        finetune_picture.main([*words, *place, "--architecture", "llama"])
    with pytest.raises(InputError, match="architecture: got llama, but only gpt2"):
        finetune_picture.main([*WORDS, *place, "--architecture", "llama"])
    with pytest.raises(InputError, match="image_size 16 is not a multiple of patch_size 5"):
        finetune_picture.main([*WORDS, *place, "--patch_size", "5"])
    with pytest.raises(InputError, match="its caption has .* tokens, and there is room for 2"):
        finetune_picture.main([*WORDS, *place, "--max_position_embeddings", "4"])


# ---- where it looks


@torch.no_grad()
def test_cross_attention_is_what_the_formula_says(run):
    """softmax(Q K^T / sqrt(d)) of what each layer reads, by hand."""
    model = VisionEncoderDecoderModel.from_pretrained(run, attn_implementation="eager").eval()
    read = []
    for block in model.decoder.transformer.h:
        block.ln_cross_attn.register_forward_hook(lambda module, given, out: read.append(out))
    pixels = torch.randn(2, 3, 16, 16)
    ids = torch.tensor([[0, 5, 7, 9], [0, 8, 6, 4]])
    weights = cross_attention(model, pixels, ids)
    states = model.encoder(pixels).last_hidden_state
    assert weights.shape == (2, 2, 2, 4, states.shape[1])
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 2, 4), atol=1e-6)
    for layer, block in enumerate(model.decoder.transformer.h):
        attention = block.crossattention
        width = 16  # of a head
        queries = read[layer] @ attention.q_attn.weight + attention.q_attn.bias
        keys = states @ attention.c_attn.weight[:, :32] + attention.c_attn.bias[:32]
        for head in range(2):
            part = slice(head * width, (head + 1) * width)
            scores = queries[..., part] @ keys[..., part].transpose(1, 2) / width**0.5
            expected = scores.exp() / scores.exp().sum(-1, keepdim=True)
            assert torch.allclose(weights[:, layer, head], expected, atol=1e-6)


def test_a_word_shows_the_place_that_wrote_it(run):
    model = VisionEncoderDecoderModel.from_pretrained(run, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(run)
    picture = AutoImageProcessor.from_pretrained(run)(Image.new("RGB", (9, 9)), return_tensors="pt")
    pixels = picture.pixel_values[0]
    text = "two zebras at the top"
    ids = tokenizer(text)["input_ids"]
    looked = look(model, tokenizer, pixels, ids)
    assert looked.words == text.split() and looked.maps.shape == (5, 2, 2)
    weights = cross_attention(model, pixels[None], torch.tensor([[tokenizer.eos_token_id, *ids]]))
    rows = weights[0].mean(dim=(0, 1))[:, 1:].numpy()  # without [CLS]
    starts = [i for i, token in enumerate(ids) if tokenizer.decode([token]).startswith(" ")]
    first_word = rows[: starts[0]].mean(axis=0)
    assert looked.maps[0].ravel() == pytest.approx(first_word)


def test_weights_of_no_use_have_no_gradient(tokenizer):
    """So that DDP waits for none: all that is trained is in every step."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = ViTModel(ViTConfig(image_size=16, patch_size=8, intermediate_size=32, **sizes))
    config = text_model(tokenizer).config
    config.add_cross_attention = config.is_decoder = True
    model = picture_model(encoder, GPT2LMHeadModel(config), tokenizer, max_new_tokens=3)
    outputs = model(
        pixel_values=torch.randn(2, 3, 16, 16), decoder_input_ids=torch.ones(2, 3).long()
    )
    outputs.logits.sum().backward()
    for name, weights in model.named_parameters():
        assert (weights.grad is not None) == weights.requires_grad, name
