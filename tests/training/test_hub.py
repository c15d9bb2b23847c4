"""Pushing a run to the Hub and loading it by its id, against a server on this machine."""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml

from hfscale.manifest import write_manifest
from hfscale.process import InputError
from hfscale.training import sharing
from hfscale.training.sharing import push_folder
from hfscale.training.training_args import training_arguments
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "x" * 34
QUIET = [
    "--disable_tqdm",
    "--report_to",
    "none",
    "--bf16",
    "false",
    "--use_cpu",
    "--sample_by",
    "line",
]
SHAPE = [
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
]


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def hfscale(place: Path, hub, recipe: str, *words: str, **env: str) -> str:
    """What a recipe prints that works."""
    result = run_hfscale(place, hub, recipe, *words, **env)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def run_hfscale(place: Path, hub, recipe: str, *words: str, **env: str):
    """A recipe as a user runs it; the libraries read HF_ENDPOINT once, at import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = (
        kept
        | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(place / "hf"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        | env
    )
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words],
        cwd=place,
        env=env,
        text=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, hub) -> Path:
    """A folder in which a small model was trained and pushed, and then an adapter for it."""
    place = tmp_path_factory.mktemp("hub")
    (place / "text.txt").write_text("\n".join(f"line {i} counts to {i * 3}" for i in range(80)))
    shown = hfscale(
        place,
        hub,
        "pretrain",
        "--source",
        "text.txt",
        "--output_dir",
        "runs/small",
        "--push_to_hub",
        "--save_steps",
        "2",
        *SHAPE,
        *QUIET,
    )
    assert f"pushed to the Hub: {hub.url}/tester/small" in shown
    hfscale(
        place,
        hub,
        "finetune",
        "--model",
        "tester/small",
        "--source",
        "text.txt",
        "--lora_r",
        "2",
        "--use_dora",
        "--output_dir",
        "runs/tuned",
        "--hub_model_id",
        "tuned-lora",
        "--push_to_hub",
        "--save_strategy",
        "no",
        "--max_steps",
        "4",
        "--learning_rate",
        "1e-2",
        *QUIET,
    )
    return place


@pytest.mark.slow
def test_what_is_pushed_is_the_finished_run(hub, place):
    files = hub.repos["tester/small"]
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "report.html",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    assert all(
        data == (place / "runs" / "small" / name).read_bytes() for name, data in files.items()
    )
    assert (
        len(hub.commits["tester/small"]) == 1
    )  # not once more before the record and the card were written
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(
        hub.repos["tester/tuned-lora"]
    )
    assert "model.safetensors" not in hub.repos["tester/tuned-lora"]


@pytest.mark.slow
def test_a_finished_run_is_pushed_later_and_not_over_another(hub, place):
    shown = hfscale(place, hub, "push", "--model", "runs/small", "--hub_model_id", "later")
    assert shown == f"pushed to the Hub: {hub.url}/tester/later\n"
    assert hub.private["tester/later"]
    assert hub.repos["tester/later"] == hub.repos["tester/small"]
    refused = run_hfscale(place, hub, "push", "--model", "runs/small", "--hub_model_id", "later")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: hub_model_id later: exists on the Hub already; choose another name, or add a "
        "commit to it with --overwrite\n"
    )
    words = ("--hub_model_id", "later", "--overwrite", "--public")
    hfscale(place, hub, "push", "--model", "runs/tuned", *words)
    assert "adapter_config.json" in hub.repos["tester/later"]
    assert hub.private["tester/later"]  # it stays what it was


@pytest.mark.slow
def test_no_file_holds_the_token(hub, place):
    assert {token for _, path, token in hub.requests if "commit" in path} == {TOKEN}
    assert not [
        path
        for path in (place / "runs").rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
    assert not [
        name for repo in hub.repos.values() for name, data in repo.items() if TOKEN.encode() in data
    ]


@pytest.mark.slow
def test_model_card_says_what_it_is(hub, place):
    card = hub.repos["tester/small"]["README.md"].decode()
    record = json.loads(hub.repos["tester/small"]["run.json"])
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    for heading in ("Data", "Held-out text", "Limits", "Samples", "How it was made"):
        assert f"\n## {heading}\n" in card
    assert f"| eval_loss | {record['metrics']['eval_loss']:.6g} |" in card
    data = record["data"]
    assert (
        f"| train | {data['documents']['train']} | {data['bytes']['train']} | "
        f"{data['tokens']['train']} | {data['fingerprint']['train']} |"
    ) in card
    assert record["command"].startswith(
        "hfscale pretrain --source text.txt --output_dir runs/small"
    )
    assert "hfscale pretrain --source text.txt --output_dir small" in card
    assert str(place) not in card
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(
        record["metrics"]["eval_loss"], abs=1e-12
    )
    tuned = hub.repos["tester/tuned-lora"]["README.md"].decode()
    tuned_front = yaml.safe_load(tuned.split("---")[1])
    assert tuned_front["library_name"] == "peft" and tuned_front["base_model"] == "tester/small"
    assert 'AutoPeftModelForCausalLM.from_pretrained("tester/tuned-lora")' in tuned
    assert 'pipeline("text-generation", model="tester/small")' in card
    assert "LORA adapter for a GPT2LMHeadModel, tuned from tester/small" in tuned
    assert re.search(r"with [\d,]+ parameters, of which [\d,]+ were trained", tuned)


@pytest.mark.slow
def test_model_and_adapter_load_by_id(hub, place):
    """The adapter's base is loaded by its id, too; both give the numbers that the folders give."""
    found = {}
    for model in ("tester/small", "runs/small", "tester/tuned-lora", "runs/tuned"):
        folder = f"scores/{model.replace('/', '-')}"
        hfscale(
            place,
            hub,
            "score",
            "--model",
            model,
            "--source",
            "text.txt",
            "--sample_by",
            "line",
            "--output_dir",
            folder,
        )
        [system] = json.loads((place / folder / "scores.json").read_text())["systems"]
        found[model] = system["metrics"]["eval_loss"]
    assert found["tester/small"] == found["runs/small"]
    assert found["tester/tuned-lora"] == pytest.approx(found["runs/tuned"], abs=1e-6)
    assert abs(found["runs/tuned"] - found["runs/small"]) > 1e-3


