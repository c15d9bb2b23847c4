"""The recipes end to end, offline, on a small text: what they leave behind is whole, right and
loads.
"""

import json
import math
import re
import resource
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hfscale.manifest import read_manifest
from hfscale.planning.flops import Shape
from hfscale.planning.memory import Step, sharding_of, step_memory_bytes
from hfscale.process import InputError
from hfscale.shown import printable
from recipes import finetune, generate, memorization, pretrain, quickstart, report, score, verify

SECRET = "hf_a-token-that-no-file-may-hold"
TINY = [
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--hidden_size",
    "32",
    "--max_position_embeddings",
    "32",
    "--tokenizer",
    "train:300",
    "--max_steps",
    "4",
    "--per_device_train_batch_size",
    "4",
    "--report_to",
    "none",
    "--disable_tqdm",
    "--logging_steps",
    "2",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(20):
        lines = [f"Paragraph {j} of document {i} counts to {i * j}.\n" for j in range(20)]
        (folder / f"{i:02}.txt").write_text("".join(lines))
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["--source", text, "--output_dir", str(folder), *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        pretrain.main([*words, "--save_steps", "2", "--eval_on_start"])
    return folder


def test_run_folder_holds_what_the_design_promises(finished, text):
    record = json.loads((finished / "run.json").read_text())
    assert set(record) == {
        "schema_version",
        "recipe",
        "command",
        "config",
        "data",
        "model",
        "hardware",
        "versions",
        "seconds",
        "train",
        "metrics",
        "samples",
    }
    assert record["recipe"] == "pretrain"
    assert record["config"]["hidden_size"] == 32 and record["config"]["learning_rate"] == 0.013
    assert record["data"]["documents"] == {"train": 19, "validation": 1}
    assert record["train"]["steps"] == 4 and record["train"]["tokens"] == 4 * 4 * 32
    metrics = record["metrics"]
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert metrics["eval_tokens"] == record["data"]["tokens"]["validation"]
    bits = (
        metrics["eval_loss"]
        * metrics["eval_tokens"]
        / math.log(2)
        / record["data"]["bytes"]["validation"]
    )
    assert metrics["eval_bits_per_byte"] == pytest.approx(bits)
    model = AutoModelForCausalLM.from_pretrained(finished)
    assert record["model"]["parameters"] == model.num_parameters()
    assert len(record["samples"]) == 3
    for name in (
        "README.md",
        "report.html",
        "trainer_state.json",
        "model.safetensors",
        "tokenizer.json",
        "checkpoint-4/manifest.json",
    ):
        assert (finished / name).is_file()


def test_a_finished_run_is_verified(finished, tmp_path):
    assert set(read_manifest(finished)["files"]) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "training_args.bin",
    }
    assert verify.main([str(finished)]) is True
    for name in ("run.json", "trainer_state.json"):  # a report shows no number that was changed
        copy = Path(shutil.copytree(finished, tmp_path / name))
        content = (copy / name).read_text()
        (copy / name).write_text(content.replace("1", "2", 1))
        with pytest.raises(InputError, match=f"runs: .*: {name} was changed after it was"):
            report.main(["--runs", str(copy)])
        assert verify.main([str(copy)]) is False


def test_no_file_of_a_run_holds_the_users_token(finished):
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert finished / "training_args.bin" in files and finished / "run.json" in files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_memory_is_planned_as_plan_does_and_measured_in_bytes(finished):
    record = json.loads((finished / "run.json").read_text())["train"]
    shape = Shape(n_layer=1, n_head=2, n_embd=32, n_positions=32, vocab_size=300)
    # The first row is of one document.
    step = Step(batch_size=4, max_length=32, eval_batch_size=8, on_cpu=True, masked=False)
    sharding = sharding_of({}, 1)
    assert record["memory_planned_bytes"] == sum(step_memory_bytes(shape, step, sharding).values())
    # The peak is of the whole process, in bytes: it never sinks, and libraries alone take 200 MB.
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 200e6 < record["memory_peak_bytes"] <= now


def test_untrained_loss_is_that_of_chance(finished):
    history = json.loads((finished / "trainer_state.json").read_text())["log_history"]
    assert history[0]["eval_loss"] == pytest.approx(math.log(300), rel=0.02)


def test_the_folder_loads_and_generates(finished):
    assert AutoTokenizer.from_pretrained(finished).eos_token == "<|endoftext|>"
    made = pipeline("text-generation", model=str(finished))(
        "Paragraph", max_new_tokens=5, num_return_sequences=2, do_sample=True
    )
    assert len(made) == 2 and all(m["generated_text"].startswith("Paragraph") for m in made)
    assert AutoModelForCausalLM.from_pretrained(finished).config.use_cache


def test_resume_after_the_end_changes_nothing(finished, text):
    weights = (finished / "model.safetensors").read_bytes()
    pretrain.main(
        [
            "--source",
            text,
            "--output_dir",
            str(finished),
            *TINY,
            "--save_steps",
            "2",
            "--eval_on_start",
            "--resume",
            "auto",
        ]
    )
    assert (finished / "model.safetensors").read_bytes() == weights


def test_dry_run_writes_nothing(tmp_path, text, capsys):
    pretrain.main(["--source", text, "--output_dir", str(tmp_path / "run"), *TINY, "--dry_run"])
    shown = capsys.readouterr().out
    assert "dry run" in shown and "train tokens scored" in shown and "<|endoftext|>" in shown
    assert not (tmp_path / "run").exists()


def test_quickstart_learns_and_prints_where_it_is(tmp_path, text, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quickstart.main(["--source", text, "--max_length", "32", "--max_steps", "30", "--disable_tqdm"])
    shown = capsys.readouterr().out
    assert shown.count("--- sample") == 3
    assert "model, tokenizer and run.json: runs/quickstart" in shown
    assert "page with curves and settings: runs/quickstart/report.html" in shown
    [line] = [line for line in shown.splitlines() if line.startswith("held-out perplexity: ")]
    after, before = (
        float(part.split()[-1].replace(",", "")) for part in re.split(r" \(| before", line)[:2]
    )
    assert after < before / 2
    assert line.endswith(f"as unsure as among {after:,.0f} tokens")
    run = tmp_path / "runs" / "quickstart"
    assert (run / "model.safetensors").is_file()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [
        "quickstart"
    ]  # TensorBoard's files lie in it
    assert list(run.glob("runs/*/events.out.tfevents.*"))
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert history[0]["step"] == 0 and f"{history[0]['eval_perplexity']:,.2f} before" in shown
    record = json.loads((run / "run.json").read_text())
    assert as_shown(record["samples"]) in shown
    assert f'value="{record["metrics"]["eval_perplexity"]}"' in (run / "report.html").read_text()
    assert next_command_of(shown)[:3] == ["generate", "--model", "runs/quickstart"]


def as_shown(samples: list[str]) -> str:
    """As a run prints its samples: without what a terminal would obey."""
    return "".join(f"\n--- sample\n{printable(text)}\n" for text in samples)


def next_command_of(shown: str) -> list[str]:
    """The words after `hfscale` of the command that a run ends with."""
    [line] = [line for line in shown.splitlines() if line.startswith("next: ")]
    command, *words = shlex.split(line.removeprefix("next: "))
    assert Path(shutil.which(command)).absolute().parent == Path(sys.executable).parent
    return words


@pytest.mark.parametrize("recipe", [pretrain, finetune])
def test_a_run_ends_with_its_samples_and_a_command_that_works(
    finished, tmp_path, text, capsys, monkeypatch, recipe
):
    words = TINY if recipe is pretrain else ["--model", str(finished), *TINY[10:]]
    recipe.main(["--source", text, "--output_dir", str(tmp_path / "a run"), *words])
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "a run" / "run.json").read_text())
    assert as_shown(record["samples"]) in shown
    command, *words = next_command_of(shown)
    assert (command, words[:2]) == ("generate", ["--model", str(tmp_path / "a run")])
    generate.main(words)
    assert capsys.readouterr().out.startswith(f"prompt: {words[-1]}\n")


