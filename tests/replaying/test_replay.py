"""A run done again is the same to the last bit; what was changed is named as the first difference,
before a training is paid for where it can be.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import hfscale
from hfscale.process import InputError, run, versions
from hfscale.replaying.comparison import (
    TOLERANCE,
    compare_training,
    compare_values,
    first_difference,
    rules_for,
    weights_distance,
)
from hfscale.replaying.original import read_original, replay_options
from recipes import replay

TINY = {
    "tokenizer": "train:300",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 32,
    "model_config": {"resid_pdrop": 0.1},
    "max_steps": 6,
    "logging_steps": 2,
    "eval_on_start": True,
    "save_strategy": "no",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "disable_tqdm": True,
    "report_to": "none",
    "use_cpu": True,
}
HARDWARE = {"device": "cpu", "device_name": "x86_64", "cpu_threads": 1, "world_size": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run, the texts that it read, and the same run done again."""
    folder = tmp_path_factory.mktemp("replay")
    for name in ("train", "held_out"):
        (folder / name).mkdir()
        for i in range(8):
            lines = [f"Line {j} of {name} {i} counts to {i * j}.\n" for j in range(12)]
            (folder / name / f"{i}.txt").write_text("".join(lines))
    hfscale.pretrain(
        source=[folder / "train"],
        validation_source=[folder / "held_out"],
        output_dir=folder / "run",
        **TINY,
    )
    assert hfscale.replay(folder / "run") is True
    return folder


@pytest.fixture
def planted(place, tmp_path):
    """planted(change): a copy of the run whose run.json and logs were changed by a function."""

    def plant(change) -> Path:
        folder = Path(shutil.copytree(place / "run", tmp_path / "run"))
        (folder / "manifest.json").unlink()
        record = json.loads((folder / "run.json").read_text())
        state = json.loads((folder / "trainer_state.json").read_text())
        change(record, state["log_history"])
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "trainer_state.json").write_text(json.dumps(state))
        return folder

    return plant


def outcome(folder: Path) -> dict:
    return json.loads((folder.with_name(f"{folder.name}-replay") / "replay.json").read_text())


def results(folder: Path) -> dict[str, str]:
    return {entry["stage"]: entry["result"] for entry in outcome(folder)["compared"]}


def trained(folder: Path) -> bool:
    return (folder.with_name(f"{folder.name}-replay") / "run.json").exists()


# ---- the same again


def test_a_run_is_repeated_to_the_last_bit(place):
    found = outcome(place / "run")
    assert found["is_equal"] is True and found["first_difference"] is None
    assert results(place / "run") == dict.fromkeys(
        (
            "versions",
            "text",
            "tokenizer",
            "initial weights",
            "batches",
            "losses",
            "final weights",
            "metrics",
        ),
        "equal",
    )
    assert {entry["stage"]: entry["values"] for entry in found["compared"]}["losses"] == 3
    assert not any(entry["not_recorded"] for entry in found["compared"])
    weights, again = (
        load_file(place / name / "model.safetensors") for name in ("run", "run-replay")
    )
    assert all(weights[name].equal(again[name]) for name in weights)
    assert hfscale.verify(place / "run-replay") is True


def test_a_replay_can_be_replaced_and_a_run_cannot(place, capsys):
    with pytest.raises(InputError, match="run-replay: holds a run; --overwrite deletes it, or n"):
        replay.main([str(place / "run")])
    for words in (["--overwrite"], []):
        with pytest.raises(InputError, match="is the run that is replayed, which stays as it is"):
            replay.main([str(place / "run"), "--output_dir", str(place / "run"), *words])


# ---- what was changed is the first difference


def test_another_version(planted):
    folder = planted(lambda record, logs: record["versions"].update(torch="0.1"))
    assert hfscale.replay(folder / "run.json") is False
    first = outcome(folder)["first_difference"]
    assert first == {"what": "versions, torch", "was": "0.1", "now": versions()["torch"], "step": 0}
    assert results(folder)["text"] == "not reached" and not trained(folder)
    # The folder of a replay that ended early can be replaced, too.
    with pytest.raises(SystemExit) as end:
        run(lambda: replay.main([str(folder), "--overwrite", "true", "--keep_going", "true"]))
    assert end.value.code == 1 and trained(folder)
    assert outcome(folder)["first_difference"] == first
    assert results(folder) == {**dict.fromkeys(results(folder), "equal"), "versions": "differs"}


