"""Damage is named, whichever file it hits, and no manifest is a traceback."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from hfscale.data.tokenizer import train_bpe
from hfscale.folders import LOADED_FILES
from hfscale.manifest import (
    MANIFEST,
    check_manifest,
    has_manifest,
    problems_of,
    read_manifest,
    unlisted_files,
    write_manifest,
)
from hfscale.models import load_model
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.training.checkpoints import newest_checkpoint
from tests.damage import DAMAGE, cut, flip_a_bit
from tests.tiny_runs import copied_run, finished_run, tiny_arguments


def put_a_folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE_OF_FILES = {**DAMAGE, "a folder in its place": put_a_folder_in_its_place}


def damaged_files(folder: Path):
    """Each file below the folder, with each damage in turn; it is mended after that."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for damage, apply in DAMAGE_OF_FILES.items():
            apply(path)
            yield path.relative_to(folder).as_posix(), damage
            if path.is_dir():
                path.rmdir()
            path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "split").mkdir()
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "split" / "b.bin").write_bytes(bytes(100))
    write_manifest(tmp_path, step=3)
    return tmp_path


def test_what_a_manifest_says(folder):
    record = read_manifest(folder)
    assert record["step"] == 3 and set(record["files"]) == {"a.txt", "split/b.bin"}
    assert record["files"]["split/b.bin"]["bytes"] == 100
    assert check_manifest(folder) is None and unlisted_files(folder) == []
    (folder / "later.txt").touch()
    assert check_manifest(folder) is None and unlisted_files(folder) == ["later.txt"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("bit flipped", "a.txt was changed after it was written"),
        ("cut", "a.txt has 4 bytes instead of 9"),
        ("emptied", "a.txt has 0 bytes instead of 9"),
        ("deleted", "a.txt is missing"),
        ("a folder in its place", "a.txt is missing"),
    ],
)
def test_the_problem_is_named(folder, damage, problem):
    DAMAGE_OF_FILES[damage](folder / "a.txt")
    assert check_manifest(folder) == problem
    expected = None if damage == "bit flipped" else problem
    assert check_manifest(folder, sizes_only=True) == expected
    assert check_manifest(folder, patterns=("split/*",)) is None


def test_all_problems_are_named(folder):
    cut(folder / "a.txt")
    (folder / "split" / "b.bin").unlink()
    assert list(problems_of(folder)) == [
        "a.txt has 4 bytes instead of 9",
        "split/b.bin is missing",
    ]


FILE = {"bytes": 9, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "content",
    [
        *["", "null", "[]", "3", '"text"', "{", "\x00", "[" * 100_000, "NaN", "\udcff"],
        *[{"files": None}, {"files": []}, {"files": {}}, {"files": {"a.txt": None}}],
        *[{"files": {"a.txt": {"bytes": "9"}}}, {"files": {"a.txt": {"bytes": 9}}}],
        *[{"files": {"a.txt": FILE | {"sha256": 7}}}, {"files": {"": FILE}}],
        *[{"files": {"../a.txt": FILE}}, {"files": {"/etc/passwd": FILE}}],
        *[{"files": {"a\x00b": FILE}}, {"files": {"a" * 5000: FILE}}],
        {"files": {"a.txt": FILE}, "sha256": "0"},
    ],
    ids=lambda content: repr(content)[:40],
)
def test_a_manifest_of_any_form_is_a_problem_and_no_traceback(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert check_manifest(folder) and has_manifest(folder)
    assert list(problems_of(folder))


def test_each_flipped_bit_of_a_manifest_is_a_problem(folder):
    """But for one in the name of its own digest, which changes nothing that is read."""
    whole = read_manifest(folder)
    content = (folder / MANIFEST).read_bytes()
    name_begins = content.rindex(b"sha256")
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        (folder / MANIFEST).write_bytes(changed)
        if check_manifest(folder) is None:
            assert name_begins <= place < name_begins + len("sha256")
            record = read_manifest(folder)
            assert record["files"] == whole["files"] and record["step"] == 3


@pytest.mark.parametrize("content", ['{"name": "app"}', '{"version": 3, "icons": []}'])
def test_a_manifest_of_others_is_none(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    assert not has_manifest(tmp_path)


# ---- folders of models and checkpoints


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe(Dataset.from_dict({"text": ["a few words to begin with"] * 3}), 270)
    tokenizer.save_pretrained(folder)
    new_model(tokenizer, n_layer=1, n_head=2, n_embd=8, n_positions=8).save_pretrained(folder)
    for name in ("run.json", "task.json", "README.md"):
        (folder / name).write_text('{"a": 1}')
    write_manifest(folder, patterns=LOADED_FILES)
    return folder


def test_no_damage_of_a_model_is_silent(model_folder):
    load_model(str(model_folder), verify_digests=True)
    seen = set()
    for name, damage in damaged_files(model_folder):
        if name == "README.md" or (name == MANIFEST and damage == "deleted"):
            continue
        seen.add(name)
        with pytest.raises(InputError, match=f"model .*: {name} "):
            load_model(str(model_folder), verify_digests=True)
        if (name, damage) != ("model.safetensors", "bit flipped"):
            with pytest.raises(InputError, match=f"model .*: {name} "):
                load_model(str(model_folder))
    assert {"model.safetensors", "config.json", "tokenizer.json", "run.json", "task.json"} <= seen


def test_a_folder_of_others_is_loaded_as_always(model_folder, tmp_path):
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    (copy / MANIFEST).unlink()
    flip_a_bit(copy / "model.safetensors")
    load_model(str(copy))
    with pytest.raises(InputError, match="has no manifest.json, so nothing says how"):
        load_model(str(copy), verify_digests=True)
    with pytest.raises(InputError, match="model gpt2-none: has no manifest.json"):
        load_model("gpt2-none", verify_digests=True)


def test_what_a_load_does_not_read_may_go(model_folder, tmp_path):
    """A checkpoint from which the optimizer's state was taken away still is a model."""
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    (copy / "optimizer.pt").write_text("moments")
    write_manifest(copy)
    (copy / "optimizer.pt").unlink()
    (copy / "README.md").write_text("edited")
    load_model(str(copy), verify_digests=True)
    assert check_manifest(copy) == "README.md has 6 bytes instead of 8"


def test_no_damage_of_a_checkpoint_is_silent(tmp_path, capsys):
    run = copied_run(finished_run(tmp_path / "whole", max_steps=4), tmp_path / "run")
    args = tiny_arguments(run, max_steps=4)
    seen = set()
    for name, _ in damaged_files(run / "checkpoint-4"):
        seen.add(name)
        assert newest_checkpoint(args) == str(run / "checkpoint-2")
        assert f"checkpoint-4 is not whole ({name} " in capsys.readouterr().err
    assert newest_checkpoint(args) == str(run / "checkpoint-4")
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "config.json", MANIFEST} <= seen
