"""Averages of the weights: what they are, who sees them, and that the training does not."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hfscale.arguments import AveragingArguments
from hfscale.process import InputError
from hfscale.training.averaging import (
    average_weights,
    averaging_of,
    averaging_start,
    check_averaging,
    settle_averaging,
)
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.preview import memory_at_hand
from hfscale.training.room import saved_bytes
from hfscale.training.running import run_training
from hfscale.verification import verify_part
from tests.tiny_runs import finished_run, losses, tiny_arguments, tiny_rows, tiny_trainer

FILE = "averaged_weights.safetensors"
EMA = AveragingArguments(weight_averaging="ema", ema_decay=0.5, averaging_start_step=2)
TAIL = AveragingArguments(weight_averaging="tail", averaging_start_step=3)
BOTH = pytest.mark.parametrize("args", [EMA, TAIL], ids=["ema", "tail"])
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


class Weights(TrainerCallback):
    """The weights after each step, in float64."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = {
            name: parameter.detach().double() for name, parameter in model.named_parameters()
        }


def averaging_trainer(folder, args, checkpoint=None, callbacks=(), **values):
    trainer = tiny_trainer(folder, callbacks, **EVALUATED | values)
    args = replace(args)
    check_averaging(args, trainer.args)
    settle_averaging(args, trainer.args, trainer.train_dataset)
    average_weights(trainer, args, checkpoint)
    return trainer


def averaged_run(folder, args, callbacks=(), **values):
    trainer = averaging_trainer(folder, args, callbacks=callbacks, **values)
    run_training(trainer, None)
    return trainer


def same_weights(model, weights):
    named = dict(model.named_parameters())
    return all(torch.equal(named[name], weight) for name, weight in weights.items())


def by_hand(args, after, last_step):
    """The average of the weights after the steps from the start on."""
    steps = range(int(args.averaging_start_step), last_step + 1)
    names = after[last_step]
    if args.weight_averaging == "tail":
        return {name: sum(after[step][name] for step in steps) / len(steps) for name in names}
    average = dict(after[steps[0]])
    for step in steps[1:]:
        for name in names:
            kept = args.ema_decay * average[name]
            average[name] = kept + (1 - args.ema_decay) * after[step][name]
    return average


# ---- what is averaged


@BOTH
def test_the_average_is_the_one_by_hand(tmp_path, args):
    weights = Weights()
    trainer = averaged_run(tmp_path / "run", args, [weights])
    for step in (4, 6):
        saved = load_file(tmp_path / "run" / f"checkpoint-{step}" / FILE)
        expected = by_hand(args, weights.after, step)
        assert saved.keys() == expected.keys()
        for name, average in saved.items():
            assert torch.allclose(average.double(), expected[name], rtol=1e-5, atol=1e-7), name
    assert (tmp_path / "run" / "checkpoint-2" / FILE).exists() == (args is EMA)
    # The model that is saved has it, to the bit.
    assert same_weights(trainer.model, saved)
    trainer.save_model()
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(final[name], saved[name]) for name in final)


@BOTH
def test_the_training_is_that_without_it(tmp_path, args):
    trainer = averaged_run(tmp_path / "run", args)
    plain = finished_run(tmp_path / "plain", **EVALUATED)
    assert losses(trainer) == losses(plain)
    for step in (2, 4, 6):
        folders = [tmp_path / name / f"checkpoint-{step}" for name in ("run", "plain")]
        here, there = (load_file(folder / "model.safetensors") for folder in folders)
        assert all(torch.equal(here[name], there[name]) for name in there)


@BOTH
def test_evaluations_are_of_the_average(tmp_path, args):
    trainer = averaged_run(tmp_path / "run", args)
    logged = {
        log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log
    }
    assert trainer.evaluate()["eval_loss"] == logged[6]
    plain = tiny_trainer(tmp_path / "other")
    folder = tmp_path / "run" / "checkpoint-4"
    plain.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    of_weights = plain.evaluate()["eval_loss"]
    plain.model.load_state_dict(load_file(folder / FILE), strict=False)
    assert plain.evaluate()["eval_loss"] == logged[4] != of_weights


def test_several_sets_are_evaluated_alike(tmp_path):
    trainer = averaging_trainer(tmp_path / "run", EMA)
    trainer.eval_dataset = {"validation": trainer.eval_dataset, "again": trainer.eval_dataset}
    run_training(trainer, None)
    logs = trainer.state.log_history
    for step in (2, 4, 6):
        [first] = [log["eval_loss"] for log in logs if log["step"] == step and "eval_loss" in log]
        [again] = [
            log["eval_again_loss"]
            for log in logs
            if log["step"] == step and "eval_again_loss" in log
        ]
        assert first == again
    assert same_weights(trainer.model, load_file(tmp_path / "run" / "checkpoint-6" / FILE))


