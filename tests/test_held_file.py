import subprocess
import sys
from contextlib import contextmanager

import pytest

from hfscale.folders import check_output_folder, write_atomically
from hfscale.held_file import held_file
from hfscale.process import InputError
from hfscale.whole_folder import whole_folder

HOLD = """
import sys
from pathlib import Path
from hfscale.held_file import held_file
with held_file(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""
RECORD = {"last_file": "record.json", "written": ("record.json", "manifest.json")}


@contextmanager
def holding(path):
    """Another process, which holds a file."""
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        yield other
        other.kill()


def test_a_file_is_held_until_its_process_ends_however_it_ends(tmp_path, capsys):
    path = tmp_path / "file"
    with holding(path) as other:
        with pytest.raises(BlockingIOError), held_file(path, wait=False):
            pass
        other.kill()
        with held_file(path, wait=True, waiting="waiting"):
            pass
    assert capsys.readouterr().err in ("", "waiting\n")  # it may have ended first


def test_who_waited_for_a_file_that_was_renamed_holds_a_new_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("another's")
    seen = []

    def rename(*_):
        if not seen:
            path.rename(tmp_path / "renamed")
        seen.append(path)

    monkeypatch.setattr("fcntl.lockf", rename)
    with held_file(path, wait=True) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert (tmp_path / "renamed").read_text() == "another's"


def test_a_file_of_which_a_killed_writer_left_a_part_is_written_whole(tmp_path):
    (tmp_path / ".file.json.part").write_text("left over by a process that was killed")
    write_atomically(tmp_path / "file.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert (tmp_path / "file.json").read_text() == "new"


def test_one_run_at_a_time_writes_a_folder(tmp_path):
    folder = str(tmp_path / "data")
    (tmp_path / ".data.part").mkdir()
    (tmp_path / ".data.part" / "half").write_text("of the other run")
    with holding(tmp_path / ".data.lock.part"):
        with (
            pytest.raises(InputError, match=f"^output_dir {folder}: another run is writing it now"),
            whole_folder(folder, overwrite=False, **RECORD),
        ):
            pass
        assert (tmp_path / ".data.part" / "half").is_file()
    # The other was killed.
    with whole_folder(folder, overwrite=False, **RECORD) as part:
        assert list(part.iterdir()) == []
        (part / "record.json").write_text("ours")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "data",
        "manifest.json",
        "record.json",
    ]
    check_output_folder(folder, overwrite=True, **RECORD)


def test_what_another_run_has_written_meanwhile_stays(tmp_path):
    """Where the file system has no locks."""
    folder = tmp_path / "data"
    with (
        pytest.raises(InputError, match="another run has written it meanwhile"),
        whole_folder(str(folder), overwrite=False, **RECORD) as part,
    ):
        (part / "record.json").write_text("ours")
        folder.mkdir()
        (folder / "record.json").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (folder / "record.json").read_text() == "theirs"
