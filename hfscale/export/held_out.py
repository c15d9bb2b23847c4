"""The text that a run of any recipe held out, found again through its run.json."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.splits import load_run_splits
from hfscale.process import InputError
from hfscale.tasks.examples import example_texts, load_task
from hfscale.tasks.preferences import load_preferences


def held_out_texts(
    run_folder: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    trust_remote_code: bool = False,
) -> list[str]:
    """Documents of a text, examples of a task with their answers, or pairs of answers.

    Args:
        max_length: longest pair in tokens; of pairs alone.

    Raises InputError: no run.json that names them, or their source is not there any more.
    """
    record = _record(run_folder)
    config = record["config"]
    if config.get("task_source"):
        args = TaskArguments(**_of_class(config, TaskArguments))
        return example_texts(load_task(args, seed=config["seed"]))["validation"]["text"]
    if record["recipe"] == "finetune_preference":
        pairs, _ = load_preferences(
            config["source"],
            tokenizer,
            seed=config["seed"],
            max_length=config["max_length"] or max_length,
            validation_fraction=config["validation_fraction"],
            loss_type=config.get("loss_type", "sigmoid"),
        )
        return pairs["validation"]["text"]
    return load_run_splits(run_folder, trust_remote_code=trust_remote_code)["validation"]["text"]


def _record(run_folder: str) -> dict[str, Any]:
    try:
        record = json.loads(Path(run_folder, "run.json").read_text("utf-8"))
        is_run = {"recipe", "config"} <= set(record) and "seed" in record["config"]
    except (OSError, ValueError, TypeError):
        is_run = False
    if not is_run:
        raise InputError(
            f"source: missing, and {run_folder} has no run.json that names the text of a run; "
            'give some, as in --source "books/*.txt"'
        )
    return record


def _of_class(config: dict[str, Any], kind: type) -> dict[str, Any]:
    """What a run's config says of a class' arguments; older runs have not all of the names."""
    return {item.name: config[item.name] for item in fields(kind) if item.name in config}