def test_the_best_is_the_average_of_its_step(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    # From the second evaluation on the loss counts as worse.
    trainer = averaged_run(tmp_path / "run", EMA, **best, greater_is_better=True)
    assert trainer.state.best_global_step == 2
    best_folder = tmp_path / "run" / "checkpoint-2"
    assert same_weights(trainer.model, load_file(best_folder / FILE))
    averaging = averaging_of(trainer)
    assert str(averaging) == "the moving average (decay 0.5) of the weights after steps 2 to 2"
    trainer = averaged_run(tmp_path / "later", TAIL, **best, greater_is_better=True)
    assert trainer.state.best_global_step == 2  # before the first step that counts
    saved = load_file(tmp_path / "later" / "checkpoint-2" / "model.safetensors")
    assert same_weights(trainer.model, saved)
    assert str(averaging_of(trainer)) == "the weights as they are, from before step 3"


# ---- checkpoints


@BOTH
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_continued_run_equals_one_without_a_pause(tmp_path, args, step):
    whole = averaged_run(tmp_path / "whole", args)
    name = f"checkpoint-{step}"
    shutil.copytree(tmp_path / "whole" / name, tmp_path / "run" / name)
    checkpoint = newest_checkpoint(tiny_arguments(tmp_path / "run", **EVALUATED))
    assert checkpoint.endswith(name)
    again = averaging_trainer(tmp_path / "run", args, checkpoint)
    run_training(again, checkpoint)
    assert same_weights(again.model, dict(whole.model.named_parameters()))
    assert again.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]
    for file in ("model.safetensors", FILE):
        last = [load_file(tmp_path / run / "checkpoint-6" / file) for run in ("run", "whole")]
        assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])


class TermInEvaluation(TrainerCallback):
    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_evaluation_that_is_broken_off_gives_the_weights_back(tmp_path):
    whole = averaged_run(tmp_path / "whole", EMA, save_steps=6)
    trainer = averaging_trainer(tmp_path / "run", EMA, callbacks=[TermInEvaluation()], save_steps=6)
    with pytest.raises(SystemExit):
        run_training(trainer, None)
    checkpoint = newest_checkpoint(tiny_arguments(tmp_path / "run", **EVALUATED, save_steps=6))
    assert checkpoint.endswith("checkpoint-4")
    again = averaging_trainer(tmp_path / "run", EMA, checkpoint, save_steps=6)
    run_training(again, checkpoint)
    assert same_weights(again.model, dict(whole.model.named_parameters()))
    last = [load_file(tmp_path / run / "checkpoint-6" / FILE) for run in ("run", "whole")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])
    logged = [
        {log["step"]: log["eval_loss"] for log in run.state.log_history if "eval_loss" in log}
        for run in (again, whole)
    ]
    assert logged[0] == logged[1] and set(logged[0]) == {2, 4, 6}


def test_damage_is_seen(tmp_path, capsys):
    averaged_run(tmp_path / "run", EMA)
    file = tmp_path / "run" / "checkpoint-6" / FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert not verify_part(file.parent)
    assert f"{FILE} was changed after it was written" in capsys.readouterr().out
    args = tiny_arguments(tmp_path / "run", **EVALUATED)
    assert newest_checkpoint(args).endswith("checkpoint-4")


def test_a_checkpoint_without_the_average_is_refused(tmp_path):
    finished_run(tmp_path / "run", max_steps=4)
    checkpoint = str(tmp_path / "run" / "checkpoint-4")
    trainer = averaging_trainer(tmp_path / "run", EMA, checkpoint)
    with pytest.raises(InputError, match="checkpoint-4 holds no average of the weights"):
        run_training(trainer, checkpoint)


