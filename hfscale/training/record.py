"""`run.json`: what was done, with which text, on what, and how well it went."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from transformers import PreTrainedModel, Trainer, TrainerState

from hfscale.arguments import OptimizerArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.repacking import table_of
from hfscale.folders import (
    LOADED_FILES,
    RUN_RECORD,
    TRAINING_ARGUMENTS,
    apply_umask,
    describe_run,
    write_json,
)
from hfscale.generation.task_prompt import load_task_prompt
from hfscale.manifest import write_manifest
from hfscale.models import count_parameters, count_trained, weights_fingerprint
from hfscale.report.page import write_page
from hfscale.training.averaging import averaging_of
from hfscale.training.checkpoints import CheckpointManifest
from hfscale.training.cpu_time import cpu_seconds_of
from hfscale.training.model_card import write_model_card
from hfscale.training.preview import memory_at_hand
from hfscale.training.sharing import share_run
from hfscale.training.traces import BatchTrace, Start, trace_of


def write_run(
    trainer: Trainer,
    recipe: str,
    args: Any,
    argv: list[str] | None,
    documents: Mapping[str, Any],
    rows: Mapping[str, Any],
    metrics: dict[str, Any],
    samples: list[str],
    more_data: dict[str, Any] | None = None,
    *,
    seconds: float | None = None,
) -> None:
    """Write the model card and, last, `run.json`, the manifest and the page into `output_dir`; for
    rank 0, after `trainer.save_model()`. What has a tracker or the Hub asked for gets it then.

    Args:
        recipe: the script's `__file__`.
        args: the recipe's checked arguments, a dataclass.
        argv: what `main` was given; None: the command line.
        documents: the texts of each split, as they were read.
        rows: the same as the model got them.
        metrics: numbers by name, with `_ci95` beside those that have an interval.
        samples: texts that the trained model wrote.
        more_data: added to what the record says about the data.
        seconds: since the recipe began.
    """
    folder = Path(str(trainer.args.output_dir))
    model = trainer.accelerator.unwrap_model(trainer.model)
    record = describe_run(recipe, args, argv, seconds)
    record["config"].pop("training", None)  # what was given of what follows
    # The recipe's own come first: TRL's trainer is told some of their names with other values.
    record["config"] = trainer.args.to_dict() | record["config"]
    record["hardware"] |= {
        "cpu_threads": torch.get_num_threads(),
        "device": trainer.args.device.type,
        "world_size": trainer.args.world_size,
        "distributed_type": trainer.accelerator.distributed_type.value,
    }
    start = _start_of(trainer, documents)
    record |= {
        "data": _describe_data(args, documents, rows, start) | (more_data or {}),
        "model": {
            **_describe_model(model, args),
            "initial_fingerprint": start.initial_weights,
            "fingerprint": weights_fingerprint(str(folder)),
        },
        "train": _describe_training(trainer, model, rows, args),
        "metrics": metrics,
        "samples": samples,
    }
    record = _json_values(record)
    apply_umask(folder)
    hub_model_id = trainer.hub_model_id if trainer.args.push_to_hub else None
    task = load_task_prompt(str(folder))
    write_model_card(folder, record, task=task, hub_model_id=hub_model_id)
    write_json(folder / RUN_RECORD, record)  # a run with it is done
    patterns = [*LOADED_FILES, "trainer_state.json"]
    if not trainer.args.push_to_hub:  # where no pickle is uploaded
        patterns.append(TRAINING_ARGUMENTS)
    write_manifest(folder, patterns=patterns)
    write_page(folder)
    share_run(trainer)


def _start_of(trainer: Trainer, documents: Mapping[str, Any]) -> Start:
    """What the training began with. A recipe of one's own may not have said with which text."""
    start = _trace_of(trainer).start
    assert start is not None, "on rank 0"
    if documents.keys() <= start.text.keys():
        return start
    return start._replace(text=_of_each(documents, text_fingerprint))


def _trace_of(trainer: Trainer) -> BatchTrace:
    trace = trace_of(trainer)
    assert trace is not None, "kept by `run_training`"
    return trace


