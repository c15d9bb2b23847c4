"""The export recipe: written, read back, compared; whole or not there."""

import contextlib
import json
import resource
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hfscale.export import certificate as certificates
from hfscale.export.certificate import (
    Tolerance,
    certify,
    check_certificate,
    chosen_tolerance,
    compare_tokens,
)
from hfscale.export.modelfile import ollama_modelfile, ollama_template
from hfscale.export.runners import TorchRunner
from hfscale.folders import is_edited_card
from hfscale.models import load_model
from hfscale.process import InputError
from hfscale.tasks.chat_templates import set_chat_template
from recipes import export
from tests.tiny_models import GPT2, LLAMA, VOCAB_SIZE, save_tiny_model, tiny_model, tiny_tokenizer

TEXT = "the cat sat on the mat and on the log, and some more words\n"


@pytest.fixture
def words(tmp_path):
    """What every call of the recipe has."""
    (tmp_path / "text.txt").write_text(TEXT)
    model = save_tiny_model("gpt2", GPT2, tmp_path / "model")
    return [
        *("--model", str(model)),
        *("--source", str(tmp_path / "text.txt")),
        *("--output_dir", str(tmp_path / "export")),
        *("--max_new_tokens", "4"),
    ]


@contextlib.contextmanager
def file_sizes_limited(size_bytes):
    """A longer file cannot be written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def record_of(tmp_path):
    return json.loads((tmp_path / "export" / "export.json").read_text())


@pytest.mark.needs("gguf")
def test_a_gguf_is_written_with_what_was_compared(words, tmp_path, capsys):
    quantized = ("--outtype", "q8_0", "--perplexity_tolerance", "0.05")  # weights far from 0
    export.main([*words, "--to", "gguf", *quantized])
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"model-q8_0.gguf", "Modelfile", "README.md", "export.json", "manifest.json"}
    record = record_of(tmp_path)
    assert record["tokens"]["documents"] == 1 and record["tokens"]["differing"] == 0
    assert 0 < record["logits"]["largest_difference"] < 1
    assert record["tolerance"] == {"logits": None, "perplexity": 0.05}
    assert record["logits"]["perplexity"] == pytest.approx(
        record["logits"]["perplexity_of_export"], rel=0.1
    )
    assert record["greedy"]["tokens"] == 4
    assert "1 of 1" in capsys.readouterr().out
    card = (tmp_path / "export" / "README.md").read_text()
    assert "| documents with the same tokens | 1 of 1 |" in card
    assert f"| {record['logits']['perplexity']:,.5g} |" in card
    assert "ollama create export -f Modelfile" in card
    assert not is_edited_card(tmp_path / "export" / "README.md")
    with pytest.raises(InputError, match="exists"):
        export.main([*words, "--to", "gguf"])
    export.main([*words, "--to", "gguf", "--overwrite", "true"])
    assert (tmp_path / "export" / "model-f32.gguf").is_file()
    assert not (tmp_path / "export" / "model-q8_0.gguf").exists()


def test_an_adapter_becomes_a_plain_model(words, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, fan_in_fan_out=True))
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    export.main([*words, "--model", str(tmp_path / "adapter")])
    assert not (tmp_path / "export" / "adapter_config.json").exists()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = load_model(str(tmp_path / "export"))(ids).logits
        torch.testing.assert_close(plain, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    assert record_of(tmp_path)["logits"]["largest_difference"] == 0


def test_half_precision_is_measured(words, tmp_path):
    export.main([*words, "--outtype", "f16", "--tolerance", "0.1"])  # weights far from 0
    assert 0 < record_of(tmp_path)["logits"]["largest_difference"] < 0.1
    assert load_model(str(tmp_path / "export")).dtype == torch.float16
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert modes == {(tmp_path / "text.txt").stat().st_mode & 0o777}  # others read them, too


def test_an_export_outside_its_tolerance_leaves_nothing(words, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="logits differ by up to .*, allowed is 1e-09"):
        export.main([*words, "--outtype", "f16", "--tolerance", "1e-9"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.needs("gguf")
def test_a_model_that_gguf_cannot_hold_leaves_nothing(words, tmp_path):
    save_tiny_model("gpt2", {**GPT2, "activation_function": "relu"}, tmp_path / "model")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="activation_function"):
        export.main([*words, "--to", "gguf"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("to", ["gguf", "safetensors"])
def test_a_full_disk_leaves_nothing(to, words, tmp_path):
    before = sorted(tmp_path.iterdir())
    with (
        file_sizes_limited(60_000),
        pytest.raises(InputError, match="nothing of it is left; free some space"),
    ):
        export.main([*words, "--to", to])
    assert sorted(tmp_path.iterdir()) == before


# ---- the certificate


def certificate_of(model, other, tokenizer=None):
    return certify(
        (TorchRunner(model), tiny_tokenizer()),
        (TorchRunner(other), tokenizer or tiny_tokenizer()),
        [TEXT] * 3,
        context=64,
        scored_documents=2,
        max_new_tokens=5,
    )


def test_the_same_model_is_the_same():
    model = tiny_model("llama", LLAMA, VOCAB_SIZE)
    certificate = certificate_of(model, model)
    assert certificate["logits"]["largest_difference"] == 0
    assert certificate["greedy"] == {"continuations": 2, "tokens": 10, "same_tokens": 10}
    check_certificate(certificate, Tolerance(0.0, 0.0))


def test_another_model_is_not():
    models = [tiny_model("gpt2", GPT2, VOCAB_SIZE, seed=seed) for seed in (0, 1)]
    certificate = certificate_of(*models)
    assert certificate["greedy"]["same_tokens"] < 10
    with pytest.raises(InputError, match="logits differ"):
        check_certificate(certificate, Tolerance(0.01, None))
    with pytest.raises(InputError, match="perplexity changes by .* allowed is 0.01;"):
        check_certificate(certificate, Tolerance(None, 0.01))
    check_certificate(certificate, Tolerance(None, None))


def test_numbers_that_are_none_are_refused_at_any_tolerance():
    model = tiny_model("gpt2", GPT2, VOCAB_SIZE)
    broken = tiny_model("gpt2", GPT2, VOCAB_SIZE)
    with torch.no_grad():
        broken.transformer.ln_f.weight[0] = float("nan")
    certificate = certificate_of(model, broken)
    assert certificate["logits"]["perplexity_of_export"] is None
    with pytest.raises(InputError, match="logits differ by up to nan"):
        check_certificate(certificate, Tolerance(None, None))
    certificate["logits"]["largest_difference"] = 1.0
    with pytest.raises(InputError, match=r"perplexity changes by nan of it \(.* -> too large\)"):
        check_certificate(certificate, Tolerance(None, 0.5))


def test_other_tokens_and_other_settings_are_refused():
    model = tiny_model("gpt2", GPT2, VOCAB_SIZE)
    other = tiny_tokenizer()
    other.pad_token = other.eos_token
    certificate = certificate_of(model, model, other)
    assert certificate["tokens"]["other_settings"] == ["pad_token_id"]
    with pytest.raises(InputError, match="pad_token_id of the tokenizer"):
        check_certificate(certificate, Tolerance(1.0, None))
    other.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    compared = compare_tokens(tiny_tokenizer(), other, ["the cat", " the cat"])
    assert (compared["differing"], compared["first_differing"]) == (3, "the cat")


def test_each_number_type_has_a_tolerance():
    assert set(certificates.TOLERANCES) == {"f32", "f16", "q8_0", "int8"}
    assert chosen_tolerance("f32", None, None) == Tolerance(1e-4, None)
    assert chosen_tolerance("f32", 0.5, 0.1) == Tolerance(0.5, 0.1)
    assert chosen_tolerance("q8_0", 0.5, None) == Tolerance(0.5, 0.01)


# ---- Ollama's Modelfile


def test_the_modelfile_says_what_a_plain_model_needs():
    modelfile = ollama_modelfile("m.gguf", tiny_model("gpt2", GPT2, VOCAB_SIZE), tiny_tokenizer())
    assert modelfile.splitlines() == [
        "FROM ./m.gguf",
        "PARAMETER num_ctx 64",
        'PARAMETER stop "<|endoftext|>"',
        'TEMPLATE """{{ .Prompt }}"""',
    ]


def test_chatml_is_translated_into_ollamas_language():
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, "chatml")
    assert ollama_template(tokenizer) == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|endoftext|><|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_turns_that_depend_on_each_other_are_not_translated():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.index }}{{ m.role }}{{ m.content }}{% endfor %}"
    )
    assert ollama_template(tokenizer) is None
    modelfile = ollama_modelfile("m.gguf", tiny_model("gpt2", GPT2, VOCAB_SIZE), tokenizer)
    assert "TEMPLATE" not in modelfile