@pytest.mark.slow
def test_processes_have_one_average(tmp_path, run_warm):
    """Of two that train together, also where they go on."""
    (tmp_path / "text.txt").write_text("\n".join(f"line {i} is {i * 3}" for i in range(200)))

    def start(name):
        words = f"""
            pretrain --accelerate cpu_2proc --num_processes 2 --use_cpu --source text.txt
            --tokenizer train:300 --num_hidden_layers 1 --num_attention_heads 2 --hidden_size 16 --max_position_embeddings 16
            --per_device_train_batch_size 2 --max_steps 4 --save_steps 1 --learning_rate 1e-2
            --weight_averaging tail --averaging_start_step 3 --report_to none --bf16 false
            --resume auto --output_dir {name}
        """.split()
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "hfscale.cli", *words]
        result = run_warm(command, cwd=tmp_path, env=env, timeout=300)
        assert result.returncode == 0, result.stderr[-2000:]

    start("whole")
    whole = tmp_path / "whole"
    steps = [load_file(whole / f"checkpoint-{step}" / "model.safetensors") for step in (3, 4)]
    average = load_file(whole / "model.safetensors")
    for name in average:
        assert torch.allclose(average[name], (steps[0][name] + steps[1][name]) / 2, atol=1e-7)
        assert not torch.equal(average[name], steps[1][name])
    record = json.loads((whole / "run.json").read_text())
    assert record["train"]["weight_average"] == "the mean of the weights after steps 3 to 4"
    assert record["config"]["averaging_start_step"] == 3
    shutil.copytree(whole / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    start("again")
    for file in ("model.safetensors", f"checkpoint-4/{FILE}", "checkpoint-4/model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (whole / file).read_bytes(), file


# ---- adapters


def test_an_adapter_is_averaged_alone(tmp_path):
    from peft import LoraConfig, get_peft_model

    trainer = tiny_trainer(tmp_path / "base", save_strategy="no")
    model = get_peft_model(trainer.model, LoraConfig(r=2, target_modules=["c_attn"]))
    trainer = type(trainer)(
        model=model,
        args=tiny_arguments(tmp_path / "run"),
        train_dataset=tiny_rows(),
        eval_dataset=tiny_rows().select(range(8)),
        data_collator=trainer.data_collator,
        processing_class=trainer.processing_class,
    )
    average_weights(trainer, TAIL)
    run_training(trainer, None)
    averages = load_file(tmp_path / "run" / "checkpoint-6" / FILE)
    assert len(averages) == 2 and all("lora_" in name for name in averages)
    trainer.save_model()
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    for name, average in averages.items():
        assert torch.equal(saved[name.replace(".default", "")], average)


# ---- what it costs


def test_a_plan_and_the_room_on_the_disk_count_the_copy(tmp_path):
    trainer = averaging_trainer(tmp_path / "run", EMA)
    plain = tiny_trainer(tmp_path / "plain", **EVALUATED)
    rows = trainer.train_dataset
    before = saved_bytes(plain)
    run_training(trainer, None)
    kept = sum(average.numel() * 4 for average in averaging_of(trainer).averages.values())
    planned = memory_at_hand(trainer.model, trainer.args, rows, EMA)
    without = memory_at_hand(trainer.model, trainer.args, rows, AveragingArguments())
    assert planned["optimizer"] - without["optimizer"] == kept
    assert {**planned, "optimizer": 0} == {**without, "optimizer": 0}
    assert saved_bytes(trainer) == (before[0] + kept, before[1])


# ---- what cannot be averaged


@pytest.mark.parametrize(
    ("given", "upstreams", "says"),
    [
        ({"ema_decay": 0.9}, {}, "ema_decay: works with --weight_averaging ema"),
        (
            {"weight_averaging": "tail", "ema_decay": 0.9},
            {},
            "ema_decay: works with --weight_averaging ema",
        ),
        ({"averaging_start_step": 3}, {}, "averaging_start_step: works with --weight_averaging"),
        (
            {"weight_averaging": "ema", "averaging_start_step": 6},
            {},
            "weight_averaging ema: nothing to average, it would start at step 6 of 6; lower",
        ),
        ({"weight_averaging": "tail"}, {"max_steps": 1}, "it would start at step 1 of 1"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(tmp_path, given, upstreams, says):
    with pytest.raises(InputError, match=says) as error:
        check_averaging(AveragingArguments(**given), tiny_arguments(tmp_path, **upstreams))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_engines_that_share_the_weights_out_are_refused(tmp_path, monkeypatch, engine):
    args = tiny_arguments(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match="weight_averaging ema: needs whole weights in each"):
        check_averaging(EMA, args)


def test_steps_of_epochs_are_counted_once_the_rows_are_there(tmp_path):
    upstreams = tiny_arguments(tmp_path, max_steps=-1, num_train_epochs=1)
    given = AveragingArguments(weight_averaging="tail", averaging_start_step=1000)
    check_averaging(given, upstreams)
    with pytest.raises(InputError, match="nothing to average, it would start at step 1000 of"):
        settle_averaging(given, upstreams, tiny_rows())


def test_the_start_is_a_step_or_a_share():
    starts = [
        averaging_start(replace(TAIL, averaging_start_step=start), 100)
        for start in (None, 0, 0.5, 0.981, 1, 40)
    ]
    assert starts == [75, 1, 50, 99, 1, 40]
