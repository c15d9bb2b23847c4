"""`run.json` and the model card: what was done, with which text, on what, and how well it went."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, Trainer

from hfscale.data.fingerprints import text_fingerprint
from hfscale.folders import write_atomically
from hfscale.metrics.intervals import by_note, interval_notes
from hfscale.models import count_parameters, count_trained, weights_fingerprint
from hfscale.process import versions
from hfscale.tasks.prompt import TaskPrompt, load_task_prompt
from hfscale.training.preview import memory_at_hand
from hfscale.training.sharing import share_run


def write_run(
    trainer: Trainer,
    recipe: str,
    args: Any,
    argv: list[str] | None,
    documents: DatasetDict,
    rows: DatasetDict,
    metrics: dict[str, Any],
    samples: list[str],
    more_data: dict[str, Any] | None = None,
) -> None:
    """Write the model card and, last, `run.json` into `output_dir`; for rank 0, after
    `trainer.save_model()`. `more_data` is added to what the record says about the data.
    """
    folder, state, device = Path(trainer.args.output_dir), trainer.state, trainer.args.device
    model, tokens = (
        trainer.accelerator.unwrap_model(trainer.model),
        int(state.num_input_tokens_seen),
    )
    seconds = next(
        (log["train_runtime"] for log in reversed(state.log_history) if "train_runtime" in log),
        None,
    )
    has_rows = "input_ids" in next(
        iter(rows["train"])
    )  # pairs of answers are made into rows by TRL
    planned = sum(memory_at_hand(model, trainer.args, rows["train"]).values()) if has_rows else None
    record = {
        "schema_version": 1,
        "recipe": Path(recipe).stem,
        "command": shlex.join([Path(recipe).name, *(sys.argv[1:] if argv is None else argv)]),
        "config": {k: v for k, v in asdict(args).items() if k != "training"}
        | trainer.args.to_dict(),
        "data": {
            "source": getattr(args, "task_source", None) or args.source,
            "dropped": {},
            "fingerprint": _of_each(documents, text_fingerprint),
            "documents": _of_each(documents, len),
            "bytes": _of_each(rows, lambda part: sum(part["num_bytes"])),
            "tokens": _of_each(rows, lambda part: sum(part["num_tokens"])),
        }
        | (more_data or {}),
        "model": _describe_model(model, args),
        "hardware": {
            "device": device.type,
            "device_name": _device_name(device),
            "cpu_cores": os.cpu_count(),
            "world_size": trainer.args.world_size,
            "distributed_type": trainer.accelerator.distributed_type.value,
        },
        "versions": versions(),
        "train": {
            "tokens": tokens,
            "steps": state.global_step,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else None,
            "flops": state.total_flos,
            "mfu": None,
            "memory_peak_bytes": _peak_bytes(device),
            "memory_planned_bytes": planned,
        },
        "metrics": metrics,
        "samples": samples,
    }
    write_atomically(folder / "README.md", _model_card(record, load_task_prompt(str(folder))))
    write_atomically(
        folder / "run.json", json.dumps(record, indent=2, default=str) + "\n"
    )  # last: a run with it is done
    share_run(trainer)


def _peak_bytes(device: torch.device) -> int | None:
    """Of the GPU's allocator; on a CPU of the whole process, so libraries and data count too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if find_spec("resource") is None:  # Windows
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _describe_model(model: PreTrainedModel, args: Any) -> dict[str, Any]:
    """`base` is the checkpoint that was tuned; `adapter` the method of one that is kept beside it,
    not merged in.
    """
    adapters = getattr(model, "peft_config", {})
    plain, merged = model.get_base_model() if adapters else model, getattr(args, "merge", False)
    counts, trained = count_parameters(model), count_trained(model)
    base = None if getattr(args, "model", "new") == "new" else args.model
    return {
        "architecture": type(plain).__name__.removeprefix("FSDP"),
        **{name: count - trained * merged for name, count in counts.items()},
        "trained_parameters": trained,
        "base": base,
        "base_fingerprint": base and weights_fingerprint(base),
        "adapter": None
        if merged
        else next((str(config.peft_type.value) for config in adapters.values()), None),
    }


def _of_each(splits: DatasetDict, count: Callable[[Dataset], Any]) -> dict[str, Any]:
    """None: a stream, which would have to be read to its end."""
    return {
        name: count(part) if isinstance(part, Dataset) else None for name, part in splits.items()
    }


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )


def _model_card(record: dict[str, Any], task: TaskPrompt | None) -> str:
    template = jinja2.Template(
        Path(__file__).with_name("model_card.md.j2").read_text("utf-8"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    notes = by_note(interval_notes(record["metrics"]))
    return template.render(
        record, notes=notes, name=Path(record["config"]["output_dir"]).name, task=task
    )
