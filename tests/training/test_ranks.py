"""What ranks do together: all go on, or all end with one reason."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import finished_run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ranks_that_differ_end_together(tmp_path):
    """Rank 1 sees a run whose checkpoint is another one, and holds the shard that is not finite."""
    places = [tmp_path / "rank0", tmp_path / "rank1"]
    for place in places:
        place.mkdir()
    finished_run(places[0] / "run", max_steps=2)
    shutil.copytree(places[0] / "run", places[1] / "run")
    (places[1] / "run" / "checkpoint-2" / "manifest.json").write_text("{}")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29611",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = [sys.executable, str(ROOT / "tests" / "ranks_that_differ.py"), *map(str, places)]
    ranks = [
        subprocess.Popen(script, env=env | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [rank.wait(200) for rank in ranks] == [0, 0]

    def told(name: str) -> list[str]:
        return [(place / f"{name}.txt").read_text() for place in places]

    assert told("equal") == ["None"] * 2
    first, second = told("other text")
    assert first == second and "text is b there and a on rank 0" in first
    assert first.endswith("; read the same")
    assert told("failure") == ["ValueError: on rank 0 alone", "SystemExit: 1"]
    assert told("told") == ["chosen by rank 0"] * 2
    for engine in ("fsdp2", "zero3"):
        first, second = told(engine)
        assert first == second
        assert first.startswith("FloatingPointError: bad is not finite at step 7 (rank 1), of")
    first, second = told("resume")
    assert first == second and first.startswith("InputError: rank 1 (")
    assert "run/checkpoint-2/manifest.json is" in first and "put it on a disk" in first
