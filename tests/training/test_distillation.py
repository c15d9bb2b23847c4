"""Distillation: the loss is what its formula says, for any batches and ranks, and runs go on."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn import functional as F

from hfscale.data.packing import IGNORED, collate_rows
from hfscale.data.tokenizer import train_bpe
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.training.distillation import (
    DistillationTrainer,
    generalized_jsd,
    summed_divergence,
)
from recipes import distill, pretrain
from tests.tiny_models import APART, tiny_model
from tests.tiny_runs import DOCUMENTS, tiny_arguments, tiny_rows, tiny_tokenizer

ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

# ---- the divergences, by hand: two places, three words

TEACHER = [[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]
STUDENT = [[1 / 8, 1 / 8, 3 / 4], [1 / 8, 1 / 8, 3 / 4]]
LOG2, LOG3 = math.log(2), math.log(3)
# At temperature 2 each word counts by the root of its probability.
ROOT2, ROOT6 = math.sqrt(2), math.sqrt(6)
SOFT_TEACHER = [ROOT2 - 1, 1 - ROOT2 / 2, 1 - ROOT2 / 2]
SOFT_STUDENT = [1 / (2 + ROOT6), 1 / (2 + ROOT6), ROOT6 / (2 + ROOT6)]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def jsd(p, q, beta):
    mixture = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@pytest.mark.parametrize(
    ("beta", "temperature", "expected"),
    [
        # 1/2 log 4 + 1/4 log 2 + 1/4 log 1/3
        (0.0, 1.0, 5 / 4 * LOG2 - 1 / 4 * LOG3),
        # 1/8 log 1/4 + 1/8 log 1/2 + 3/4 log 3
        (1.0, 1.0, 3 / 4 * LOG3 - 3 / 8 * LOG2),
        # The mean is 5/16, 3/16, 1/2.
        (
            0.5,
            1.0,
            (
                (math.log(8 / 5) / 2 + math.log(4 / 3) / 4 - LOG2 / 4)
                + (math.log(2 / 5) / 8 + math.log(2 / 3) / 8 + 3 / 4 * math.log(3 / 2))
            )
            / 2,
        ),
        (0.0, 2.0, kl(SOFT_TEACHER, SOFT_STUDENT)),
        # At temperature 1/2 by its square: 4, 1, 1 of 6 and 1, 1, 36 of 38.
        (0.1, 0.5, jsd([4 / 6, 1 / 6, 1 / 6], [1 / 38, 1 / 38, 36 / 38], 0.1)),
    ],
)
def test_divergences_by_hand(beta, temperature, expected):
    # Logits are known up to a number that is added to all of a place.
    student, teacher = torch.tensor(STUDENT).log() + 3, torch.tensor(TEACHER).log() - 1
    first, second = generalized_jsd(student, teacher, beta, temperature).tolist()
    assert first == pytest.approx(expected, rel=1e-5)
    assert second == pytest.approx(0, abs=1e-6)


def test_the_ends_are_the_limits_of_what_lies_between():
    """Per beta, and per 1 - beta: the divergence itself vanishes there."""
    student, teacher = torch.tensor(STUDENT).log(), torch.tensor(TEACHER).log()
    small = 1e-3
    near_forward = generalized_jsd(student, teacher, small)[0] / small
    near_reverse = generalized_jsd(student, teacher, 1 - small)[0] / small
    assert near_forward == pytest.approx(generalized_jsd(student, teacher, 0)[0].item(), rel=0.01)
    assert near_reverse == pytest.approx(generalized_jsd(student, teacher, 1)[0].item(), rel=0.01)


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 2.0), (1.0, 1.0), (0.3, 0.7)])
def test_trl_computes_the_same(beta, temperature):
    gkd = pytest.importorskip("trl.experimental.gkd", reason="the extra hfscale[trl] is missing")
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 11), torch.randn(3, 5, 11)
    labels = torch.randint(0, 11, (3, 5))
    labels[1, 2:] = IGNORED
    # Theirs is told which label each place predicts.
    expected = gkd.GKDTrainer.generalized_jsd_loss(
        student[:, :-1], teacher[:, :-1], labels[:, 1:], beta, temperature, "sum"
    )
    found = summed_divergence(student, teacher, labels, beta, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_tokens_of_one_model_alone_count_for_neither():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, 11), torch.randn(1, 4, 16)
    labels = torch.tensor([[1, 2, 3, 4]])
    wide = summed_divergence(student, teacher, labels, 0.0, 1.0)
    assert wide == summed_divergence(student, teacher[..., :11], labels, 0.0, 1.0)


# ---- the trainer


def models():
    torch.manual_seed(0)
    teacher = new_model(tiny_tokenizer(), **SIZES, hidden_size=32, initializer_range=0.3)
    student = new_model(tiny_tokenizer(), **SIZES, hidden_size=16, **WITHOUT_DROPOUT)
    return student, teacher


def trainer_for(student, teacher, folder, beta=0.2, temperature=2.0, kd_ratio=0.3, **values):
    return DistillationTrainer(
        model=student,
        args=tiny_arguments(folder, save_strategy="no", max_steps=1, **values),
        teacher=teacher,
        beta=beta,
        temperature=temperature,
        kd_ratio=kd_ratio,
        train_dataset=tiny_rows().select(range(8)),
        eval_dataset=tiny_rows().select(range(5)),
        data_collator=collate_rows,
    )


def document_by_document(student, teacher, rows, beta, temperature):
    """Cross-entropy and divergence of all predicted tokens, means of sums: each part of a document
    alone, and each place by the formula.
    """
    losses, divergences = [], []
    for row in rows:
        size = len(row["input_ids"])
        starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], size], strict=True):
            ids = torch.tensor([row["input_ids"][start:end]])
            # The last token of a document predicts its end; that of a row predicts nothing.
            labels = torch.tensor([*row["labels"][start + 1 : end + 1], IGNORED][: end - start])
            kept = labels != IGNORED
            places = [model(ids, use_cache=False).logits[0][kept] for model in (student, teacher)]
            q, p = (F.softmax(logits / temperature, -1) for logits in places)
            m = beta * p + (1 - beta) * q
            to_mean = [(one * (one / m).log()).sum(-1) for one in (p, q)]
            divergences += beta * to_mean[0] + (1 - beta) * to_mean[1]
            losses += F.cross_entropy(places[0], labels[kept], reduction="none")
    return torch.stack(losses).mean(), torch.stack(divergences).mean()


@pytest.mark.parametrize(("rows_at_once", "accumulated"), [(8, 1), (3, 3), (1, 8)])
def test_losses_and_gradients_are_token_means(tmp_path, rows_at_once, accumulated):
    student, teacher = models()
    trainer = trainer_for(
        student,
        teacher,
        tmp_path,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=accumulated,
        learning_rate=0.0,
        max_grad_norm=0.0,
    )
    rows = tiny_rows().select(range(8))
    text_loss, divergence = document_by_document(student, teacher.eval(), rows, 0.2, 2.0)
    expected = 0.7 * text_loss + 0.3 * 4 * divergence
    names, weights = zip(*student.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(expected, weights), strict=True))
    found = {}

    def keep(optimizer, args, kwargs):
        found.update({name: p.grad.clone() for name, p in student.named_parameters()})

    trainer.create_optimizer().register_step_pre_hook(keep)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(text_loss.item(), rel=1e-5)
    assert log["perplexity"] == pytest.approx(math.exp(text_loss.item()), rel=1e-5)
    assert log["divergence"] == pytest.approx(divergence.item(), rel=1e-5)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_teacher_reads_without_dropout_and_stays_as_it_is(tmp_path):
    student, teacher = models()
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = trainer_for(student, teacher, tmp_path)
    metrics = trainer.evaluate_teacher()
    trainer.train()
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    alone = trainer_for(teacher, student, tmp_path).evaluate()
    for name in ("loss", "perplexity", "tokens", "bits_per_byte"):
        assert metrics[f"teacher_{name}"] == pytest.approx(alone[f"eval_{name}"], rel=1e-6)


def test_a_mixture_of_experts_learns_to_use_them_alike_too(tmp_path):
    """Its own part is logged beside the teacher's, and is not weighed with the text's."""
    _, teacher = models()
    sizes = APART["mixtral"] | {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    student = tiny_model("mixtral", sizes, len(tiny_tokenizer()))
    trainer = trainer_for(student, teacher, tmp_path, learning_rate=0.0)
    trainer.train()
    log = trainer.state.log_history[0]
    alone = document_by_document(student, teacher, tiny_rows().select(range(8)), 0.2, 2.0)
    assert log["router_loss"] > 0.1
    assert math.isfinite(log["divergence"]) and log["loss"] < alone[0].item() * 2


# ---- the recipe

QUIET = "--use_cpu --bf16 false --report_to none --disable_tqdm --logging_steps 1".split()
SHAPE = "--num_hidden_layers 1 --num_attention_heads 2 --max_position_embeddings 16".split()
NEW = [*SHAPE, "--hidden_size", "16", "--max_steps", "4", "--learning_rate", "1e-2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a text and a teacher of its tokens."""
    folder = tmp_path_factory.mktemp("distill")
    (folder / "text.txt").write_text("\n".join(DOCUMENTS["text"]))
    _, teacher = models()
    teacher.save_pretrained(folder / "teacher")
    tiny_tokenizer().save_pretrained(folder / "teacher")
    return folder


