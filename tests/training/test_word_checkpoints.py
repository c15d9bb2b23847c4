"""Models after so many words: which step that is, what is in the folder, and a run that goes on."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from hfscale.arguments import AveragingArguments
from hfscale.data.layouts import IGNORED
from hfscale.manifest import check_manifest, read_manifest
from hfscale.process import InputError
from hfscale.training import room
from hfscale.training.averaging import average_weights, settle_averaging
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.preview import count_steps
from hfscale.training.room import saved_bytes
from hfscale.training.running import run_training
from hfscale.training.word_checkpoints import (
    check_save_words,
    count_words,
    folder_name,
    read_counts,
    save_at_words,
    word_marks,
    words_seen,
)
from recipes import pretrain
from tests.tiny_runs import DOCUMENTS, finished_run, tiny_arguments, tiny_rows, tiny_trainer

WORDS = count_words(DOCUMENTS)


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }


KILLED = ["60", "130", "190", "230"]  # of a run that is killed after step 5


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Killed


def marked_trainer(folder, words, callbacks=(), **values):
    trainer = tiny_trainer(folder, callbacks, **values)
    marks = word_marks(words, WORDS, trainer.train_dataset, trainer.args)
    save_at_words(trainer, marks)
    return trainer, marks


def folders(place):
    return sorted(path.name for path in place.glob("chck_*"))


# ---- which step


def test_words_are_those_between_white_space():
    assert sum(len(text.split()) for text in DOCUMENTS["text"]) == WORDS
    assert read_counts(["1M,2M", "500k", "10"]) == [10, 500_000, 1_000_000, 2_000_000]
    names = [folder_name(words) for words in (1_000_000, 100_000_000, 1_500_000, 1_234)]
    assert names == ["chck_1M", "chck_100M", "chck_1500K", "chck_1234"]


def test_a_mark_is_the_first_step_after_which_so_many_were_seen(tmp_path):
    """Through three epochs, whose last steps have fewer rows."""
    args = tiny_arguments(tmp_path, max_steps=-1, num_train_epochs=3)
    rows = tiny_rows()
    last = count_steps(len(rows), args)
    assert len(rows) % 4 and words_seen(last, WORDS, len(rows), args) == 3 * WORDS
    seen = [words_seen(step, WORDS, len(rows), args) for step in range(last + 1)]
    assert seen == sorted(seen)
    for words in range(1, 3 * WORDS + 1, 7):
        [mark] = word_marks([str(words)], WORDS, rows, args)
        assert seen[mark.step - 1] < words <= seen[mark.step], words


def test_they_are_the_words_of_the_rows(tmp_path):
    """What the rows of the first half of an epoch say, decoded, has as many words as is said."""
    args = tiny_arguments(tmp_path, per_device_train_batch_size=1)
    trainer = tiny_trainer(tmp_path)
    rows = trainer.train_dataset.shuffle(seed=1)
    half = len(rows) // 2
    decode = trainer.processing_class.decode
    said = 0
    for row in rows.select(range(half)):
        labels = [label for label in row["labels"][1:] if label != IGNORED]
        text = decode(labels, skip_special_tokens=True)
        said += text.count(" ") + len([label for label in labels if label == 0])
    assert words_seen(half, WORDS, len(rows), args) == pytest.approx(said, rel=0.03)


def test_what_is_never_reached_is_refused(tmp_path):
    args = tiny_arguments(tmp_path, max_steps=6)
    seen = words_seen(6, WORDS, len(tiny_rows()), args)
    assert word_marks([str(seen)], WORDS, tiny_rows(), args)[0].step == 6
    nearly = word_marks([str(int(seen / 0.995))], WORDS, tiny_rows(), args)
    assert [(mark.step, mark.words) for mark in nearly] == [(6, seen)]
    says = rf"save_words: {2 * seen}, 1M: the run sees {seen} words in 6 steps .*raise num_train"
    with pytest.raises(InputError, match=says) as error:
        word_marks([str(2 * seen), "5", "1M"], WORDS, tiny_rows(), args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "streaming", "says"),
    [
        (["1X"], False, "save_words: got '1X', expected numbers of words such as 500K or 10M"),
        (["1M,,2M"], False, "save_words: got '', expected numbers"),
        (["0"], False, "save_words: got '0', expected numbers"),
        (["1M"], True, "save_words: a stream does not say how many words it holds"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(words, streaming, says):
    with pytest.raises(InputError, match=says):
        check_save_words(words, streaming=streaming)


# ---- what is saved


def test_a_folder_is_the_model_of_its_step(tmp_path):
    weights = Weights()
    trainer, marks = marked_trainer(tmp_path / "run", ["30", "100"], [weights])
    run_training(trainer, None)
    assert folders(tmp_path / "run") == ["chck_100", "chck_30"]
    for mark in marks:
        folder = tmp_path / "run" / mark.name
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "generation_config.json",
            "manifest.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert check_manifest(folder) is None
        assert (read_manifest(folder)["words"], read_manifest(folder)["step"]) == mark[1:]
        model = AutoModelForCausalLM.from_pretrained(folder)
        named = dict(model.named_parameters())
        for name, weight in weights.after[mark.step].items():
            assert torch.equal(named[name], weight), name
        assert len(AutoTokenizer.from_pretrained(folder)) == len(trainer.processing_class)
    plain = finished_run(tmp_path / "plain")
    assert plain.state.log_history[0]["loss"] == trainer.state.log_history[0]["loss"]
    assert saved_bytes(trainer) == saved_bytes(plain)


def test_a_run_that_was_killed_has_each_folder_once(tmp_path):
    whole, marks = marked_trainer(tmp_path / "whole", KILLED)
    run_training(whole, None)
    assert [mark.step for mark in marks] == [2, 4, 5, 6]
    trainer, _ = marked_trainer(tmp_path / "run", KILLED, [Kill()])
    with pytest.raises(Killed):
        run_training(trainer, None)
    run = tmp_path / "run"
    assert folders(run) == ["chck_130", "chck_190", "chck_60"]
    first = (run / "chck_60" / "model.safetensors").stat().st_mtime_ns
    trainer, _ = marked_trainer(run, KILLED)
    run_training(trainer, newest_checkpoint(trainer.args))
    assert folders(run) == folders(tmp_path / "whole") and not (run / ".saving").exists()
    assert (run / "chck_60" / "model.safetensors").stat().st_mtime_ns == first
    for mark in marks:
        here, there = (
            load_file(folder / mark.name / "model.safetensors")
            for folder in (run, tmp_path / "whole")
        )
        assert all(torch.equal(here[name], there[name]) for name in there), mark.name


def test_a_folder_that_was_passed_by_is_not_made_up(tmp_path):
    finished_run(tmp_path / "run")
    trainer, _ = marked_trainer(tmp_path / "run", ["30"])
    with pytest.raises(InputError, match="chck_30, of step 1, is not there; leave it out"):
        run_training(trainer, newest_checkpoint(trainer.args))


def test_of_averaged_weights_it_is_the_average(tmp_path):
    args = AveragingArguments(weight_averaging="ema", ema_decay=0.5, averaging_start_step=2)
    trainer = tiny_trainer(tmp_path / "run")
    settle_averaging(args, trainer.args, trainer.train_dataset)
    average_weights(trainer, args)
    save_at_words(trainer, word_marks(["130"], WORDS, trainer.train_dataset, trainer.args))
    run_training(trainer, None)
    saved = load_file(tmp_path / "run" / "chck_130" / "model.safetensors")
    average = load_file(tmp_path / "run" / "checkpoint-4" / "averaged_weights.safetensors")
    assert all(torch.equal(saved[name], average[name]) for name in saved)


def test_room_is_looked_for_before_the_first_step(tmp_path, monkeypatch):
    trainer, _ = marked_trainer(tmp_path / "run", ["30", "130"], save_strategy="no")
    _, model = saved_bytes(trainer)
    free = 3 * model
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    room.check_room(trainer)
    free -= 1
    with pytest.raises(InputError, match="for the final model and 2 after so many words; free"):
        room.check_room(trainer)
    (tmp_path / "run" / "chck_30").mkdir()  # a run that goes on has that one
    room.check_room(trainer)


# ---- the recipe


def words_for(place, *more: str) -> list[str]:
    (place / "text.train").write_text("\n".join(DOCUMENTS["text"]))
    sizes = "--num_hidden_layers 1 --num_attention_heads 2 --hidden_size 32"
    return (
        f"--source {place}/*.train --sample_by line --tokenizer train:300 {sizes} "
        "--max_position_embeddings 16 --per_device_train_batch_size 4 --max_steps 6 "
        f"--learning_rate 1e-3 --report_to none --disable_tqdm true --use_cpu true "
        f"--save_strategy no --eval_strategy no --output_dir {place}/run"
    ).split() + list(more)


def test_the_recipe_says_what_it_will_save_and_its_record_too(tmp_path, capsys):
    words = words_for(tmp_path, "--save_words", "20,50")
    pretrain.main([*words, "--dry_run"])
    shown = capsys.readouterr().out
    assert "chck_20 after step 1, chck_50 after step 2" in " ".join(shown.split())
    assert not (tmp_path / "run").exists()
    run = pretrain.main(words)
    assert folders(tmp_path / "run") == ["chck_20", "chck_50"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    held_out = WORDS - record["data"]["words"]["train"]
    assert 0 < held_out < WORDS / 10 and run is not None
    pretrain.main([*words, "--overwrite"])  # it deletes what a run wrote, and only that
    (tmp_path / "run" / "chck_20" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no run wrote chck_20/notes.txt"):
        pretrain.main([*words, "--overwrite"])


@pytest.mark.slow
def test_two_processes_save_the_same_folders(tmp_path, run_warm):
    saved = []
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        place = tmp_path / str(processes)
        place.mkdir()
        rows = ["--per_device_train_batch_size", str(4 // processes)]
        words = words_for(place, "--save_words", "20,50", "--bf16", "false", *rows)
        launch = ["--accelerate", "cpu_2proc", "--num_processes", "2"] if processes == 2 else []
        command = [sys.executable, "-m", "hfscale.cli", "pretrain", *launch, *words]
        result = run_warm(command, cwd=tmp_path, env=env, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        assert folders(place / "run") == ["chck_20", "chck_50"]
        saved.append(load_file(place / "run" / "chck_50" / "model.safetensors"))
    for name, weight in saved[0].items():
        assert torch.allclose(weight, saved[1][name], atol=1e-5), name
