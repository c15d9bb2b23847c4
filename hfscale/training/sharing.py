"""Trackers and the Hub: what is asked for is checked before a run, and shown or pushed after it."""

import json
import os
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub.constants import HF_HUB_OFFLINE
from transformers import Trainer, TrainingArguments

from hfscale.process import InputError, host_answers

# Never uploaded: checkpoints, trackers' logs, and what is a pickle.
LOCAL_FILES = ["checkpoint-*", "runs/*", "wandb/*", "*.bin"]


def check_sharing(args: TrainingArguments) -> None:
    """Set W&B to offline unless there is a login and its host answers (it would else ask, or wait
    for minutes), and its logs into `output_dir`. What the user set in the environment stays.

    Raises:
        InputError: `push_to_hub` without the Hub or a login.
    """
    if "wandb" in args.report_to:
        from requests.utils import get_netrc_auth  # wandb brings it

        os.environ.setdefault("WANDB_DIR", str(Path(args.output_dir).absolute()))
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


def share_run(trainer: Trainer) -> None:
    """For rank 0, after `run.json` is written: its settings and samples (a table) for W&B, the
    folder for the Hub.
    """
    wandb = sys.modules.get("wandb")
    if "wandb" in trainer.args.report_to and wandb.run is not None:
        record = json.loads(Path(trainer.args.output_dir, "run.json").read_text("utf-8"))
        wandb.run.config.update(
            record["config"], allow_val_change=True
        )  # the recipe's own beside Trainer's
        wandb.run.log(
            {
                "samples": wandb.Table(
                    columns=["sample"], data=[[text] for text in record["samples"]]
                )
            }
        )
        folder, is_offline = Path(wandb.run.dir).parent, wandb.run.offline
        wandb.finish()
        if is_offline:
            print(f"W&B kept this run offline; upload it with: wandb sync {folder}")
    if trainer.args.push_to_hub:
        done = huggingface_hub.upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=trainer.args.output_dir,
            ignore_patterns=LOCAL_FILES,
            revision=trainer.args.hub_revision,
            commit_message="Model, tokenizer, record and card of a finished run",
        )
        print(f"pushed to the Hub: {done.repo_url}")
