"""Preference tuning: the pairs, the rewards (beside TRL's own), and the recipe whole and by
adapter.
"""

import gzip
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerCallback, trainer

from hfscale.data.tokenizer import train_bpe
from hfscale.manifest import check_manifest
from hfscale.models import load_model
from hfscale.process import InputError
from hfscale.tasks.preference_metrics import preference_metrics
from hfscale.tasks.preferences import load_preferences, made_pairs
from hfscale.tasks.sample_data import load_sample_data

pytest.importorskip("trl", reason="the extra hfscale[trl] is missing")
from recipes import finetune_preference  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    texts = [pair["prompt"] + pair["chosen"] for pair in made_pairs(0)]
    tokenizer = train_bpe(Dataset.from_dict({"text": texts}), 300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=64,
            eos_token_id=0,
            bos_token_id=0,
            pad_token_id=1,
        )
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def load(source, tokenizer, **values):
    values = {"max_length": 64, "validation_fraction": 0.1, "seed": 0} | values
    return load_preferences(str(source), tokenizer, **values)


def test_made_pairs_are_right_and_distinct():
    pairs = made_pairs(3)
    evasions = load_sample_data("finetune_preference", "preferences")["evasions"]
    assert len({pair["prompt"].split("?")[0] for pair in pairs}) == len(pairs) == 400
    assert made_pairs(3) == pairs != made_pairs(4)
    for pair in pairs:
        sum_, result = (
            pair["chosen"].strip(" .").replace("plus", "+").replace("minus", "-").split(" is ")
        )
        assert eval(sum_) == int(result) and pair["rejected"] in evasions
        assert pair["prompt"] == f"What is {pair['chosen'].strip().split(' is ')[0]}?"


def test_pairs_are_split_and_counted(tokenizer):
    pairs, dropped = load("embedded:preferences", tokenizer)
    assert (len(pairs["train"]), len(pairs["validation"]), dropped) == (360, 40, 0)
    assert not set(pairs["train"]["prompt"]) & set(pairs["validation"]["prompt"])
    row = pairs["train"][0]
    assert row["num_bytes"] == len((row["chosen"] + row["rejected"]).encode())
    assert row["num_tokens"] == sum(
        len(tokenizer(row[name])["input_ids"]) + 1 for name in ("chosen", "rejected")
    )


def test_pairs_from_files_without_the_ones_that_are_too_long(tokenizer, tmp_path):
    rows = [
        {"prompt": f"p{i}", "chosen": "x" * (1 if i else 99), "rejected": "yy", "more": i}
        for i in range(10)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:5])) + "\n\n")
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress("\n".join(map(json.dumps, rows[5:])).encode())
    )
    pairs, dropped = load(tmp_path / "*.jsonl*", tokenizer, max_length=32)
    assert dropped == 1
    assert sorted([*pairs["train"]["prompt"], *pairs["validation"]["prompt"]]) == [
        f"p{i}" for i in range(1, 10)
    ]


def test_the_pairs_of_a_prompt_are_on_one_side(tokenizer, tmp_path):
    rows = [{"prompt": f"p{i % 10}", "chosen": f"a{i}", "rejected": "b"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs, _ = load(tmp_path / "pairs.jsonl", tokenizer, validation_fraction=0.2)
    assert (len(pairs["train"]), len(pairs["validation"])) == (32, 8)
    assert not set(pairs["train"]["prompt"]) & set(pairs["validation"]["prompt"])
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows[::10])))
    with pytest.raises(InputError, match="its 4 pairs are all about one prompt"):
        load(tmp_path / "pairs.jsonl", tokenizer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "0"], "--beta: got '0', expected 1e-06 to 1000000"),
        (["--beta", "-0.1"], "--beta: got '-0.1', expected 1e-06 to 1000000"),
        (["--beta", "inf"], "--beta: got 'inf', expected 1e-06 to 1000000"),
        (
            ["--label_smoothing", "0.1"],
            "label_smoothing: belongs to loss_type robust; sigmoid goes without it",
        ),
        (
            ["--loss_type", "robust"],
            "label_smoothing: got 0.0, expected above 0 and below 0.5 with loss_type robust",
        ),
        (
            ["--loss_type", "robust", "--label_smoothing", "0.5"],
            "label_smoothing: got 0.5, expected above 0 and below",
        ),
        (
            ["--label_smoothing_factor", "0.1"],
            "label_smoothing_factor: pairs have no labels to smooth",
        ),
    ],
)
def test_a_loss_that_would_teach_nothing_is_refused(base, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        finetune_preference.main(["--model", base, "--output_dir", str(tmp_path / "run"), *words])
    assert not (tmp_path / "run").exists()


def test_label_smoothing_reaches_the_loss(base, tmp_path):
    """Robust DPO (Chowdhury et al., 2024) before the first step: all rewards are 0, so its loss is
    log 2, too, and its gradient larger by 1 / (1 - 2 * 0.3); a step later the losses differ.
    """
    losses = []
    for name, words in (
        ("plain", []),
        ("robust", ["--loss_type", "robust", "--label_smoothing", "0.3"]),
    ):
        folder = tmp_path / name
        finetune_preference.main(
            [
                "--model",
                base,
                "--output_dir",
                str(folder),
                "--max_steps",
                "2",
                "--disable_tqdm",
                "--bf16",
                "false",
                "--report_to",
                "none",
                "--save_strategy",
                "no",
                "--use_cpu",
                "--learning_rate",
                "1e-3",
                "--logging_steps",
                "1",
                "--warmup_steps",
                "0",
                *words,
            ]
        )
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses.append([log["loss"] for log in history if "loss" in log])
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-5) == losses[1][0]
    assert losses[0][1] != losses[1][1]


