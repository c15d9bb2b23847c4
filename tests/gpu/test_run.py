"""The run on a GPU, tried on the CPU with tiny shapes: every part runs and finds what it should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfscale.data.packing import collate_rows
from tests.gpu import attention, generating, preparing, training
from tests.gpu.bench import ROOT, TINY, Bench
from tests.gpu.report import Figure
from tests.gpu.run import PARTS, main
from tests.gpu.runner import Part


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Bench:
    """With text, tokenizer and the matmul rate."""
    bench = Bench(tmp_path_factory.mktemp("gpu"), "cpu", TINY)
    list(preparing.prepare(bench))
    (bench.folder / "matmul.json").write_text(json.dumps({"flops_per_second": 1e9}))
    return bench


def test_every_part_can_be_found():
    for module, function, _, _ in PARTS.values():
        assert callable(Part("", f"tests.gpu.{module}", function, 1).load())


def test_without_a_gpu_it_says_so_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for words, message in {
        (): "no CUDA device here; --tiny --device cpu tries the parts out on a CPU",
        ("--device", "cpu"): "--device cpu: shows nothing but a trial; add --tiny",
    }.items():
        assert main([*words, "--output_dir", str(tmp_path / "new")]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "new").exists()


def test_missing_packages_are_named_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(
        "tests.gpu.run.find_spec", lambda name: name not in ("peft", "yaml") or None
    )
    assert main([]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not installed: peft, pyyaml; pip install ")


def test_an_earlier_run_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "gpu.json").write_text("{}")
    assert main(["--tiny", "--device", "cpu", "--output_dir", str(tmp_path)]) == 2
    assert "holds gpu.json; name another folder" in capsys.readouterr().err
    assert (tmp_path / "gpu.json").read_text() == "{}"


# ---- each part, with tiny shapes


def by_name(figures) -> dict[tuple[str, str], Figure]:
    return {(figure.case, figure.name): figure for figure in figures}


def test_the_text_is_in_a_vocabulary_of_the_size_that_is_asked_for(prepared):
    tokenizer = prepared.tokenizer()
    assert len(tokenizer) == TINY.vocab_size
    assert tokenizer.decode(tokenizer("def f(x):\n")["input_ids"]) == "def f(x):\n"
    about = json.loads((prepared.folder / "about.json").read_text())
    assert about["device"].startswith("CPU") and about["torch"]


def test_a_filled_up_vocabulary_gives_the_same_tokens(prepared):
    from hfscale.data.tokenizer import train_bpe

    learned = train_bpe(prepared.documents(), 400)
    filled = preparing._filled_up(learned, 1000)
    assert (len(learned), len(filled)) == (400, 1000)
    text = prepared.documents()[0]["text"]
    assert filled(text)["input_ids"] == learned(text)["input_ids"]
    assert filled.eos_token_id == learned.eos_token_id


def test_rows_of_training_hold_several_documents(prepared):
    rows = prepared.rows(64)
    packed = prepared.rows(64, least_documents=2, at_least=500)
    counts = [positions.count(0) for positions in packed["position_ids"]]
    assert min(counts) == 2 and len(packed) >= 500
    several = sum(positions.count(0) > 1 for positions in rows["position_ids"])
    assert 0 < several < len(rows) and len(packed) % several == 0


def test_old_versions_are_marked():
    marked = preparing._marked({"torch": "1.0", "python": "3.11", "peft": None})
    assert marked["torch"].startswith("1.0 (pyproject.toml: ")
    assert (marked["python"], marked["peft"]) == ("3.11", "none")


def test_matmul(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "SECONDS_PER_SIZE", 0.01)
    bench = Bench(tmp_path, "cpu", TINY)
    figures = list(preparing.matmul(bench))
    rates = [figure.value for figure in figures]
    assert rates[-1] == max(rates[:-1]) > 0
    assert bench.matmul_rate() == pytest.approx(1e12 * rates[-1])


@pytest.mark.slow
def test_the_step(prepared):
    figures = by_name(training.small_step(prepared))
    compiled = "LMTrainer, torch.compile"
    for case in ("LMTrainer", compiled, "bare loop, torch.compile"):
        assert figures[case, "speed"].value > 0
    ratio = figures[compiled, "speed / bare compiled loop"]
    assert ratio.at_least == 0.97 and ratio.interval is not None
    mfu = figures["LMTrainer", "MFU"]
    assert mfu.value > 0 and mfu.at_least is None and figures[compiled, "MFU"].at_least == 50
    assert ("LMTrainer", "peak memory") not in figures  # a CPU's is not known


@pytest.mark.parametrize("by_blocks", [False, True])
def test_the_bare_loop_trains_as_hfscale_does(prepared, by_blocks):
    """The same weights, rows of a step and loss of a batch; then all of its weights change."""
    bare = training.BareLoop(prepared, TINY.small, by_blocks=by_blocks)
    model, args, rows = training.make_training(prepared, TINY.small)
    trainer = training.make_trainer(model, args, rows)
    batch = collate_rows([rows[i] for i in range(4)])
    ours = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(bare.loss(batch), ours, rtol=1e-3, atol=0)  # in bf16
    assert bare.tokens == 4 * 2 * 64
    before = [parameter.clone() for parameter in bare.model.parameters()]
    bare.run(1)
    for parameter, old in zip(bare.model.parameters(), before, strict=True):
        assert not parameter.equal(old)


@pytest.mark.slow
def test_packed_attention(prepared):
    figures = by_name(attention.packed_attention(prepared))
    assert figures["rows", "documents in a row"].value > 1
    asked = [figure for figure in figures.values() if figure.is_asked]
    # Both kinds of attention in two precisions, and that a leak would be seen.
    assert len(asked) == 5 and all(figure.holds() for figure in asked)
    assert figures["flex attention", "speed / sdpa"].value > 0


@pytest.mark.slow
def test_losses(prepared):
    asked = [figure for figure in training.losses(prepared) if figure.is_asked]
    assert len(asked) == 2 and all(figure.holds() for figure in asked)


def test_auto_batch(prepared):
    figures = by_name(training.auto_batch(prepared))
    assert figures["gpt2_small, --auto_batch", "rows of a step"].value == TINY.most_rows
    asked = [figure for figure in figures.values() if figure.is_asked]
    assert len(asked) == 2 and all(figure.holds() for figure in asked)


@pytest.mark.needs("bitsandbytes")
def test_qlora(prepared):
    figures = by_name(training.qlora(prepared))
    for case in ("LoRA", "QLoRA"):
        assert figures[case, "speed"].value > 0
    assert figures["QLoRA, against LoRA", "relative difference of the first loss"].value < 0.02


def test_generation(prepared):
    figures = by_name(generating.generation(prepared))
    for batch_size in generating.BATCH_SIZES:
        case = f"static cache, batch {batch_size}"
        assert figures[case, "speed / dynamic cache"].value > 0
        same = figures[case, "texts that are the same in both"]
        assert same.value == f"{batch_size} of {batch_size}"


@pytest.mark.slow(seconds=70)
@pytest.mark.needs("deepspeed")
@pytest.mark.needs("bitsandbytes")
def test_the_run_from_the_command_line(tmp_path):
    """The parts that no other test takes: those that launch."""
    parts = ["single_gpu", "fsdp2", "zero2"]
    command = [sys.executable, "tests/gpu/run.py", "--tiny", "--device", "cpu", "--only", *parts]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout, done.stderr, Path(tmp_path, "gpu.log").read_text())
    content = json.loads((tmp_path / "gpu.json").read_text())
    statuses = {result["part"]: result["status"] for result in content["parts"]}
    assert {part: statuses[part] for part in parts} == dict.fromkeys(parts, "done")
    wrappers = {
        figure["case"]: figure["value"]
        for result in content["parts"]
        for figure in result["figures"]
        if figure["name"] == "model wrapped by"
    }
    assert wrappers == {
        "single_gpu": "GPT2LMHeadModel",
        "fsdp2": "FSDPGPT2LMHeadModel",
        "zero2": "DeepSpeedEngine",
    }
