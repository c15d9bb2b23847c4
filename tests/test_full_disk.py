"""A log on a full disk ends nothing."""

import os
import subprocess
import sys

PROGRAM = """
from hfscale.full_disk import pass_over_log_errors
print("said before")
pass_over_log_errors("stdout")
print("said after", flush=True)
"""


def test_what_was_said_before_a_log_was_full_ends_no_program():
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=log, stderr=subprocess.PIPE, env=env
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_was_said_before_is_in_the_log_where_it_has_room():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "said before\nsaid after\n"