def test_a_changed_text(planted, place):
    file = place / "train" / "3.txt"
    text = file.read_text()
    folder = planted(lambda record, logs: None)
    try:
        file.write_text(text.replace("Line 4", "Line x"))
        assert hfscale.replay(folder) is False
    finally:
        file.write_text(text)
    assert outcome(folder)["first_difference"]["what"] == "text, train"
    assert results(folder)["batches"] == "not reached" and not trained(folder)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("tokenizer", "train:299", "tokenizer"),
        ("seed", 1, "initial weights"),
        ("data_seed", 7, "batches of steps 1 to 2, by their fingerprint"),
        ("learning_rate", 1e-4, "loss at step 2"),
    ],
)
def test_another_setting(planted, name, value, what):
    """As if the run had been trained with this one and the program now took another."""
    folder = planted(lambda record, logs: record["config"].update({name: value}))
    assert hfscale.replay(folder) is False
    assert outcome(folder)["first_difference"]["what"] == what
    assert trained(folder) == (what.startswith(("batches", "loss")))


def compared(original: Path, replayed: Path, **hardware):
    before, now = (read_original(str(folder)) for folder in (original, replayed))
    rules = rules_for(HARDWARE, HARDWARE | hardware, bf16=False)
    return compare_training(before, now, rules)


def test_an_edited_loss_is_named_by_its_step(planted, place, capsys):
    def edit(record, logs):
        logs[2]["loss"] += 1e-9
        for log in logs:
            if log["step"] == 6 and "batches" in log:
                log["batches"] = "0" * 16
        record["metrics"]["eval_loss"] += 1e-9

    folder = planted(edit)
    [logged] = [log for log in read_original(str(folder)).logs if log["step"] == 4]
    stages = compared(folder, place / "run-replay")
    assert [entry.result for entry in stages] == ["differs", "differs", "equal", "differs"]
    first = first_difference(stages)
    assert first.what == "loss at step 4" and first.was == logged["loss"] == first.now + 1e-9


def test_batches_are_named_by_the_steps_since_the_last_log(planted, place):
    folder = planted(lambda record, logs: logs[2].update(batches="0" * 16))
    stages = compared(folder, place / "run-replay")
    first = first_difference(stages)
    assert first.what == "batches of steps 3 to 4, by their fingerprint"
    assert [entry.result for entry in stages[1:]] == ["equal"] * 3


def test_other_final_weights(planted, place):
    folder = planted(lambda record, logs: record["model"].update(fingerprint="0" * 16))
    assert first_difference(compared(folder, place / "run-replay")).what == "final weights"


# ---- within a tolerance, elsewhere