def test_score_of_a_run_agrees_with_its_evaluation(finished, text, tmp_path):
    """Same text, same weights, two implementations: windows over documents, and packed rows (which
    add the EOS).
    """
    score.main(
        [
            "--model",
            str(finished),
            "--output_dir",
            str(tmp_path / "scores"),
            "--stride",
            "31",
            "--max_length",
            "31",
        ]
    )
    [system] = json.loads((tmp_path / "scores" / "scores.json").read_text())["systems"]
    scores = system["metrics"]
    metrics = json.loads((finished / "run.json").read_text())["metrics"]
    assert scores["eval_tokens"] == metrics["eval_tokens"] - 1  # one document, one EOS
    assert scores["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=5e-3)


def test_memorization_of_a_run_uses_its_own_text(finished, tmp_path, capsys):
    words = [
        "--model",
        str(finished),
        "--num_samples",
        "2",
        "--max_new_tokens",
        "16",
        "--seed",
        "1",
        "--output_dir",
        str(tmp_path),
        "--canaries",
        "to 12.",
        "--canary_pattern",
        "to ##.",
    ]
    memorization.main(words)
    record = json.loads((tmp_path / "memorization.json").read_text())
    assert record["loss"]["validation_loss"] == pytest.approx(
        json.loads((finished / "run.json").read_text())["metrics"]["eval_loss"], rel=0.02
    )  # windows see more text
    copied = record["longest_copy_words"]
    assert (
        len(copied["samples"]) == 2 and max(copied["held-out text"]) >= 4
    )  # every document has the same phrases
    assert record["canaries"]["to 12."]["candidates"] == 100
    with pytest.raises(InputError, match="holds memorization.json"):
        memorization.main(words)


def test_a_page_is_made_of_a_real_run(finished, tmp_path, capsys):
    page = tmp_path / "page.html"
    report.main(["--runs", str(finished), "--output_file", str(page)])
    html, record = page.read_text(), json.loads((finished / "run.json").read_text())
    assert f'<data value="{record["metrics"]["eval_loss"]}">' in html and html.count("<svg") == 3
    assert str(page) in capsys.readouterr().out


@pytest.mark.slow(seconds=80)
def test_char_tiny_reaches_the_reference(real_data, tmp_path):
    """Less than a quarter of the config's 2,000 steps: at most 1.88 nats per character, where the
    reference program is after all of them, on the last tenth of the text, whole.
    """
    pretrain.main(
        [
            "--config",
            "char_tiny",
            "--source",
            str(real_data / "tinyshakespeare" / "input.txt.gz"),
            "--output_dir",
            str(tmp_path / "char"),
            "--max_steps",
            "440",
            "--eval_strategy",
            "no",
            "--save_strategy",
            "no",
            "--report_to",
            "none",
            "--disable_tqdm",
        ]
    )
    record = json.loads((tmp_path / "char" / "run.json").read_text())
    assert record["train"]["tokens"] <= 440 * 12 * 64  # the last batch of an epoch may be short
    assert (
        record["metrics"]["eval_tokens"] == 111_540 + 1
    )  # every character of the validation text, and EOS
    assert record["metrics"]["eval_loss"] <= 1.88


def test_processes_that_pack_change_no_number(tmp_path):
    """2,500 documents are three batches, so that two processes share them out."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {i} counts to {i * 3}" for i in range(2500)))
    records = []
    for num_proc in ("1", "2"):
        folder = tmp_path / num_proc
        words = ["--source", str(path), "--sample_by", "line", "--output_dir", str(folder), *TINY]
        pretrain.main([*words, "--save_strategy", "no", "--num_proc", num_proc])
        records.append(json.loads((folder / "run.json").read_text()))
    first, second = records
    assert first["data"]["tokens"] == second["data"]["tokens"]
    for name in ("eval_loss", "eval_tokens", "eval_bits_per_byte"):
        assert first["metrics"][name] == second["metrics"][name]


def test_rows_that_each_epoch_packs_anew_are_counted_and_go_on(tmp_path, text, capsys):
    """Three epochs, also broken off within the second, and what every count says of them."""
    words = ["--source", text, "--sample_by", "line", *TINY, "--max_steps=-1"]
    words += ["--num_train_epochs", "3", "--save_steps", "24", "--per_device_train_batch_size", "8"]
    whole, broken_off = tmp_path / "whole", tmp_path / "broken_off"
    pretrain.main([*words, "--repack_each_epoch", "--dry_run"])
    shown = capsys.readouterr().out
    pretrain.main([*words, "--repack_each_epoch", "--output_dir", str(whole)])
    record = json.loads((whole / "run.json").read_text())
    state = json.loads((whole / "trainer_state.json").read_text())
    tokens = record["data"]["tokens"]["train"]
    num_rows = math.ceil(tokens / 31)
    assert state["global_step"] == 3 * math.ceil(num_rows / 8)
    assert state["num_input_tokens_seen"] == 3 * num_rows * 32
    for name, value in {
        "train rows x tokens": f"{num_rows} x 32",
        "train tokens scored": f"{tokens:,}",
        "steps": f"{state['global_step']:,}",
    }.items():
        assert re.search(f"{name} +│ +{value} ", shown)
    shutil.copytree(whole / "checkpoint-24", broken_off / "checkpoint-24")
    assert 1 < 24 / math.ceil(num_rows / 8) < 2
    words += ["--resume", "auto", "--output_dir", str(broken_off)]
    with pytest.raises(InputError, match="repack_each_epoch was True, is False"):
        pretrain.main(words)
    pretrain.main([*words, "--repack_each_epoch"])
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, broken_off)]
    assert weights[0] == weights[1]


def test_a_stream_is_not_packed_beforehand(tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--streaming", "--num_proc", "2", *TINY]
    with pytest.raises(InputError, match="^--num_proc: a stream is packed while it is read"):
        pretrain.main(words)
    assert not (tmp_path / "run").exists()
