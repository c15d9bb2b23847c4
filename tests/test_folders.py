"""Who may write where, and what a record holds.

--overwrite deletes what a recipe wrote, by name, and nothing that anybody else did.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from hfscale.config import shipped
from hfscale.folders import (
    RUN_FILES,
    check_output_dir,
    check_output_file,
    clear_output_dir,
    describe_run,
    remove_written,
    write_json,
)
from hfscale.process import InputError, typed_command
from hfscale.shown import describe_differences
from recipes import (
    attention_maps,
    distill,
    finetune,
    finetune_picture,
    finetune_preference,
    finetune_reward,
    finetune_task,
    prepare_data,
    prepare_data_cluster,
    pretrain,
    quickstart,
    score,
    train_tokenizer,
)

TRAINED = [
    "run.json",
    "model.safetensors",
    "checkpoint-2/optimizer.pt",
    "runs/Jan01_host/events.out.tfevents.1",
]
PREPARED = ["data_card.json", "train/data-00000-of-00001.arrow"]
# What an earlier run of each recipe that deletes folders left.
WRITTEN = {
    pretrain: TRAINED,
    distill: TRAINED,
    finetune: TRAINED,
    finetune_task: TRAINED,
    finetune_preference: TRAINED,
    finetune_picture: [*TRAINED, "preprocessor_config.json", "caption_attention.png"],
    finetune_reward: [*TRAINED, "rewards.json", "groups.jsonl"],
    quickstart: TRAINED,
    prepare_data: PREPARED,
    prepare_data_cluster: PREPARED,
    train_tokenizer: ["tokenizer_report.json", "tokenizer.json"],
    attention_maps: ["attention.json", "attention.html"],
}


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def recipe_name(recipe) -> str:
    return recipe.__name__.split(".")[-1]


def overwrite(recipe, folder: str | Path) -> None:
    recipe.main(["--output_dir", str(folder), "--overwrite"])


@pytest.fixture(params=WRITTEN, ids=recipe_name)
def recipe(request):
    return request.param


@pytest.fixture
def earlier(recipe, tmp_path, monkeypatch) -> Path:
    """The folder of an earlier run, below the current one."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out", WRITTEN[recipe])
    return tmp_path / "out"


@pytest.mark.parametrize(
    "foreign",
    [
        "src/main.py",
        "notes.txt",
        "checkpoint-best/a",
        "checkpoint-2/src/a.py",
        ".git/config",
        "train/a.txt",
    ],
)
def test_what_no_run_wrote_is_named_and_kept(recipe, earlier, foreign):
    write(earlier, [foreign])
    before = contents(earlier)
    with pytest.raises(InputError, match=f"^output_dir .*out: .*no run wrote .*{foreign}") as error:
        overwrite(recipe, "out")
    assert "\n" not in str(error.value)
    assert contents(earlier) == before


def test_an_empty_folder_of_somebody_else_counts(recipe, earlier):
    (earlier / "drafts").mkdir()
    with pytest.raises(InputError, match="no run wrote drafts"):
        overwrite(recipe, "out")
    assert (earlier / "drafts").is_dir()


@pytest.mark.parametrize("place", [".", "checkpoint-2"])
def test_the_current_folder_and_those_above_it_stay(recipe, earlier, place, monkeypatch):
    (earlier / place).mkdir(exist_ok=True)
    monkeypatch.chdir(earlier / place)
    for path in (earlier, os.path.relpath(earlier)):
        with pytest.raises(InputError, match="current folder or one above it"):
            overwrite(recipe, path)
    assert set(WRITTEN[recipe]) <= set(contents(earlier))


def test_a_link_is_not_followed(recipe, earlier):
    Path("link").symlink_to(earlier)
    with pytest.raises(InputError, match="link: is a link"):
        overwrite(recipe, "link")
    assert set(WRITTEN[recipe]) <= set(contents(earlier))


def test_score_deletes_only_its_own_unfinished_work(tmp_path):
    write(tmp_path / "out", ["unfinished/mine.txt", "src/main.py"])
    write(tmp_path, ["text.txt"])
    with pytest.raises(InputError, match="model .*nowhere: cannot be loaded"):
        score.main(
            [
                "--model",
                str(tmp_path / "nowhere"),
                "--output_dir",
                str(tmp_path / "out"),
                "--overwrite",
            ]
        )
    assert {"unfinished/mine.txt", "src/main.py"} <= set(contents(tmp_path / "out"))