def _describe_data(
    args: Any, documents: Mapping[str, Any], rows: Mapping[str, Any], start: Start
) -> dict[str, Any]:
    return {
        "source": getattr(args, "task_source", None) or args.source,
        "dropped": {},
        "fingerprint": start.text,
        "tokenizer_fingerprint": start.tokenizer,
        "documents": _of_each(documents, len),
        "bytes": _of_each(rows, lambda part: sum(table_of(part)["num_bytes"])),
        "tokens": _of_each(rows, lambda part: sum(table_of(part)["num_tokens"])),
    }


def _of_each(splits: Mapping[str, Any], count: Callable[[Any], Any]) -> dict[str, Any]:
    """None: a stream, which would have to be read to its end."""
    return {
        name: None if isinstance(part, IterableDataset) else count(part)
        for name, part in splits.items()
    }


def _describe_model(model: PreTrainedModel, args: Any) -> dict[str, Any]:
    """`base` is the checkpoint that was tuned; `adapter` the method of one that is kept beside it,
    not merged in.
    """
    adapters = getattr(model, "peft_config", {})
    below_adapter = getattr(model, "get_base_model", None)
    plain = below_adapter() if below_adapter else model
    is_merged = getattr(args, "merge", False)
    counts = count_parameters(model)
    trained = count_trained(model)
    if is_merged:  # what was trained is part of the other weights now
        counts = {name: count - trained for name, count in counts.items()}
    started_from = getattr(args, "model", "new")
    base = None if started_from == "new" else started_from
    methods = [config.peft_type.value for config in adapters.values()]
    return {
        "architecture": type(plain).__name__.removeprefix("FSDP"),
        **counts,
        "trained_parameters": trained,
        "base": base,
        "base_fingerprint": weights_fingerprint(base) if base else None,
        "adapter": methods[0] if methods and not is_merged else None,
    }


def _describe_training(
    trainer: Trainer, model: PreTrainedModel, rows: Mapping[str, Any], args: Any
) -> dict[str, Any]:
    tokens = int(trainer.state.num_input_tokens_seen)
    seconds = _training_seconds(trainer.state)
    # Of a run that went on, the seconds are those of its last part.
    tokens_per_second = (tokens - _tokens_before(trainer)) / seconds if seconds else None
    # Pairs of answers are made into rows by TRL; what they take is not planned.
    has_rows = "input_ids" in next(iter(rows["train"]))
    planned_bytes = None
    if has_rows:
        optimizer = args if isinstance(args, OptimizerArguments) else None
        planned = memory_at_hand(model, trainer.args, rows["train"], optimizer)
        planned_bytes = sum(planned.values())
    averaging = averaging_of(trainer)
    return {
        "tokens": tokens,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds_of(trainer),  # of rank 0
        "tokens_per_second": tokens_per_second,
        "flops": trainer.state.total_flos or None,  # some trainers of TRL count none
        "mfu": None,
        "batches_fingerprint": _trace_of(trainer).fingerprint,
        "bound_to_world_size": _settings_of(trainer).get("world_size") is not None,
        "weight_average": str(averaging) if averaging else None,
        "memory_peak_bytes": _peak_bytes(trainer.args.device),
        "memory_planned_bytes": planned_bytes,
    }


def _settings_of(trainer: Trainer) -> dict[str, Any]:
    """What a continuation must have in common with the run; see `settings_of_run`."""
    manifest = _manifest_of(trainer)
    return manifest.settings if manifest else {}


def _tokens_before(trainer: Trainer) -> int:
    """Tokens that earlier parts of the run have seen."""
    manifest = _manifest_of(trainer)
    return manifest.tokens_before if manifest else 0


def _manifest_of(trainer: Trainer) -> CheckpointManifest | None:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, CheckpointManifest):
            return callback
    return None


def _training_seconds(state: TrainerState) -> float | None:
    """Of the training alone, as Trainer logged it last."""
    for log in reversed(state.log_history):
        if "train_runtime" in log:
            return log["train_runtime"]
    return None


def _peak_bytes(device: torch.device) -> int | None:
    """Of the GPU's allocator; on a CPU of the whole process, so libraries and data count too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if find_spec("resource") is None:  # Windows
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return peak * unit_bytes


def _json_values(record: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON has it: other objects as their text, numbers that are not finite (an
    overflown perplexity) as null.
    """

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        if isinstance(value, list):
            return [finite(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return finite(json.loads(json.dumps(record, default=str)))