GOOD = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "p", "chosen": ', "pairs.jsonl:3: not JSON"),
        (
            '{"prompt": "p", "answer": "a", "rejected": "b"}',
            "pairs.jsonl:3: no column 'chosen'; it has prompt, ans",
        ),
        ('["p", "a", "b"]', r"pairs.jsonl:3: holds .*, not named columns; a row is a JSON object"),
        (
            '{"prompt": "p", "chosen": " ", "rejected": "b"}',
            "pairs.jsonl:3: the chosen is not text|is empty",
        ),
        ('{"prompt": "p", "chosen": "a", "rejected": ""}', "pairs.jsonl:3: the rejected is empty"),
        ('{"prompt": "p", "chosen": 3, "rejected": "b"}', "pairs.jsonl:3: the chosen is not text"),
        (
            '{"prompt": "p", "chosen": "a", "rejected": "a"}',
            "pairs.jsonl:3: chosen and rejected are equal",
        ),
    ],
)
def test_bad_pairs_name_their_line(tokenizer, tmp_path, line, says):
    (tmp_path / "pairs.jsonl").write_text(GOOD + "\n" + line + "\n")
    with pytest.raises(InputError, match=says) as error:
        load(tmp_path / "pairs.jsonl", tokenizer)
    assert "\n" not in str(error.value)


def test_no_pairs(tokenizer, tmp_path):
    with pytest.raises(
        InputError, match="no such file; give .jsonl files of pairs, or embedded:preferences"
    ):
        load(tmp_path / "missing.jsonl", tokenizer)
    (tmp_path / "one.jsonl").write_text(GOOD)
    with pytest.raises(InputError, match="1 pairs fit into 64 tokens; give more"):
        load(tmp_path / "one.jsonl", tokenizer)


