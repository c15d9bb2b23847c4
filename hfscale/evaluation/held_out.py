"""The text that a training run kept for validation."""

import json
from dataclasses import fields
from pathlib import Path

from datasets import Dataset

from hfscale.config import DataArguments, InputError
from hfscale.data.corpus import count_bytes, load_splits


def load_held_out(folder: str) -> Dataset:
    """The validation documents of the run in `folder`, found again through its run.json.

    Raises:
        InputError: no run.json that names its data, or the source is no longer the text of that run.
    """
    try:
        record = json.loads(Path(folder, "run.json").read_text("utf-8"))
        data = DataArguments(**{f.name: record["config"][f.name] for f in fields(DataArguments)})
        seed, num_bytes = record["config"]["seed"], record["data"]["bytes"]["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--source: missing, and {folder} holds no run.json that names its validation text") from None
    documents = load_splits(data, seed=seed)["validation"]
    if count_bytes(documents) != num_bytes:
        raise InputError(f"--source: missing, and {data.source} is no longer the text of the run in {folder}; "
                         "give --source")
    return documents