def test_elsewhere_numbers_may_be_apart_by_a_little(planted, place, tmp_path):
    def edit(record, logs):
        for log in logs:
            if "loss" in log:
                log["loss"] *= 1 + TOLERANCE["losses"] / 2
        record["metrics"]["eval_loss"] *= 1 - TOLERANCE["metrics"] / 2
        record["model"]["fingerprint"] = "of other bits"

    folder = planted(edit)
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        weights[name] = values * (1 + TOLERANCE["final weights"] / 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    near = compared(folder, place / "run-replay", world_size=2)
    results = ["equal", "within tolerance", "within tolerance", "within tolerance"]
    assert [entry.result for entry in near] == results and first_difference(near) is None
    assert near[2].apart == pytest.approx(TOLERANCE["final weights"] / 2, rel=0.02)
    here = compared(folder, place / "run-replay")
    assert [entry.result for entry in here] == ["equal", "differs", "differs", "differs"]
    (folder / "model.safetensors").unlink()  # numbers are compared by the files alone
    gone = compared(folder, place / "run-replay", world_size=2)
    assert gone[2].result == "not recorded"


def test_beyond_the_tolerance(planted, place):
    def edit(record, logs):
        logs[3]["loss"] *= 1 + 2 * TOLERANCE["losses"]

    stages = compared(planted(edit), place / "run-replay", cpu_threads=2)
    assert first_difference(stages).what == "loss at step 6"
    rules = rules_for(HARDWARE, HARDWARE | {"cpu_threads": 2}, bf16=True)
    assert rules.reason.startswith("cpu_threads was 1, is 2: ")
    assert rules.tolerance["losses"] == 2**-7 > TOLERANCE["losses"]


def test_lists_and_what_is_no_number():
    before = {"ci": [1.0, 2.0], "name": "a", "none": None}
    assert compare_values("metrics", before, dict(before)).result == "equal"
    near = compare_values("metrics", before, before | {"ci": [1.0, 2.001]}, 1e-3)
    assert near.result == "within tolerance" and near.apart == pytest.approx(5e-4)
    for change in ({"ci": [1.0]}, {"name": "b"}, {"none": 0.0}):
        assert compare_values("metrics", before, before | change, 1e-3).result == "differs"


# ---- records of before, and what cannot be replayed


def test_an_older_record_is_compared_as_far_as_it_goes(planted, capsys):
    def make_older(record, logs):
        del record["data"]["tokenizer_fingerprint"], record["hardware"]["cpu_threads"]
        del record["model"]["initial_fingerprint"], record["model"]["fingerprint"]
        del record["train"]["batches_fingerprint"], record["train"]["bound_to_world_size"]
        del record["metrics"]["eval_loss"]
        for log in logs:
            log.pop("batches", None)

    folder = planted(make_older)
    assert hfscale.replay(folder) is True
    told = results(folder)
    unknown = {"tokenizer", "initial weights", "batches", "final weights"}
    assert {stage for stage, result in told.items() if result == "not recorded"} == unknown
    assert {result for stage, result in told.items() if stage not in unknown} == {"equal"}
    assert "not recorded: eval_loss" in capsys.readouterr().out


def test_without_logs_the_last_fingerprint_of_the_batches_counts(planted, place):
    folder = planted(lambda record, logs: None)
    (folder / "trainer_state.json").unlink()
    stages = compared(folder, place / "run-replay")
    assert [(entry.result, entry.num_values) for entry in stages[:2]] == [
        ("equal", 1),
        ("not recorded", 0),
    ]


def changed(place: Path, **changes):
    original = read_original(str(place / "run"))
    record = copy.deepcopy(original.record)
    for name, value in changes.items():
        part, _, key = name.partition("__")
        record[part][key] = value
    return original._replace(record=record)


def test_what_a_replay_asks_for(place):
    original = changed(place, config__hub_token="<HUB_TOKEN>", config__push_to_hub=True)
    options = replay_options(original, world_size=1, trust_remote_code=False)
    assert options["seed"] == 42 and options["report_to"] == "none"
    assert not [name for name in options if name.startswith(("hub", "push"))]
    assert not {"output_dir", "resume", "overwrite", "dry_run", "deepspeed"} & options.keys()
    # Two processes take half of the eight rows of a step each, three take none.
    two = replay_options(original, world_size=2, trust_remote_code=False)
    assert two["per_device_train_batch_size"] * two["gradient_accumulation_steps"] == 4
    wide = changed(place, config__gradient_accumulation_steps=1)
    wide = replay_options(wide, world_size=4, trust_remote_code=False)
    assert (wide["per_device_train_batch_size"], wide["gradient_accumulation_steps"]) == (1, 1)
    with pytest.raises(InputError, match="the 8 rows of a step cannot be dealt out to 3 proc"):
        replay_options(original, world_size=3, trust_remote_code=False)
    bound = changed(place, train__bound_to_world_size=True)
    with pytest.raises(InputError, match="follows from the number of processes .* launch 1$"):
        replay_options(bound, world_size=2, trust_remote_code=False)
    trusting = changed(place, config__trust_remote_code=True)
    with pytest.raises(InputError, match="pass --trust_remote_code if you trust it"):
        replay_options(trusting, world_size=1, trust_remote_code=False)


def test_weights_of_other_models_have_no_distance(place, tmp_path):
    assert weights_distance(place / "run", place / "run-replay") == 0
    weights = load_file(place / "run" / "model.safetensors")
    weights.popitem()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert weights_distance(place / "run", tmp_path) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": "scale"}, "was made by scale, which cannot be replayed; name a run of qu"),
        ({"command": "hfscale my/pretrain.py --seed 1"}, r"a script of your own \(my/pretrain.py"),
        ({"config": None}, "no readable run.json"),
    ],
)
def test_what_cannot_be_replayed(planted, change, says):
    folder = planted(lambda record, logs: record.update(change))
    with pytest.raises(InputError, match=says):
        replay.main([str(folder)])
    assert not folder.with_name("run-replay").exists()


def test_bad_input_is_one_line(planted, place, tmp_path):
    with pytest.raises(InputError, match="run: none given"):
        replay.main([])
    with pytest.raises(InputError, match="no readable run.json; name a folder of a finished run"):
        replay.main([str(place)])
    folder = planted(lambda record, logs: record["config"].update(source=["gone.txt"]))
    with pytest.raises(InputError, match=r"as its run.json has it: source gone.txt: "):
        replay.main([str(folder)])
    (folder / "trainer_state.json").write_text("[]")
    with pytest.raises(InputError, match="trainer_state.json; delete it to compare the rest"):
        replay.main([str(folder), "--output_dir", str(tmp_path / "other")])
    shutil.copy(place / "run" / "manifest.json", folder)  # says that run.json was changed
    with pytest.raises(InputError, match="by its manifest.json"):
        replay.main([str(folder)])
