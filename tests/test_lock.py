"""Two runs never share a folder, and no end of a run leaves it locked."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hfscale.folders import check_output_dir, clear_output_dir, holds_run
from hfscale.lock import LOCK, claim_folder
from hfscale.process import InputError

HOLD = """
import sys, time
from pathlib import Path
from hfscale.lock import claim_folder
claim_folder("there", Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder."""
    (tmp_path / "run").mkdir()
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_until_the_first_is_gone(holder, tmp_path):
    folder = tmp_path / "run"
    says = rf"^output_dir run: process {holder.pid} on \S+ has been in it since \S+; wait for"
    before = (folder / LOCK).read_text()
    with pytest.raises(InputError, match=says):
        claim_folder("output_dir run", folder)
    assert (folder / LOCK).read_text() == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert claim_folder("output_dir run", folder)
    assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not claim_folder("output_dir run", folder)  # it is ours by now


@pytest.mark.parametrize("way", [{"resume": "auto"}, {"overwrite": True}, {}])
def test_a_start_reads_and_changes_nothing_of_a_run_that_goes_on(holder, tmp_path, way):
    folder = tmp_path / "run"
    (folder / "checkpoint-1").mkdir()
    with pytest.raises(InputError, match=f"process {holder.pid} on "):
        check_output_dir(str(folder), **{"resume": None, "overwrite": False, **way})
    assert sorted(os.listdir(folder)) == [LOCK, "checkpoint-1"]


def test_of_two_starts_into_a_fresh_folder_one_wins(tmp_path):
    """Both have seen that there was none."""
    folder = tmp_path / "run"
    check_output_dir(str(folder), resume=None, overwrite=False)
    assert not folder.exists()  # bad input after this leaves nothing
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {process.pid} on "):
        clear_output_dir(str(folder), overwrite=False)
    (folder / "checkpoint-1").mkdir()
    process.kill()
    process.wait()
    with pytest.raises(InputError, match="another run came into it meanwhile"):
        clear_output_dir(str(folder), overwrite=False)


def test_a_lock_that_a_kill_left_is_no_run(tmp_path):
    (tmp_path / LOCK).write_text("{}")
    assert not holds_run(tmp_path)
    check_output_dir(str(tmp_path), resume=None, overwrite=False)
    clear_output_dir(str(tmp_path), overwrite=False)
    assert os.listdir(tmp_path) == [LOCK]


def test_a_lock_file_that_was_deleted_is_locked_anew(tmp_path):
    assert claim_folder("there", tmp_path)
    Path(tmp_path, LOCK).unlink()
    assert claim_folder("there", tmp_path)