def test_rewards_by_hand(base):
    """The definition, pair by pair, with log-softmax over the whole sequence."""
    torch.manual_seed(1)
    policy, reference = load_model(base), load_model(base)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn_like(weight)
    rows = [
        {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 0], "rejected_ids": [10, 0]},
        {"prompt_ids": [11], "chosen_ids": [12, 0], "rejected_ids": [13, 14, 15, 0]},
        {"prompt_ids": [16, 17], "chosen_ids": [18, 0], "rejected_ids": [19, 20, 0]},
    ]

    def reward(row, name):
        ids = torch.tensor([row["prompt_ids"] + row[name]])
        with torch.no_grad():
            logps = [
                model.eval()(ids, use_cache=False)
                .logits.log_softmax(-1)[0, :-1]
                .gather(1, ids[0, 1:, None])
                for model in (policy, reference)
            ]
        return 0.2 * (logps[0] - logps[1])[len(row["prompt_ids"]) - 1 :].sum().item()

    chosen, rejected = (
        [reward(row, name) for row in rows] for name in ("chosen_ids", "rejected_ids")
    )
    found = preference_metrics(policy, reference, Dataset.from_list(rows), beta=0.2, batch_size=2)
    assert found["eval_reward_chosen"] == pytest.approx(sum(chosen) / 3, abs=1e-5)
    assert found["eval_reward_margin"] == pytest.approx((sum(chosen) - sum(rejected)) / 3, abs=1e-5)
    assert (
        found["eval_reward_accuracy"]
        == sum(a > b for a, b in zip(chosen, rejected, strict=True)) / 3
    )
    low, high = found["eval_reward_margin_ci95"]
    assert low <= found["eval_reward_margin"] <= high


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "2e-3"],
        ["--learning_rate", "2e-2", "--lora_r", "4"],
        ["--learning_rate", "2e-2", "--lora_r", "4", "--merge"],
    ],
    ids=" ".join,
)
def test_recipe_learns_and_agrees_with_trl(base, tmp_path, words, capsys):
    folder = tmp_path / "run"
    finetune_preference.main(
        [
            "--model",
            base,
            "--output_dir",
            str(folder),
            "--max_steps",
            "12",
            "--disable_tqdm",
            "--per_device_train_batch_size",
            "8",
            "--per_device_eval_batch_size",
            "8",
            "--bf16",
            "false",
            "--report_to",
            "none",
            "--save_strategy",
            "no",
            "--use_cpu",
            *words,
        ]
    )
    record = json.loads((folder / "run.json").read_text())
    metrics = record["metrics"]
    assert metrics["eval_reward_accuracy"] > 0.9 and metrics["eval_reward_accuracy_ci95"][0] > 0.8
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    upstream = next(
        log for log in reversed(history) if "eval_rewards/margins" in log
    )  # 5 batches of 8: the same mean
    assert metrics["eval_reward_margin"] == pytest.approx(
        upstream["eval_rewards/margins"], abs=1e-4
    )
    assert metrics["eval_reward_chosen"] == pytest.approx(upstream["eval_rewards/chosen"], abs=1e-4)
    assert metrics["eval_reward_accuracy"] == pytest.approx(
        upstream["eval_rewards/accuracies"], abs=1e-6
    )
    assert 0 < metrics["eval_loss"] < math.log(2)
    assert record["data"]["source"] == ["embedded:preferences"] and record["data"]["dropped"] == {
        "too long": 0
    }
    assert (folder / "adapter_config.json").exists() == (
        "--lora_r" in words and "--merge" not in words
    )
    assert load_model(str(folder)).config.vocab_size == 300
    assert f"run.json: {folder}" in capsys.readouterr().out
    assert not [
        p for p in folder.rglob("*") if p.name == "ref"
    ]  # the model that is compared with is not saved


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("gradient", "the gradients became nan at step 3"),
        ("weight", "wte.weight is not finite at step 4"),
    ],
)
@pytest.mark.parametrize("max_grad_norm", ["1", "0"])
def test_numbers_that_are_not_finite_end_it_and_cost_no_checkpoint(
    base, tmp_path, monkeypatch, place, says, max_grad_norm
):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2 and place == "gradient":
                weight = next(model.parameters())
                weight.register_hook(lambda gradient: gradient * float("nan"))

        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3 and place == "weight":
                next(model.parameters()).data[0, 0] = float("inf")

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Spoil])
    words = ["--save_steps", "2", "--save_total_limit", "1", "--max_grad_norm", max_grad_norm]
    settings = ["--max_steps", "6", "--disable_tqdm", "--bf16", "false", "--use_cpu"]
    folder = tmp_path / "run"
    where = ["--model", base, "--output_dir", str(folder), "--report_to", "none"]
    with pytest.raises(FloatingPointError, match=says):
        finetune_preference.main([*where, *settings, *words])
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert check_manifest(folder / "checkpoint-2") is None


def test_a_run_that_was_cut_short_goes_on(base, tmp_path):
    words = [
        "--model",
        base,
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--disable_tqdm",
        "--bf16",
        "false",
        "--use_cpu",
        "--report_to",
        "none",
    ]
    whole, cut = str(tmp_path / "whole"), tmp_path / "cut"
    finetune_preference.main([*words, "--output_dir", whole])
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", cut / "checkpoint-2")
    with pytest.raises(
        InputError, match="belongs to a run with other settings .*beta was 0.1, is 0.5"
    ):
        finetune_preference.main(
            [*words, "--output_dir", str(cut), "--resume", "auto", "--beta", "0.5"]
        )
    finetune_preference.main([*words, "--output_dir", str(cut), "--resume", "auto"])
    losses = [
        json.loads(Path(folder, "run.json").read_text())["metrics"]["eval_loss"]
        for folder in (whole, cut)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("1", "--max_length: got '1', expected at least 2"),
        ("65", "max_length: got 65, expected 2 to the model's context of 64"),
    ],
)
def test_a_length_that_the_model_does_not_read(base, tmp_path, length, message):
    with pytest.raises(InputError, match=message):
        finetune_preference.main(
            ["--model", base, "--output_dir", str(tmp_path / "run"), "--max_length", length]
        )
    assert not (tmp_path / "run").exists()


def test_tokens_are_not_added_here(base, tmp_path):
    with pytest.raises(InputError, match="add_tokens: .* add them with finetune first"):
        finetune_preference.main(
            [
                "--model",
                base,
                "--output_dir",
                str(tmp_path / "run"),
                "--lora_r",
                "2",
                "--add_tokens",
                "x",
            ]
        )
    assert not (tmp_path / "run").exists()


def test_missing_trl_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trl" else True)
    monkeypatch.setattr(finetune_preference, "parse_args", lambda *args, **kwargs: None)
    with pytest.raises(InputError, match=r'pip install "hfscale\[trl\]"'):
        finetune_preference.main([])


def test_real_paths_stay_unread(base, tmp_path):
    """A folder that holds another run is left alone."""
    Path(tmp_path, "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that are no training run"):
        finetune_preference.main(["--model", base, "--output_dir", str(tmp_path)])
    assert Path(tmp_path, "notes.txt").read_text() == "mine"
