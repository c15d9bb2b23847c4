"""KTO, ORPO and SimPO: their formulas beside few independent lines and TRL's own, KTO's rows, and
runs that two processes share and that stop half way.
"""

import json
import math
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hfscale.data.tokenizer import train_bpe
from hfscale.models import load_model
from hfscale.process import InputError
from hfscale.tasks.preferences import kto_rows, load_preferences, made_pairs, pair_ids

pytest.importorskip("trl", reason="the extra hfscale[trl] is missing")
from trl.experimental.cpo import CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DataCollatorForPreference  # noqa: E402
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402

from hfscale.tasks.preference_losses import LOSSES, score_answers  # noqa: E402
from hfscale.tasks.preference_metrics import label_metrics, with_reference  # noqa: E402
from recipes import finetune_preference  # noqa: E402

ROOT = Path(__file__).parents[2]
# Answers of unlike lengths, so that rows are padded.
PAIRS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 10, 11, 0], "rejected_ids": [12, 0]},
    {"prompt_ids": [13], "chosen_ids": [14, 0], "rejected_ids": [15, 16, 17, 0]},
]
ANSWERS = [
    {"prompt_ids": [5, 6, 7], "completion_ids": [8, 9, 0], "KL_completion_ids": [10, 0]},
    {"prompt_ids": [11], "completion_ids": [12, 0], "KL_completion_ids": [13, 14, 15, 0]},
    {"prompt_ids": [16, 17], "completion_ids": [18, 0], "KL_completion_ids": [19, 20, 0]},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    texts = [pair["prompt"] + pair["chosen"] for pair in made_pairs(0)]
    tokenizer = train_bpe(Dataset.from_dict({"text": texts}), 300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64, "initializer_range": 0.2}
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1}
    GPT2LMHeadModel(GPT2Config(**sizes, **tokens)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def token_logps(model, prompt: list[int], answer: list[int]) -> list[float]:
    """The definition: a token's logarithm of softmax, given all before it, alone and not padded."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    probabilities = logits.log_softmax(-1)
    return [probabilities[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)]


def of_pairs(model) -> list[tuple[list[float], list[float]]]:
    return [
        tuple(
            token_logps(model, row["prompt_ids"], row[side])
            for side in ("chosen_ids", "rejected_ids")
        )
        for row in PAIRS
    ]


def loss_of(model, loss_type: str, batch: dict, **settings: float) -> float:
    add_fused_lm_head(model)
    return LOSSES[loss_type](partial(score_answers, model, batch), batch, **settings).item()


def test_each_token_of_an_answer_counts_and_nothing_else(base):
    """The masks are those of DPO: prompts and padding are passed over, EOS is not."""
    model = load_model(base)
    batch = DataCollatorForPreference(pad_token_id=0)(PAIRS)
    add_fused_lm_head(model)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    fused = model(**{**batch, "completion_mask": None}, labels=labels, fused_lm_head=True).log_probs
    found = score_answers(model, batch)
    expected = [*zip(*of_pairs(load_model(base)), strict=True)]
    expected = [*expected[0], *expected[1]]  # all chosen, then all rejected
    for row, logps, total, length in zip(fused, expected, found.logps, found.lengths, strict=True):
        assert row[row != 0].tolist() == pytest.approx(logps, abs=1e-5)
        assert total.item() == pytest.approx(sum(logps), abs=1e-5)
        assert length.item() == len(logps)


def test_orpo_by_hand(base):
    losses = []
    for chosen, rejected in of_pairs(load_model(base)):
        p, q = (math.exp(sum(logps) / len(logps)) for logps in (chosen, rejected))
        odds_ratio = (p / (1 - p)) / (q / (1 - q))
        losses.append(-math.log(p) - 0.3 * math.log(1 / (1 + 1 / odds_ratio)))
    for rows, expected in ((PAIRS[:1], losses[0]), (PAIRS, sum(losses) / 2)):
        batch = DataCollatorForPreference(pad_token_id=0)(rows)
        assert loss_of(load_model(base), "orpo", batch, beta=0.3) == pytest.approx(
            expected, abs=1e-5
        )


def test_simpo_by_hand(base):
    losses = []
    for chosen, rejected in of_pairs(load_model(base)):
        margin = sum(chosen) / len(chosen) - sum(rejected) / len(rejected)
        losses.append(-math.log(1 / (1 + math.exp(-(2.0 * margin - 0.7)))))
    for rows, expected in ((PAIRS[:1], losses[0]), (PAIRS, sum(losses) / 2)):
        batch = DataCollatorForPreference(pad_token_id=0)(rows)
        found = loss_of(load_model(base), "simpo", batch, beta=2.0, simpo_gamma=0.7)
        assert found == pytest.approx(expected, abs=1e-5)


def test_kto_by_hand(base):
    """The reference is drawn so that the point of comparison is above 0, then below, where it is 0."""
    model = load_model(base)
    unlike = [sum(token_logps(model, r["prompt_ids"], r["KL_completion_ids"])) for r in ANSWERS]
    logps = [sum(token_logps(model, r["prompt_ids"], r["completion_ids"])) for r in ANSWERS]
    labels = [True, False, True]
    for shift, point in ((0.4, 0.4), (-0.4, 0.0)):
        losses = []
        for gain, label in zip((0.5, 0.2, -0.3), labels, strict=True):
            sign, weight = (1, 1.5) if label else (-1, 0.5)
            losses.append(weight * (1 - 1 / (1 + math.exp(-2.0 * sign * (gain - point)))))
        rows = [
            {
                **row,
                "label": label,
                "ref_logps": logp - gain,
                "ref_KL_logps": other - shift,
            }
            for row, label, logp, gain, other in zip(
                ANSWERS, labels, logps, (0.5, 0.2, -0.3), unlike, strict=True
            )
        ]
        batch = DataCollatorForUnpairedPreference(pad_token_id=0)(rows)
        weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
        found = loss_of(load_model(base), "kto", batch, beta=2.0, **weights)
        assert found == pytest.approx(sum(losses) / 3, abs=1e-5)


def test_formulas_are_those_of_trl(base):
    """Its ORPO counts the likelihood of the prompt, too, which is left out of the comparison."""
    batch = DataCollatorForPreference(pad_token_id=0)(PAIRS)
    model = load_model(base)
    simpo = loss_of(model, "simpo", batch, beta=2.0, simpo_gamma=0.7)
    orpo = loss_of(load_model(base), "orpo", batch, beta=0.3)
    chosen, rejected = score_answers(model, batch).mean_logps()
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    shared = {"accelerator": accelerator, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.7}
    cpo = SimpleNamespace(loss_type="simpo", beta=2.0, **shared)
    assert simpo == pytest.approx(CPOTrainer.cpo_loss(cpo, chosen, rejected)[0].mean().item())
    odds = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.3, **shared), chosen, rejected)[0]
    assert orpo == pytest.approx((-chosen - odds).mean().item())


def test_an_answer_that_is_certain_keeps_the_odds_finite():
    score = partial(SimpleNamespace, mean_logps=lambda: (zero, zero - 1))
    zero = torch.zeros(1, requires_grad=True)
    loss = LOSSES["orpo"](score, {}, beta=0.1)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(zero.grad).all()


def test_pairs_become_answers_beside_one_to_another_prompt(tokenizer, base):
    pairs = Dataset.from_list(made_pairs(0)[:6])
    rows = kto_rows(pairs, tokenizer)
    assert rows["label"] == [True, False] * 6
    for i, pair in enumerate(pairs):
        ids = pair_ids(pair, tokenizer)
        for row, side in zip((rows[2 * i], rows[2 * i + 1]), ("chosen", "rejected"), strict=True):
            assert row["prompt_ids"] == ids["prompt_ids"]
            assert row["completion_ids"] == ids[f"{side}_ids"]
            partner = rows[(2 * i + (side == "rejected") + 6) % 12]
            assert row["KL_completion_ids"] == partner["completion_ids"]
            assert row["prompt"] != partner["prompt"]
    model = load_model(base)
    scored = with_reference(DatasetDict(train=rows), model)["train"]
    for row in scored.select(range(3)):
        for name, ids in (("ref_logps", "completion_ids"), ("ref_KL_logps", "KL_completion_ids")):
            expected = sum(token_logps(model, row["prompt_ids"], row[ids]))
            assert row[name] == pytest.approx(expected, abs=1e-4)
    # The model itself: nothing gained.
    assert label_metrics(model, scored, beta=1.0)["eval_reward_margin"] == pytest.approx(
        0, abs=1e-4
    )


def test_answers_to_one_prompt_alone_are_refused(tokenizer):
    rows = Dataset.from_list([{"prompt": "p", "completion": c, "label": c == "a"} for c in "abc"])
    with pytest.raises(InputError, match="all 3 answers of a split are to one prompt, and kto"):
        kto_rows(rows, tokenizer)


def write(path: Path, rows: list) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def answers(labels: list) -> list[dict]:
    return [
        {"prompt": f"p{i}", "completion": "a", "label": label} for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("rows", "loss_type", "says"),
    [
        (answers([True] * 20), "kto", "the label of all 18 train rows is true; kto needs both"),
        (answers([True, "yes"]), "kto", 'rows.jsonl:2: the label is "yes", expected true or false'),
        (answers([True, 1]), "kto", "rows.jsonl:2: the label is 1, expected true or false"),
        (answers([True, None]), "kto", "rows.jsonl:2: the label is null, expected true or false"),
        (answers([True, False]), "orpo", "rows.jsonl:1: an answer alone.*or take loss_type kto"),
        ([*answers([True]), made_pairs(0)[0]], "kto", "rows.jsonl:2: no column 'completion'"),
    ],
)
def test_bad_answers_name_their_line(tokenizer, tmp_path, rows, loss_type, says):
    source = write(tmp_path / "rows.jsonl", rows)
    values = {"max_length": 64, "validation_fraction": 0.1, "seed": 0}
    with pytest.raises(InputError, match=says) as error:
        load_preferences(source, tokenizer, loss_type=loss_type, **values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--simpo_gamma", "1"],
            "simpo_gamma: belongs to loss_type simpo; sigmoid goes without it",
        ),
        (
            ["--loss_type", "simpo", "--undesirable_weight", "1"],
            "undesirable_weight: belongs to loss_type kto; simpo goes without it",
        ),
        (
            ["--loss_type", "orpo", "--label_smoothing", "0.1"],
            "label_smoothing: belongs to loss_type robust; orpo goes without it",
        ),
        (["--loss_type", "kto", "--desirable_weight", "-1"], "desirable_weight: got '-1'"),
    ],
)
def test_arguments_of_another_loss_are_refused(base, tmp_path, words, says):
    with pytest.raises(InputError, match=says):
        finetune_preference.main(["--model", base, "--output_dir", str(tmp_path / "run"), *words])
    assert not (tmp_path / "run").exists()


SHORT = [
    *("--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--learning_rate", "3e-3"),
    *("--bf16", "false", "--report_to", "none", "--disable_tqdm", "--use_cpu"),
]
BATCH_OF_8 = ["--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8"]
BATCH_OF_4 = ["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4"]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_runs_are_equal_on_two_processes_and_go_on(
    loss_type, base, tmp_path, run_warm, monkeypatch
):
    """... and load a model to compare with for kto alone."""
    loaded = []
    monkeypatch.setattr(
        "hfscale.models.load_model",
        lambda name, **values: loaded.append(name) or load_model(name, **values),
    )
    source = write(tmp_path / "pairs.jsonl", made_pairs(0)[:40])
    words = ["--model", base, "--loss_type", loss_type, "--source", source, *SHORT]
    whole, cut, shared = (tmp_path / name for name in ("whole", "cut", "shared"))
    finetune_preference.main([*words, *BATCH_OF_8, "--output_dir", str(whole)])
    assert (base in loaded) == (loss_type == "kto")
    record = json.loads((whole / "run.json").read_text())
    metrics = record["metrics"]
    assert losses(whole)[-1] < losses(whole)[0]
    assert metrics["eval_pair_accuracy"] > metrics["before_eval_pair_accuracy"]

    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    resume = ["--output_dir", str(cut), "--resume", "auto"]
    finetune_preference.main([*words, *BATCH_OF_8, *resume])
    weights = [load_file(folder / "model.safetensors") for folder in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    command = [sys.executable, "-m", "hfscale.cli", "finetune_preference", "--accelerate"]
    result = run_warm(
        [*command, "cpu_2proc", *words, *BATCH_OF_4, "--output_dir", str(shared)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert losses(shared) == pytest.approx(losses(whole), abs=1e-5)
    of_shared = json.loads((shared / "run.json").read_text())["metrics"]
    assert of_shared["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-5)


def test_kto_of_answers_with_labels(base, tmp_path):
    """A few more good ones than bad ones."""
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for i, pair in enumerate(made_pairs(0)[:60])
        for side in (["chosen"] if i % 3 else ["chosen", "rejected"])
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    words = ["--model", base, "--loss_type", "kto", "--source", source, *SHORT, *BATCH_OF_8]
    run = finetune_preference.main([*words, "--output_dir", str(tmp_path / "run")])
    metrics = run.record["metrics"]
    assert run.record["config"]["desirable_weight"] == 1.0
    assert metrics["eval_reward_margin"] == pytest.approx(
        metrics["eval_reward_desirable"] - metrics["eval_reward_undesirable"]
    )
    assert metrics["eval_reward_margin_ci95"][0] > 0
