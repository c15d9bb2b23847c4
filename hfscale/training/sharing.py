"""Trackers and the Hub: what is asked for is checked before a run, and shown or pushed after it."""

import json
import os
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import Trainer, TrainingArguments

from hfscale.folders import SAVING, WORD_CHECKPOINT
from hfscale.lock import LOCK
from hfscale.manifest import check_manifest, has_manifest
from hfscale.process import InputError, host_answers

RECORDS = ("run.json", "export.json")  # one of which a finished folder holds
# Never uploaded: checkpoints, trackers' logs, and what is a pickle.
LOCAL_FILES = [
    LOCK,
    "checkpoint-*",
    f"{WORD_CHECKPOINT}*",
    f"{SAVING}/*",
    "runs/*",
    "wandb/*",
    "*.bin",
]


def check_sharing(args: TrainingArguments) -> None:
    """Set W&B to offline unless there is a login and its host answers (it would else ask, or wait
    for minutes), and its logs into `output_dir`. What the user set in the environment stays.

    Raises:
        InputError: `push_to_hub` without the Hub or a login.
    """
    if "wandb" in trackers_of(args):
        from requests.utils import get_netrc_auth  # wandb brings it

        os.environ.setdefault("WANDB_DIR", str(Path(str(args.output_dir)).absolute()))
        url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        has_login = "WANDB_API_KEY" in os.environ or get_netrc_auth(url)
        if "WANDB_MODE" not in os.environ and not (has_login and host_answers(url)):
            os.environ["WANDB_MODE"] = "offline"
    if args.push_to_hub and (problem := _hub_problem()):
        raise InputError(
            f"push_to_hub: {problem}; leave it out, and upload the run later: hfscale push"
        )


def _hub_problem() -> str | None:
    """Why nothing can be pushed now."""
    if HF_HUB_OFFLINE:
        return "the Hub is not reachable"
    if huggingface_hub.get_token() is None:
        return "no login (set HF_TOKEN, or run: hf auth login)"
    return None


def trackers_of(args: TrainingArguments) -> list[str]:
    """Names of the trackers that a run reports to; upstream has made a list of them by now."""
    if isinstance(args.report_to, str):
        return [args.report_to]
    return args.report_to or []


def share_run(trainer: Trainer) -> None:
    """For rank 0, after `run.json` is written: its settings and samples (a table) for W&B, the
    folder for the Hub.
    """
    output_dir = str(trainer.args.output_dir)
    wandb: Any = sys.modules.get("wandb")
    if "wandb" in trackers_of(trainer.args) and wandb.run is not None:
        _share_with_wandb(wandb, Path(output_dir))
    if trainer.args.push_to_hub:
        _upload(output_dir, str(trainer.hub_model_id), revision=trainer.args.hub_revision)
        _upload_branches(output_dir, str(trainer.hub_model_id))


def push_folder(folder: str, repo_id: str, *, private: bool, overwrite: bool) -> str:
    """A finished run, or an export, as a repository of the Hub; its address. What a run saved after
    so many words becomes a branch of the folder's name, such as chck_1M.

    Args:
        folder: what a recipe left.
        repo_id: owner/name, or the name alone.
        private: whether only its owner sees a new repository; one that exists stays as it is.
        overwrite: add a commit to a repository that exists.

    Raises InputError: no such folder, files that are not as they were written, no login, a name
    that the Hub does not take or that is taken, or what the Hub answers.
    """
    _check_finished(folder)
    if problem := _hub_problem():
        raise InputError(f"push: {problem}")
    hub = huggingface_hub.HfApi()
    try:
        url = hub.create_repo(repo_id, private=private, exist_ok=overwrite)
        address = _upload(folder, url.repo_id)
        _upload_branches(folder, url.repo_id)
        return address
    except HFValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"hub_model_id {repo_id}: {reason}") from None
    except HfHubHTTPError as error:
        if error.response.status_code == HTTPStatus.CONFLICT:
            raise InputError(
                f"hub_model_id {repo_id}: exists on the Hub already; choose another name, or add "
                "a commit to it with --overwrite"
            ) from None
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"push: the Hub does not take {repo_id}: {reason}") from None


def _check_finished(folder: str) -> None:
    """Raise InputError unless a recipe finished there and all is as it left it."""
    if not any(Path(folder, name).is_file() for name in RECORDS):
        raise InputError(
            f"push: {folder} holds none of {', '.join(RECORDS)}; name the folder of a finished run "
            "or export"
        )
    if has_manifest(folder) and (problem := check_manifest(folder)):
        raise InputError(
            f"push: {folder}: {problem} (by its manifest.json); put it back, or delete "
            "manifest.json if you changed it yourself"
        )


def _upload(folder: str, repo_id: str, revision: str | None = None) -> str:
    """The repository's address."""
    uploaded = huggingface_hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        ignore_patterns=LOCAL_FILES,
        revision=revision,
        commit_message="Model, tokenizer, record and card of a finished run",
    )
    branch = f", branch {revision}" if revision else ""
    print(f"pushed to the Hub: {uploaded.repo_url}{branch}")
    return str(uploaded.repo_url)


def _upload_branches(folder: str, repo_id: str) -> None:
    """A model after so many words as a branch, where BabyLM looks for it."""
    for path in sorted(Path(folder).glob(f"{WORD_CHECKPOINT}[0-9]*")):
        huggingface_hub.create_branch(repo_id, branch=path.name, exist_ok=True)
        _upload(str(path), repo_id, revision=path.name)


def _share_with_wandb(wandb: Any, output_dir: Path) -> None:
    """End W&B's run with the settings and samples of ours. `wandb` is the module: it is optional,
    and imported by Trainer.
    """
    record = json.loads((output_dir / "run.json").read_text("utf-8"))
    # The recipe's own settings beside Trainer's.
    wandb.run.config.update(record["config"], allow_val_change=True)
    samples = [[text] for text in record["samples"]]
    wandb.run.log({"samples": wandb.Table(columns=["sample"], data=samples)})
    folder = Path(wandb.run.dir).parent
    is_offline = wandb.run.offline
    wandb.finish()
    if is_offline:
        print(f"W&B kept this run offline; upload it with: wandb sync {folder}")
