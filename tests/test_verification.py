"""What `hfscale verify` says of folders, and with which exit status."""

import shutil
import sys
from pathlib import Path

import pytest

from hfscale.config import check_recipe_args
from hfscale.manifest import write_manifest
from hfscale.process import InputError, run
from recipes import verify

RECIPE = Path(verify.__file__)


@pytest.fixture
def run_folder(tmp_path):
    """As a finished run leaves it, with a file in place of the many."""
    folder = tmp_path / "run"
    for name in ("checkpoint-2", "checkpoint-10", "runs"):
        (folder / name).mkdir(parents=True)
    for name in ("model.safetensors", "run.json"):
        (folder / name).write_text("content")
    for name in ("README.md", "report.html", "training_args.bin", ".lock"):
        (folder / name).write_text("not listed")
    for step in (2, 10):
        (folder / f"checkpoint-{step}" / "optimizer.pt").write_text("moments")
        write_manifest(folder / f"checkpoint-{step}")
    write_manifest(folder, patterns=("model.safetensors", "run.json"))
    return folder


def status_of(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        run(lambda: verify.main([str(word) for word in words]))
    return end.value.code


def test_a_whole_run(run_folder, capsys):
    assert status_of(run_folder) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run_folder}: whole (2 files, 0.0 MB)",
        f"{run_folder}/checkpoint-2: whole (1 files, 0.0 MB)",
        f"{run_folder}/checkpoint-10: whole (1 files, 0.0 MB)",
    ]


def test_each_damage_is_a_line(run_folder, capsys):
    (run_folder / "model.safetensors").write_text("changed")
    (run_folder / "run.json").write_text("cut")
    (run_folder / "notes.txt").write_text("mine")
    (run_folder / "checkpoint-2" / "optimizer.pt").unlink()
    (run_folder / "checkpoint-10" / "manifest.json").write_text("null")
    assert status_of("--folders", run_folder) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{run_folder}: model.safetensors was changed after it was written",
        f"{run_folder}: run.json has 3 bytes instead of 7",
        f"{run_folder}: notes.txt was not there when manifest.json was written",
        f"{run_folder}/checkpoint-2: optimizer.pt is missing",
        f"{run_folder}/checkpoint-10: manifest.json lists no files: it is damaged",
        "3 of 3 folders are not as they were written",
    ]


def test_sizes_alone(run_folder, capsys):
    (run_folder / "model.safetensors").write_text("changed")
    assert status_of(run_folder, "--sizes_only", "true") == 0
    (run_folder / "model.safetensors").write_text("cut")
    assert status_of(run_folder, "--sizes_only", "true") == 1


def test_a_manifest_that_was_lost_is_damage(run_folder, capsys):
    (run_folder / "manifest.json").unlink()
    assert status_of(run_folder) == 1
    assert f"{run_folder}: manifest.json is missing" in capsys.readouterr().out


def test_a_run_that_goes_on_has_checkpoints_alone(run_folder, capsys):
    for name in ("manifest.json", "run.json", "model.safetensors"):
        (run_folder / name).unlink()
    assert status_of(run_folder, run_folder / "checkpoint-2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0][-13:] for line in lines] == [
        "/checkpoint-2",
        "checkpoint-10",
        "/checkpoint-2",
    ]


def test_bad_input(run_folder, tmp_path):
    with pytest.raises(InputError, match="folders: none given"):
        verify.main([])
    with pytest.raises(InputError, match="none is no folder"):
        verify.main([str(run_folder), str(tmp_path / "none")])
    shutil.rmtree(run_folder / "checkpoint-2")
    shutil.rmtree(run_folder / "checkpoint-10")
    (run_folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="has no manifest.json, nor has a checkpoint in it"):
        verify.main([str(run_folder)])


@pytest.mark.parametrize(
    ("words", "folders"),
    [
        ("a b", ["a", "b"]),
        ("--folders a b", ["a", "b"]),
        ("a --sizes_only true", ["a"]),
        ("a --folders b", ["a", "b"]),
        ("--sizes_only true --folders=a", ["a"]),
    ],
)
def test_words_before_the_first_flag_are_folders(words, folders):
    assert check_recipe_args(RECIPE, words.split())["folders"] == folders


def test_other_recipes_take_no_words_alone():
    generate = RECIPE.with_name("generate.py")
    with pytest.raises(InputError, match="'runs/a' stands alone"):
        check_recipe_args(generate, ["runs/a"])


def test_it_imports_nothing_that_computes(run_folder):
    import subprocess

    code = f"import sys; from recipes import verify; verify.main([{str(run_folder)!r}]); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=RECIPE.parents[1], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert {"torch", "transformers", "datasets"}.isdisjoint(result.stdout.split())
