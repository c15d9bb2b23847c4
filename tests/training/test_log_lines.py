"""What a training shows while it runs."""

import os
import subprocess
import sys

import pytest
from transformers import TrainerState

from hfscale.training.log_lines import clock, log_line, shown, start_line
from hfscale.training.running import run_training
from hfscale.training.training_args import training_arguments
from tests.tiny_runs import tiny_trainer

STATE = TrainerState(global_step=50, max_steps=300)


@pytest.mark.parametrize(
    ("logs", "speed", "line"),
    [
        (
            {"loss": 7.0012, "grad_norm": 1.2, "learning_rate": 9.87e-4, "epoch": 0.3},
            (6.25, 6100.0),
            "step 50/300 | loss 7.001 | lr 0.00099 | 6.1k tok/s | 0:40 left",
        ),
        (
            {"loss": 0.5, "router_loss": 1.25, "learning_rate": 0.01, "perplexity": 1.6},
            (0.0, 0.0),
            "step 50/300 | loss 0.5 | router_loss 1.25 | lr 0.01",
        ),
        (
            {
                "eval_loss": 5.0234,
                "eval_perplexity": 151.93,
                "eval_tokens": 61745,
                "eval_runtime": 2.94,
                "eval_samples_per_second": 165.5,
                "epoch": 0.6,
            },
            (1.0, 1.0),
            "step 50/300 | eval_loss 5.023 | eval_perplexity 151.9 | 2.9 s",
        ),
        (
            {"train_runtime": 3700.0, "train_loss": 5.479, "train_steps_per_second": 5.9},
            (1.0, 1.0),
            "trained to step 50/300 | 1 h 01 min | mean loss 5.479",
        ),
    ],
)
def test_a_log_is_a_line(logs, speed, line):
    assert log_line(logs, STATE, speed) == line


def test_numbers_are_short_and_keep_what_tells_them_apart():
    assert [shown(value) for value in (4258.82, 21_834.3, 0.28046, float("inf"))] == [
        "4259",
        "21,834",
        "0.2805",
        "inf",
    ]
    assert [clock(seconds) for seconds in (0.04, 9.94, 59.6, 61, 3599, 3661, 90_000)] == [
        "0.0 s",
        "9.9 s",
        "1:00",
        "1:01",
        "59:59",
        "1 h 01 min",
        "25 h 00 min",
    ]


def test_the_first_line_says_on_what_and_where(tmp_path):
    args = training_arguments(
        {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "use_cpu": True,
            "bf16": False,
        },
        width=32,
    )
    line = start_line(args, TrainerState(global_step=0, max_steps=10))
    assert line == f"training: 10 steps of 8 rows, cpu, float32; into {tmp_path / 'run'}"
    line = start_line(args, TrainerState(global_step=4, max_steps=10))
    assert line.startswith("training: steps 5 to 10, of 8 rows each, cpu, float32;")


def our_lines(shown_text):
    """Without what a library says before, whose first load may be here."""
    lines = shown_text.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("training:")) :]


def test_a_run_shows_lines_and_no_dictionaries(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path, max_steps=12, logging_steps=4)
    run_training(trainer, None)
    seen = capsys.readouterr()
    first, *lines = our_lines(seen.out)
    assert first.startswith("training: 12 steps of ")
    steps = [line.partition(" | ")[0] for line in lines]
    assert steps == ["step 4/12", "step 8/12", "step 12/12", "trained to step 12/12"]
    assert "{" not in seen.out + seen.err and "it/s" not in seen.err
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert [line.split(" | ")[1] for line in lines[:3]] == [f"loss {shown(v)}" for v in logged]
    assert "left" in lines[0] and "left" not in lines[2]


def test_where_no_log_has_come_an_estimate_does(tmp_path, capsys):
    run_training(tiny_trainer(tmp_path, max_steps=12, logging_steps=12), None)
    estimate = our_lines(capsys.readouterr().out)[1]
    assert estimate.startswith("step 5/12 | ") and estimate.endswith(" left")


BARS = """
import sys, time
from hfscale.process import quiet_libraries
quiet_libraries()
from tqdm.auto import tqdm
for _ in tqdm(range(3), desc="short"):
    pass
"""


def test_in_a_file_a_bar_of_what_is_done_at_once_is_not_drawn():
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    done = subprocess.run([sys.executable, "-c", BARS], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # What the user says stays.
    env["TQDM_DELAY"] = "0"
    done = subprocess.run([sys.executable, "-c", BARS], capture_output=True, text=True, env=env)
    assert "short: 100%" in done.stderr