def words_for(place: Path, output: str | Path, *words: str, batch: int = 4) -> list[str]:
    return [
        *("--teacher_model_name_or_path", str(place / "teacher")),
        *("--source", str(place / "text.txt"), "--sample_by", "line"),
        *("--output_dir", str(output), "--per_device_train_batch_size", str(batch)),
        *QUIET,
        *NEW,
        *words,
    ]


def logs_of(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log[name] for log in history if name in log]


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "run.json").read_text())["metrics"]


def weights_of(folder: Path):
    return load_file(folder / "model.safetensors")


def equal_weights(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(place) -> Path:
    distill.main(words_for(place, place / "whole", "--save_steps", "2"))
    return place / "whole"


def test_a_run_records_its_teacher(whole, place):
    record = json.loads((whole / "run.json").read_text())
    assert record["config"]["teacher_model_name_or_path"] == str(place / "teacher")
    assert len(record["data"]["teacher_fingerprint"]) == 16
    assert record["metrics"]["teacher_bits_per_byte"] > 0
    assert len(logs_of(whole, "divergence")) == 4
    assert "from the logits of a teacher, teacher." in (whole / "README.md").read_text()


def test_a_run_that_was_cut_short_goes_on_exactly(whole, place, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    words = words_for(place, cut, "--save_steps", "2", "--resume", "auto")
    with pytest.raises(InputError, match="beta was 0.0, is 0.5"):
        distill.main([*words, "--beta", "0.5"])
    other = shutil.copytree(place / "teacher", tmp_path / "teacher")
    torch.manual_seed(1)
    new_model(tiny_tokenizer(), **SIZES, hidden_size=32).save_pretrained(other)
    with pytest.raises(InputError, match=r"the content of the teacher \(.*teacher\) changed"):
        distill.main([*words, "--teacher_model_name_or_path", str(other)])
    distill.main(words)
    assert equal_weights(weights_of(cut), weights_of(whole))


def test_without_the_teachers_share_it_is_pretraining(place, tmp_path):
    distill.main(words_for(place, tmp_path / "student", "--kd_ratio", "0"))
    words = words_for(place, tmp_path / "alone", "--tokenizer", str(place / "teacher"))
    pretrain.main(words[2:])
    assert equal_weights(weights_of(tmp_path / "student"), weights_of(tmp_path / "alone"))


@pytest.mark.slow
def test_two_processes_train_as_one(whole, place, tmp_path, run_warm):
    words = words_for(place, tmp_path / "two", batch=2)
    launch = ["distill", "--accelerate", "cpu_2proc", *words]
    done = run_warm([sys.executable, "-m", "hfscale.cli", *launch], env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "divergence"):
        assert logs_of(tmp_path / "two", name) == pytest.approx(logs_of(whole, name), rel=1e-5)
    for name in ("eval_loss", "teacher_loss"):
        assert metrics_of(tmp_path / "two")[name] == pytest.approx(
            metrics_of(whole)[name], rel=1e-5
        )


def test_a_saved_student_goes_on(whole, place, tmp_path):
    words = words_for(place, tmp_path / "more", "--model", str(whole), "--learning_rate", "0")
    run = distill.main(words)
    assert run is not None
    assert run.metrics["eval_loss"] == pytest.approx(metrics_of(whole)["eval_loss"], rel=1e-6)


# ---- what cannot work


def other_vocabulary(place: Path) -> list[str]:
    folder = place / "other"
    tokenizer = train_bpe(Dataset.from_dict({"text": ["quite other words"] * 9}), 300)
    new_model(tokenizer, **SIZES, hidden_size=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["--model", str(folder)]


def no_causal_model(place: Path) -> list[str]:
    folder = place / "bert"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return ["--teacher_model_name_or_path", str(folder)]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (other_vocabulary, r"teacher: its token \d+ is '.*', the student's is .* tokens\); a stud"),
        (no_causal_model, "^model .*bert: cannot be loaded: a model of the kind t5 has an encoder"),
        (["--temperature", "0"], "--temperature: got '0', expected 0.001 to"),
        (["--temperature", "-1"], "--temperature: got '-1', expected 0.001 to"),
        (["--beta", "1.5"], "--beta: got '1.5', expected 0 to 1"),
        (["--beta", "-0.1"], "--beta: got '-0.1', expected 0 to 1"),
        (["--kd_ratio", "2"], "--kd_ratio: got '2', expected 0 to 1"),
        (
            ["--max_position_embeddings", "32"],
            "teacher: its context of 16 tokens is shorter than the rows of 32; take --max_length 16",
        ),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor: the teacher's distribution"),
        (["--teacher_model_init_kwargs", "dtype=float7"], "^model .*teacher: cannot be loaded"),
    ],
)
def test_what_cannot_work_is_one_line(words, match, place, tmp_path):
    given = words(place) if callable(words) else words
    with pytest.raises(InputError, match=match) as error:
        distill.main(words_for(place, tmp_path / "refused", *given))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("engine", ["ZeRO-3", "FSDP"])
def test_engines_that_would_spread_the_teacher(engine, place, tmp_path, monkeypatch):
    monkeypatch.setattr("hfscale.training.distillation.launched_engine", lambda: engine)
    with pytest.raises(InputError, match=f"{engine} would spread over them; launch with .*ddp"):
        distill.main(words_for(place, tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()
