"""W&B for real, offline: what its run file holds, when it stays offline, and that no file holds a
secret.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hfscale.folders import holds_run
from hfscale.training.training_args import training_arguments

pytest.importorskip("wandb", reason="the extra hfscale[wandb] is missing")
ROOT = Path(__file__).parents[2]
SECRETS = {"HF_TOKEN": "hf_" + "s" * 34, "WANDB_API_KEY": "5ec1" * 10}
RUN = [
    "--sample_by",
    "line",
    "--tokenizer",
    "train:300",
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--hidden_size",
    "32",
    "--max_position_embeddings",
    "32",
    "--max_steps",
    "4",
    "--logging_steps",
    "2",
    "--save_steps",
    "2",
    "--disable_tqdm",
    "--bf16",
    "false",
    "--use_cpu",
    "--report_to",
    "wandb",
    "tensorboard",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run folder, what was printed) of a run with secrets in the environment, whose W&B host does
    not answer.
    """
    place = tmp_path_factory.mktemp("wandb")
    (place / "text.txt").write_text("\n".join(f"line {i} counts to {i * 3}" for i in range(80)))
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB_")
    } | SECRETS
    env |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_LOG_MODEL": "end",
        "HOME": str(place),
    }
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "recipes" / "pretrain.py"),
            "--source",
            "text.txt",
            "--output_dir",
            "run",
            *RUN,
        ],
        cwd=place,
        env=env,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return place / "run", result.stdout


@pytest.fixture(scope="module")
def records(finished) -> list[dict]:
    """All records of the run's transaction log."""
    [path] = finished[0].glob("wandb/offline-run-*/run-*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    shown = subprocess.run(
        [wandb, "leet", "inspect", "--json", path], text=True, capture_output=True, timeout=60
    )
    return [json.loads(line) for line in shown.stdout.splitlines()]


@pytest.mark.slow
def test_it_stays_offline_and_says_how_to_upload(finished):
    folder, shown = finished
    [run] = folder.glob("wandb/offline-run-*")
    assert f"upload it with: wandb sync {run}\n" in shown
    assert not (folder.parent / "wandb").exists()  # inside the run folder, not beside it


@pytest.mark.slow
def test_config_curves_samples_and_model_are_there(finished, records):
    text = json.dumps(records)
    for name in (
        "train/loss",
        "eval/loss",
        "learning_rate",
        "hidden_size",
        "sample_by",
        "final_model",
    ):
        assert name in text, name
    [table] = finished[0].glob("wandb/offline-run-*/files/media/table/*.json")
    samples = json.loads((finished[0] / "run.json").read_text())["samples"]
    assert json.loads(table.read_text()) == {
        "columns": ["sample"],
        "data": [[text] for text in samples],
    }


def test_no_file_holds_a_secret(finished):
    """Nor do the files that W&B keeps for an artifact, which lie in HOME."""
    files = [path for path in finished[0].parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and any(
        "artifacts" in path.parts for path in files
    )
    for name, secret in SECRETS.items():
        assert not [path for path in files if secret.encode() in path.read_bytes()], name


@pytest.fixture
def mode(tmp_path, monkeypatch):
    """mode(key, url): WANDB_MODE after the arguments are made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "")  # so that it is as before at the end
    monkeypatch.delenv("NETRC", raising=False)

    def made(key: str | None, url: str, given: str | None = None) -> str | None:
        for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", given), ("WANDB_BASE_URL", url)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_DIR", "x")
        training_arguments(
            {"output_dir": str(tmp_path / "run"), "report_to": "wandb", "use_cpu": True}, width=32
        )
        return os.environ.get("WANDB_MODE")

    return made


def test_online_only_with_a_login_and_a_host_that_answers(mode, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert mode("k" * 40, url) is None  # wandb's own default: online
        assert mode(None, url) == "offline"
        assert mode(None, url, "disabled") == "disabled"
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login user password {'k' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
        assert mode(None, url) is None
    assert mode("k" * 40, "http://127.0.0.1:9") == "offline"
    assert mode("k" * 40, "http://127.0.0.1:9", "online") == "online"


def test_a_run_that_only_logged_yet_is_known_as_one(tmp_path):
    (tmp_path / "wandb" / "offline-run-1-a").mkdir(parents=True)
    assert holds_run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert not holds_run(tmp_path)
    (tmp_path / "other").mkdir()
    assert not holds_run(tmp_path / "other")