@pytest.mark.slow
def test_a_cached_id_loads_without_the_hub(hub, place):
    before = len(hub.requests)
    hfscale(
        place,
        hub,
        "generate",
        "--model",
        "tester/tuned-lora",
        "--prompts",
        "line",
        "--max_new_tokens",
        "2",
        HF_HUB_OFFLINE="1",
    )
    assert len(hub.requests) == before


@pytest.mark.slow
def test_pushing_offline_or_without_login_is_refused_at_once(tmp_path, monkeypatch):
    values = {"output_dir": str(tmp_path / "run"), "push_to_hub": True, "use_cpu": True}
    with pytest.raises(
        InputError, match="^push_to_hub: the Hub is not reachable; leave it out, .*hfscale push"
    ):
        training_arguments(values, width=32)
    monkeypatch.setattr("hfscale.training.sharing.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        InputError, match="^push_to_hub: no login .set HF_TOKEN, or run: hf auth login."
    ):
        training_arguments(values, width=32)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds none of run.json, export.json"),
        ({"run.json": "{}"}, "push: no login"),
    ],
)
def test_what_cannot_be_pushed_is_refused(tmp_path, monkeypatch, files, message):
    monkeypatch.setattr("hfscale.training.sharing.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        push_folder(str(tmp_path), "name", private=True, overwrite=False)


def test_a_run_that_was_changed_is_not_pushed(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    write_manifest(tmp_path)
    (tmp_path / "run.json").write_text('{"metrics": {}}')
    with pytest.raises(InputError, match=r"run\.json .*by its manifest\.json"):
        push_folder(str(tmp_path), "name", private=True, overwrite=False)


def test_models_after_so_many_words_become_branches(tmp_path, monkeypatch):
    """Each in the branch of its name, as BabyLM's pipeline asks for it, and none of them in main."""
    pushed = []

    def upload(repo_id, folder_path, ignore_patterns, revision, commit_message):
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*.json")]
        kept = [file for file in files if not any(fnmatch(file, name) for name in ignore_patterns)]
        pushed.append((revision, sorted(kept)))
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")

    for name in ("", "chck_1M", "chck_10M", "checkpoint-5"):
        (tmp_path / "run" / name).mkdir(exist_ok=True, parents=True)
        (tmp_path / "run" / name / "config.json").write_text("{}")
    (tmp_path / "run" / "run.json").write_text("{}")
    branches = []
    monkeypatch.setattr(sharing, "_hub_problem", lambda: None)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="r")
    )
    monkeypatch.setattr(
        huggingface_hub, "create_branch", lambda repo_id, branch, exist_ok: branches.append(branch)
    )
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    assert push_folder(str(tmp_path / "run"), "r", private=True, overwrite=False) == "https://hub/r"
    assert branches == ["chck_10M", "chck_1M"]
    assert pushed == [
        (None, ["config.json", "run.json"]),
        ("chck_10M", ["config.json"]),
        ("chck_1M", ["config.json"]),
    ]
