"""A submission to the speedrun: its entry, and one line for each rule that it breaks."""

import json
import re
import shlex
import shutil
import statistics

import pytest
from scipy import stats

from hfscale.comparing import speedrun
from hfscale.comparing.speedrun import SEEDS, TARGET, check_record, measure_bits_per_byte
from hfscale.config import check_recipe_args, shipped
from hfscale.process import InputError
from recipes import compare

CONFIG = """\
source: [embedded:python-prose]
split_by: position
tokenizer: train:300
num_hidden_layers: 1
num_attention_heads: 2
hidden_size: 32
max_position_embeddings: 64
max_steps: 10
"""
MEASURED = [TARGET - 0.03 + 0.005 * seed for seed in SEEDS]


def run_record(seed: int, config: dict) -> dict:
    upstream = {"seed": seed, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
    settled = {"validation_source": None, "validation_fraction": 0.05, "resume": None}
    return {
        "recipe": "pretrain",
        "command": "hfscale pretrain",
        "config": upstream | settled | config | {"output_dir": f"runs/{seed}"},
        "data": {"fingerprint": speedrun.FINGERPRINTS},
        "model": {"parameters": 4_000_000, "fingerprint": f"weights {seed}"},
        "train": {"steps": 10, "seconds": 31.0, "cpu_seconds": 30.0 + seed},
        "metrics": {"eval_bits_per_byte": MEASURED[seed] * 1.001},
        "hardware": {"device": "cpu", "world_size": 1, "cpu_threads": 1},
        "samples": [],
    }


@pytest.fixture
def submission(tmp_path, monkeypatch):
    """A folder that keeps all rules; its models are measured by the numbers of their seeds."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(CONFIG)
    (folder / "calibration.json").write_text('{"cpu_seconds": 20.0}')
    recipe = shipped("recipes", "pretrain.py")["pretrain"]
    config = check_recipe_args(recipe, ["--config", str(folder / "mine.yaml")])
    for seed in SEEDS:
        run = folder / f"seed-{seed}"
        run.mkdir()
        (run / "run.json").write_text(json.dumps(run_record(seed, config)))
        logs = [{"step": step, "train_runtime": 3.1 * step} for step in (5, 10)]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    monkeypatch.setattr(
        speedrun, "measure_bits_per_byte", lambda run, record: MEASURED[record["config"]["seed"]]
    )
    monkeypatch.setattr(
        "hfscale.models.weights_fingerprint", lambda folder: f"weights {folder[-1]}"
    )
    return folder


def edit(folder, number: int, part: str, **values) -> None:
    path = folder / f"seed-{number}" / "run.json"
    record = json.loads(path.read_text())
    record[part].update(values)
    path.write_text(json.dumps(record))


def test_the_command_prints_the_entry_or_one_line(submission, capsys):
    compare.main(["--record", str(submission)])
    *measured, row = capsys.readouterr().out.splitlines()
    assert len(measured) == len(SEEDS)
    assert row.startswith("| mine.yaml |") and row.endswith("| 32.0 | 20.0 | 16.0 |")
    edit(submission, 3, "metrics", eval_bits_per_byte=1.0)
    with pytest.raises(InputError, match="seed-3"):
        compare.main(["--record", str(submission)])


def test_an_entry(submission):
    entry = check_record(str(submission))
    assert entry["bits_per_byte"] == MEASURED and entry["config"] == "mine.yaml"
    assert entry["cpu_seconds"] == [30.0, 31.0, 32.0, 33.0, 34.0]
    # A machine on which the calibration takes twice as long takes half of it all for the entry.
    assert entry["calibration_seconds"] == 20.0
    assert entry["scaled_seconds"] == pytest.approx(32.0 * speedrun.REFERENCE_SECONDS / 20)
    mean = statistics.mean(MEASURED)
    t = (mean - TARGET) / (statistics.stdev(MEASURED) / len(SEEDS) ** 0.5)
    assert entry["p_value"] == pytest.approx(stats.t.cdf(t, df=len(SEEDS) - 1))
    assert entry["bits_per_byte_mean"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("seed", "part", "values", "says"),
    [
        (1, "config", {"seed": 7}, "seed-1: is of pretrain with seed 7; expected pretrain with"),
        (2, "config", {"max_steps": 9}, r"seed-2: was trained with max_steps 9, not 10 as .*yaml"),
        (3, "config", {"learning_rate": 0.1}, r"learning_rate 0.1, not 0.001 as .*seed-0 says"),
        (0, "data", {"fingerprint": {}}, "its text has the fingerprints {}, that of the rules"),
        (4, "train", {"cpu_seconds": 90}, "90 CPU seconds do not fit into 31.0 s on 2 cores"),
        (4, "train", {"seconds": 99.0}, r"34.0 CPU seconds in 99.0 s, its last log \[31.0\]"),
        (4, "train", {"cpu_seconds": None}, "run.json says None CPU seconds"),
        (0, "hardware", {"cpu_threads": 4}, "trained on cpu, 4 threads in all; the rules want"),
        (0, "hardware", {"device": "cuda"}, "trained on cuda"),
        (0, "hardware", {"world_size": 2}, "one process on a CPU with 2 at most"),
        (1, "model", {"fingerprint": "x"}, "seed-1: its weights are not those that its run.json"),
        (1, "metrics", {"eval_bits_per_byte": 2.0}, "says 2.0 bits per byte, and its model has 2"),
        (1, "metrics", {"eval_bits_per_byte": None}, "says None bits per byte"),
    ],
)
def test_what_does_not_agree_is_refused(submission, seed, part, values, says):
    edit(submission, seed, part, **values)
    with pytest.raises(InputError, match=says):
        check_record(str(submission))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("source: [embedded:python-docs]", "source is .*; the rules say .*python-prose"),
        ("split_by: document", "split_by is 'document'; the rules say 'position'"),
        ("tokenizer: gpt2", "tokenizer gpt2 comes from elsewhere"),
        ("resume: auto", "went on from a checkpoint"),
    ],
)
def test_rules_that_hold_for_all_seeds(submission, line, says):
    name = line.partition(":")[0]
    kept = [old for old in CONFIG.splitlines() if not old.startswith(f"{name}:")]
    (submission / "mine.yaml").write_text("\n".join([*kept, line, ""]))
    recipe = shipped("recipes", "pretrain.py")["pretrain"]
    config = check_recipe_args(recipe, ["--config", str(submission / "mine.yaml")])
    for seed in SEEDS:
        edit(submission, seed, "config", **{name: config[name]})
    with pytest.raises(InputError, match=says):
        check_record(str(submission))


def test_a_mean_that_is_not_shown_to_be_below(submission, monkeypatch):
    """It is below, and may be so by chance."""
    values = [TARGET - 0.05, TARGET + 0.02, TARGET - 0.03, TARGET + 0.01, TARGET - 0.01]
    for seed, value in zip(SEEDS, values, strict=True):
        edit(submission, seed, "metrics", eval_bits_per_byte=value)
    monkeypatch.setattr(
        speedrun, "measure_bits_per_byte", lambda run, record: values[record["config"]["seed"]]
    )
    with pytest.raises(InputError, match=r"mean of 2.0880 .* is not shown to be below .* longer$"):
        check_record(str(submission))


@pytest.mark.parametrize("log", ["[]", '{"steps": 3}', '{"log_history": [1]}', "not JSON"])
def test_a_damaged_log_is_one_line(submission, log):
    (submission / "seed-2" / "trainer_state.json").write_text(log)
    with pytest.raises(InputError, match=r"seed-2.*trainer_state\.json"):
        check_record(str(submission))


def test_files_that_are_missing(submission, monkeypatch):
    monkeypatch.setattr(speedrun, "calibration_seconds", lambda: 3.5)
    (submission / "second.yaml").write_text(CONFIG)
    with pytest.raises(InputError, match=r"holds 2 files \*.yaml; expected one"):
        check_record(str(submission))
    (submission / "second.yaml").unlink()
    (submission / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match="has no cpu_seconds above 0; make it on the machine of"):
        check_record(str(submission))
    (submission / "calibration.json").unlink()
    with pytest.raises(InputError, match="no readable calibration.json; make it on .*: (.*)$") as e:
        check_record(str(submission))
    # The command that the line names makes it.
    [command] = re.findall(r"hfscale compare (.*)$", str(e.value))
    compare.main(shlex.split(command))
    assert check_record(str(submission))["calibration_seconds"] == 3.5
    with pytest.raises(InputError, match="is no folder; name the one with the config"):
        speedrun.calibrate(str(submission / "nowhere"))
    (submission / "calibration.json").write_text('{"cpu_seconds": 20.0}')
    shutil.rmtree(submission / "seed-3")
    with pytest.raises(InputError, match="seed-3 has no readable run.json"):
        check_record(str(submission))


def test_the_saved_model_measures_as_its_run_did(tmp_path, monkeypatch):
    """The same rows, here of a short text, through the weights that were saved."""
    import hfscale

    lines = [f"Line {i} of the text counts to {i * i}.\n" for i in range(300)]
    (tmp_path / "text.txt").write_text("".join(lines))
    source = [str(tmp_path / "text.txt")]
    monkeypatch.setattr(speedrun, "TEXT", speedrun.TEXT | {"source": source})
    (tmp_path / "mine.yaml").write_text(CONFIG.replace("embedded:python-prose", source[0]))
    run = hfscale.pretrain(
        config=tmp_path / "mine.yaml",
        output_dir=tmp_path / "run",
        max_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    again = measure_bits_per_byte(run.path, run.record)
    assert again == pytest.approx(run.metrics["eval_bits_per_byte"], rel=1e-6)


def test_the_calibration_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun, "CALIBRATION_STEPS", 1)
    seconds = speedrun.calibrate(str(tmp_path))
    written = json.loads((tmp_path / "calibration.json").read_text())
    assert 0 < written["cpu_seconds"] == seconds and written["versions"]["torch"]
