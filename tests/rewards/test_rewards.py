"""Learning from rewards: the numbers of one group beside a few lines of one's own, the recipe whole,
and rewards that fail.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfscale.models import load_model
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.tasks.checkable_examples import careless_sums, reversals, sums, without_carry
from hfscale.tasks.held_out import is_held_out_key

pytest.importorskip("trl", reason="the extra hfscale[trl] is missing")
import random  # noqa: E402

from hfscale.data.tokenizer import train_char  # noqa: E402
from hfscale.rewards.functions import RewardSettings, load_rewards  # noqa: E402
from hfscale.rewards.groups import StopConstant  # noqa: E402
from hfscale.rewards.trainer import check_continuation, make_trainer, reward_config  # noqa: E402
from recipes import finetune_reward  # noqa: E402

TASK = ["--task_source", "embedded:sums", "--prompt", "{a}+{b}=", "--target", "{sum}"]
TINY = [
    *TASK,
    *("--max_new_tokens", "4", "--validation_examples", "12", "--metrics", "exact_match"),
    *("--num_generations", "4", "--per_device_train_batch_size", "16", "--max_steps", "4"),
    *("--per_device_eval_batch_size", "12", "--learning_rate", "1e-3", "--logging_steps", "1"),
    *("--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"),
]
# Any model gets some of these answers, and none gets all.
HAS_ONE = (
    "def has_one(prompts, completions, **columns):\n    return ['1' in c for c in completions]\n"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_char(Dataset.from_dict({"text": ["0123456789+="]}))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    new_model(
        tokenizer,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=16,
        max_position_embeddings=16,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def reward_file(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HAS_ONE)
    return "mine.py:has_one"


# ---- made tasks


def test_made_sums_are_right_and_held_apart():
    rows = list(sums(random.Random(0)))
    assert len({(row["a"], row["b"]) for _, row in rows}) == len(rows) == 90 * 90
    assert all(int(row["sum"]) == int(row["a"]) + int(row["b"]) for _, row in rows)
    assert without_carry(58, 67) == "015" and without_carry(58, 31) == "089"
    careless = list(careless_sums(random.Random(0)))
    wrong = [key for key, row in careless if int(row["sum"]) != int(row["a"]) + int(row["b"])]
    assert wrong and not any(map(is_held_out_key, wrong))
    for (key, row), _ in zip(reversals(random.Random(0)), range(50), strict=False):
        assert row["reversed"] == row["word"][::-1]
        assert key == min(row["word"], row["reversed"])  # the same both ways round


# ---- the numbers of a step


def batch_of(trainer):
    """The rows of one step, as the trainer's own loader gives them, answered and rewarded."""
    trainer.model.train()
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def own_log_probabilities(model, inputs):
    """log p of each token of the answers, (rows, tokens), and which of them count."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    size = inputs["completion_ids"].shape[1]
    logits = model(ids, use_cache=False).logits[:, -size - 1 : -1]
    log_p = logits.log_softmax(-1).gather(-1, inputs["completion_ids"][..., None])[..., 0]
    return log_p, inputs["completion_mask"].float()


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_loss_gradient_and_advantages_are_those_of_the_formula(method, base, reward_file, tmp_path):
    """GRPO: (r - mean) / (std + 1e-4) in each group, RLOO: r - mean of the others; at ratio 1 the
    gradient is that of -mean(A x log p), of GRPO a mean over each answer's tokens. The loss itself
    is 0.
    """
    args = finetune_reward.parse_args(
        finetune_reward.FinetuneRewardArguments,
        [*TINY, "--model", base, "--method", method, "--beta", "0", "--reward", reward_file],
        recipe=finetune_reward.__file__,
    )
    args.training["output_dir"] = str(tmp_path / "x")
    rows = Dataset.from_dict({"prompt": [f"{i}+11=" for i in range(10, 30)]})
    from hfscale.data.tokenizer import load_pretrained_tokenizer

    model = load_model(base)
    rewards = load_rewards(args.reward, RewardSettings())
    trainer, trace = make_trainer(
        args,
        reward_config(args),
        model,
        {"train": rows, "validation": rows},
        rewards,
        load_pretrained_tokenizer(base),
    )
    trainer.current_gradient_accumulation_steps = 1  # upstream sets it as it trains
    inputs = batch_of(trainer)
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]

    # By hand.
    texts = trainer.processing_class.batch_decode(
        [
            row[mask.bool()]
            for row, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
        ],
        skip_special_tokens=True,
    )
    by_prompt: dict = {}
    for i, prompt in enumerate(inputs["prompt_ids"].tolist()):
        by_prompt.setdefault(tuple(prompt), []).append(i)
    advantages = torch.zeros(len(texts))
    differing = 0
    for group in by_prompt.values():
        r = np.array([float("1" in texts[i]) for i in group])
        assert len(group) == 4
        differing += r.std() > 0
        if method == "grpo":
            values = (r - r.mean()) / (r.std(ddof=1) + 1e-4)
        else:
            values = r - (r.sum() - r) / (len(r) - 1)
        assert abs(values.sum()) < 1e-6
        advantages[group] = torch.tensor(values, dtype=torch.float32)
    assert differing, "no group would teach anything"
    torch.testing.assert_close(inputs["advantages"], advantages, atol=1e-5, rtol=1e-4)
    assert abs(loss.item()) < 1e-6
    model.zero_grad()
    log_p, counts = own_log_probabilities(model, inputs)
    of_answers = (log_p * counts).sum(1)
    if method == "grpo":
        of_answers = of_answers / counts.sum(1)
    (-(advantages * of_answers).mean()).backward()
    own = [p.grad for p in model.parameters() if p.grad is not None]
    assert max(g.abs().max() for g in own) > 1e-4
    for mine, theirs in zip(own, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)
    assert set(trace._advantages.values()) <= set(inputs["advantages"].tolist())


# ---- the recipe


def test_the_recipe_whole_and_resumed_exactly(base, reward_file, tmp_path):
    words = [*TINY, "--model", base, "--reward", reward_file, "exact_match", "--save_steps", "2"]
    finetune_reward.main([*words, "--output_dir", "whole"])
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    metrics = record["metrics"]
    for name in ("exact_match", "reward", "drawn_reward", "finished", "answer_tokens"):
        assert f"eval_{name}" in metrics and f"before_eval_{name}_ci95" in metrics
    assert metrics["reward_gain"] == pytest.approx(
        metrics["eval_reward"] - metrics["before_eval_reward"]
    )
    assert metrics["eval_kl"] is not None and record["train"]["steps"] == 4
    rewards = json.loads((tmp_path / "whole" / "rewards.json").read_text())
    for group in rewards["groups"]:
        values = np.array([answer["reward"] for answer in group["answers"]])
        expected = (values - values.mean()) / (values.std(ddof=1) + 1e-4)
        got = [answer["advantage"] for answer in group["answers"]]
        assert len(values) == 4 and got == pytest.approx(expected, abs=1e-4)
    page = (tmp_path / "whole" / "report.html").read_text()
    for said in ("Why the loss reads zero", "What clipping did", "Groups of answers"):
        assert said in page
    # Broken off after step 2, it goes on to the same weights.
    finetune_reward.main([*words, "--output_dir", "part"])
    (tmp_path / "part" / "run.json").unlink()
    shutil.rmtree(tmp_path / "part" / "checkpoint-4")
    finetune_reward.main([*words, "--output_dir", "part", "--resume", "auto"])
    again = json.loads((tmp_path / "part" / "run.json").read_text())
    assert again["model"]["fingerprint"] == record["model"]["fingerprint"]
    assert again["train"]["batches_fingerprint"] == record["train"]["batches_fingerprint"]


def test_rloo_two_steps_on_the_same_answers_and_evaluations_between(base, reward_file, tmp_path):
    """Groups are those that were trained on, never the held-out prompts of an evaluation."""
    words = [*TINY, "--model", base, "--reward", reward_file, "--method", "rloo"]
    evaluated = ["--eval_strategy", "steps", "--eval_steps", "1", "--num_iterations", "2"]
    finetune_reward.main([*words, *evaluated, "--output_dir", "run"])
    groups = json.loads((tmp_path / "run" / "rewards.json").read_text())["groups"]
    assert {group["step"] for group in groups} == {1, 3}
    for group in groups:
        rewards = np.array([answer["reward"] for answer in group["answers"]])
        others = (rewards.sum() - rewards) / 3
        got = [answer["advantage"] for answer in group["answers"]]
        # beta takes the divergence from the start off the reward.
        assert got == pytest.approx(rewards - others, abs=0.05)
    assert "were clipped" in (tmp_path / "run" / "report.html").read_text()


LATE = """
import os
calls = []
def late(prompts, completions, **columns):
    calls.append(1)
    if len(calls) > 6 and os.environ["RANK"] == "1":
        raise ValueError("no number for this")
    return [float("1" in text) for text in completions]