def test_all_that_a_run_wrote_goes(tmp_path):
    engines = [
        "checkpoint-2/global_step2/mp_rank_00_model_states.pt",
        "checkpoint-2/optimizer_0/.metadata",
        "checkpoint-2/rng_state_1.pth",
        "checkpoint-2/manifest.json",
        "wandb/offline-run-1/files/a.json",
    ]
    write(tmp_path / "out", [*TRAINED, *engines])
    (tmp_path / "out" / "wandb" / "latest-run").symlink_to("offline-run-1")
    (tmp_path / "out" / "checkpoint-4").mkdir()  # killed at once
    remove_written("output_dir out", tmp_path / "out", RUN_FILES)
    assert contents(tmp_path) == []


def test_a_link_in_a_run_goes_and_what_it_points_to_stays(tmp_path):
    write(tmp_path, ["data/text.txt", "out/run.json"])
    (tmp_path / "out" / "wandb").symlink_to(tmp_path / "data")
    remove_written("output_dir out", tmp_path / "out", RUN_FILES)
    assert contents(tmp_path) == ["data", "data/text.txt"]


def test_the_command_of_a_record_can_be_typed_again(monkeypatch, tmp_path):
    script = shipped("recipes", "*.py")["pretrain"]
    assert typed_command(str(script), ["--max_steps", "3", "--source", "a b.txt"]) == (
        "hfscale pretrain --max_steps 3 --source 'a b.txt'"
    )
    quickstart_script = shipped("recipes", "*.py")["quickstart"]  # which has no configs
    assert typed_command(str(quickstart_script), ["--seed", "1"]) == "hfscale quickstart --seed 1"
    assert typed_command("mine/own.py", ["--x", "1"]) == "hfscale mine/own.py --x 1"
    # A copy is another script than the one it was copied from, also with its configs beside it.
    (tmp_path / "configs" / "pretrain").mkdir(parents=True)
    copy = tmp_path / "pretrain.py"
    assert typed_command(str(copy), []) == f"hfscale {copy}"
    monkeypatch.setenv("HFSCALE_COMMAND", "hfscale pretrain --accelerate ddp")
    assert typed_command(str(script), None) == "hfscale pretrain --accelerate ddp"
    assert typed_command(str(script), []) == "hfscale pretrain"


def test_a_record_names_what_every_reader_needs():
    @dataclass
    class Arguments:
        seed: int = 3

    record = describe_run("mine/own.py", Arguments(), [], seconds=1.5)
    assert list(record) == [
        "schema_version",
        "recipe",
        "command",
        "config",
        "versions",
        "hardware",
        "seconds",
    ]
    assert record["config"] == {"seed": 3} and record["recipe"] == "own"
    assert record["hardware"]["cpu_cores"] == os.cpu_count()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "scores.json").write_text("mine")
    with pytest.raises(InputError, match=r"holds scores.json; .*--overwrite replaces it$"):
        check_output_file(str(tmp_path), "scores.json", overwrite=False)
    assert check_output_file(str(tmp_path), "scores.json", overwrite=True).read_text() == "mine"
    (tmp_path / "law.json").mkdir()
    with pytest.raises(InputError, match=r"law.json is a folder; name another place"):
        check_output_file(str(tmp_path), "law.json", overwrite=True)


def test_a_number_that_json_does_not_have_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("inf")})
    assert not any(tmp_path.iterdir())


def test_differences_name_both_values_and_pass_over_what_may_differ():
    before = {"seed": 1, "source": ["a"], "gone": 3, "output_dir": "x"}
    now = {"seed": 2, "source": ["a"], "new": None, "output_dir": "y"}
    differences = describe_differences(before, now, ignored=("output_dir",))
    assert differences == "gone was 3, is None; seed was 1, is 2"
    assert describe_differences(before, before) == ""
    assert describe_differences(
        {"a": 1}, {"a": 2}, wording="{name}: {now} there, {before} here"
    ) == ("a: 2 there, 1 here")


def test_a_trial_that_a_kill_has_left_is_in_nobodys_way(tmp_path):
    left = tmp_path / "run" / ".hfscale-k1ll3d" / "run"
    left.mkdir(parents=True)
    (left / "..part").touch()
    check_output_dir(str(tmp_path / "run"), resume="auto", overwrite=False)
    (tmp_path / "run" / "training_args.bin").touch()
    check_output_dir(str(tmp_path / "run"), resume=None, overwrite=True)
    clear_output_dir(str(tmp_path / "run"), overwrite=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
