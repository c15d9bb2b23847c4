"""Trackers and the Hub: what is asked for is checked before a run, and shown or pushed after it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.constants import HF_HUB_OFFLINE
from transformers import Trainer, TrainingArguments

from hfscale.folders import SAVING
from hfscale.lock import LOCK
from hfscale.process import InputError, host_answers

# Never uploaded: checkpoints, trackers' logs, and what is a pickle.
LOCAL_FILES = [LOCK, "checkpoint-*", f"{SAVING}/*", "runs/*", "wandb/*", "*.bin"]


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
    if args.push_to_hub and (HF_HUB_OFFLINE or huggingface_hub.get_token() is None):
        problem = (
            "the Hub is not reachable"
            if HF_HUB_OFFLINE
            else "no login (set HF_TOKEN, or run: hf auth login)"
        )
        raise InputError(
            f"push_to_hub: {problem}; leave it out, and upload the run folder later: hf upload"
        )


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
        uploaded = huggingface_hub.upload_folder(
            repo_id=str(trainer.hub_model_id),
            folder_path=output_dir,
            ignore_patterns=LOCAL_FILES,
            revision=trainer.args.hub_revision,
            commit_message="Model, tokenizer, record and card of a finished run",
        )
        print(f"pushed to the Hub: {uploaded.repo_url}")


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