"""


@pytest.mark.slow(seconds=6)
def test_what_fails_on_one_rank_is_said(base, tmp_path, run_warm):
    (tmp_path / "late.py").write_text(LATE)
    words = [*TINY, "--model", base, "--reward", "late.py:late", "--output_dir", "run"]
    command = [sys.executable, "-m", "hfscale.cli", "finetune_reward", "--accelerate", "cpu_2proc"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = run_warm([*command, *words], cwd=tmp_path, env=env, timeout=120)
    assert result.returncode == 2 and "training: 4 steps" in result.stdout + result.stderr
    [said] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"reward late.py:late: raised ValueError in .*: no number for this", said)
    assert "Traceback" not in result.stderr and not (tmp_path / "run" / "run.json").exists()


def test_a_dry_run_shows_groups_and_writes_nothing(base, reward_file, tmp_path, capsys):
    words = [*TINY, "--model", base, "--reward", reward_file, "--dry_run"]
    assert finetune_reward.main([*words, "--output_dir", "dry"]) is None
    assert re.search(r"\d of 8 groups teach", capsys.readouterr().out)
    assert not (tmp_path / "dry").exists()


# ---- bad input: one line, and nothing is made


BAD_REWARDS = {
    "raises": ("raise ValueError('so')", r"reward bad.py:f: raised ValueError in .*bad.py:2: so"),
    "nan": ("return [float('nan')] * len(completions)", "returned nan for the answer .* finite"),
    "length": ("return [1.0]", r"returned 1 numbers; expected a list of \d+ numbers"),
    "words": ("return ['good'] * len(completions)", "returned .*; expected a list of"),
    "number": ("return 1.0", r"returned 1.0; expected a list of \d+ numbers"),
}


@pytest.mark.parametrize("kind", BAD_REWARDS)
def test_a_reward_that_fails_does_so_before_the_run(kind, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, message = BAD_REWARDS[kind]
    Path("bad.py").write_text(f"def f(prompts, completions, **columns):\n    {code}\n")
    with pytest.raises(InputError, match=message) as error:
        finetune_reward.main(
            [*TINY, "--model", base, "--reward", "bad.py:f", "--output_dir", "run"]
        )
    assert "\n" not in str(error.value) and not Path("run/run.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_generations", "1"], "--num_generations: got '1', expected"),
        (["--per_device_train_batch_size", "6"], "6 answers per process and step are no whole"),
        (["--reward", "exact_mach"], "got 'exact_mach', .*did you mean exact_match"),
        (["--reward", "pattern"], "pattern needs --answer_pattern"),
        (["--answer_pattern", "("], "answer_pattern: not a regular expression"),
        (["--reward", "tests"], "allow_code_execution: the reward tests runs code"),
        (["--reward_weights", "1", "2"], "2 numbers for 1 rewards"),
        (["--method", "rloo", "--loss_type", "grpo"], "belong to method grpo"),
        (["--stop_strings", "x"], "stop_strings: an answer ends with EOS here"),
        (["--add_tokens", "x"], "add_tokens: the model at the start would not know"),
    ],
)
def test_settings_that_cannot_be_are_refused(words, message, base, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        finetune_reward.main(
            [*TINY, "--model", base, "--output_dir", str(tmp_path / "run"), *words]
        )
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "run.json").exists()


def test_held_out_prompts_that_are_trained_on_are_refused(base, tmp_path):
    for name in ("train", "held"):
        rows = [{"a": 10 + i, "b": 5, "sum": 15 + i} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"12 of 12 held-out prompts are also trained on") as error:
        finetune_reward.main(
            [
                *(*TINY[2:], "--model", base, "--output_dir", str(tmp_path / "run")),
                *("--task_source", str(tmp_path / "train.jsonl")),
                *("--task_validation_source", str(tmp_path / "held.jsonl")),
            ]
        )
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_model_whose_tokenizer_has_no_eos_is_refused(base, tmp_path):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path / "no-eos"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=f"{base}/tokenizer.json").save_pretrained(folder)
    with pytest.raises(InputError, match="EOS None; it needs both"):
        finetune_reward.main([*TINY, "--model", str(folder), "--output_dir", str(tmp_path / "r")])


def test_a_reward_that_never_differs_stops_the_training():
    """At once it would be early; after one group that taught something it goes on."""

    class State:
        global_step = 20

    stop = StopConstant()
    State.global_step = 10
    stop.on_log(None, State, None, {"frac_reward_zero_std": 1.0})
    State.global_step = 20
    with pytest.raises(InputError, match="in 20 steps all answers to each prompt had the same"):
        stop.on_log(None, State, None, {"frac_reward_zero_std": 1.0, "reward": 0.0})
    stop.on_log(None, State, None, {"frac_reward_zero_std": 0.5})
    stop.on_log(None, State, None, {"frac_reward_zero_std": 1.0})


def test_a_checkpoint_between_steps_on_the_same_answers_is_refused():
    check_continuation("run/checkpoint-4", 2)
    check_continuation(None, 2)
    with pytest.raises(InputError, match="lies between the 2 steps"):
        check_continuation("run/checkpoint-3", 2)


def test_rewards_that_come_along(monkeypatch):
    exact, pattern = load_rewards(
        ["exact_match", "pattern"], RewardSettings(re.compile(r"so (\d+)"))
    )
    answers = ["so 12", "12", "so 13"]
    judged = exact(prompts=["p"] * 3, completions=answers, references=[["12"]] * 3)
    assert judged == [1, 0, 0]
    assert pattern(prompts=["p"] * 3, completions=answers) == [1, 0, 1]
    [tests] = load_rewards(["tests"], RewardSettings(allow_code_execution=True))
    got = tests(
        prompts=["p"] * 3,
        completions=["return 2", "return 3", "return 2"],
        program=[["def f():\n    ", "\n"]] * 3,
        program_tests=["assert f() == 2"] * 3,
    )
    assert got == [1, 0, 1]
