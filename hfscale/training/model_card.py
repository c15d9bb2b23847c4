"""The model card of a finished run: what the Hub shows of a model, in `README.md`."""

import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hfscale.folders import (
    MODEL_CARD,
    VERSIONS_HEADING,
    is_edited_card,
    mark_card,
    write_atomically,
)
from hfscale.generation.task_prompt import TaskPrompt
from hfscale.metrics.intervals import by_note, interval_notes
from hfscale.shown import MARKDOWN_FILTERS, markdown_text, printable, show_text

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
# Of what `Trainer.evaluate` returns: how the evaluation went, not what the model reaches.
NO_RESULTS = ("_runtime", "_per_second", "_tokens")


def write_model_card(
    folder: Path,
    record: dict[str, Any],
    *,
    task: TaskPrompt | None = None,
    hub_model_id: str | None = None,
) -> None:
    """Write the card beside the model, unless there is one that people wrote or edited.

    Args:
        folder: where the model lies.
        record: of the run, as `run.json` holds it.
        task: how the model is asked, if it learned a task.
        hub_model_id: under which the run is pushed; None: it is not.
    """
    path = folder / MODEL_CARD
    if is_edited_card(path):
        show_text(
            f"{path} was written or edited by hand and stays as it is; without it, the run writes "
            "its own card",
            file=sys.stderr,
        )
        return
    name = folder.absolute().name
    card = ModelCard(
        f"---\n{printable(card_data(record, name).to_yaml())}\n---\n\n"
        f"{_card_text(record, name, hub_model_id or name, task)}"
    )
    write_atomically(path, mark_card(str(card)))


def card_data(record: dict[str, Any], name: str) -> ModelCardData:
    """What the Hub reads: kind of model, where it comes from, on what it was trained, how well it
    does. Only what the Hub has goes by its id; folders of this machine are left out.
    """
    model = record["model"]
    config = record["config"]
    base = hub_id(model["base"])
    tags = ["hfscale"]
    if model["adapter"]:
        tags.append(model["adapter"].lower())
    if model["adapter"] and base:
        tags.append(f"base_model:adapter:{base}")
    datasets = [source for source in record["data"]["source"] if hub_id(source)]
    return ModelCardData(
        model_name=name,
        library_name="peft" if model["adapter"] else "transformers",
        pipeline_tag=_task_of(record),
        base_model=base,
        datasets=datasets or None,
        language=config.get("language"),
        license=config.get("license"),
        tags=tags,
        eval_results=_eval_results(record) or None,
    )


def _task_of(record: dict[str, Any]) -> str:
    """The Hub's name for what the model does."""
    return "image-to-text" if _reads_pictures(record) else "text-generation"


def _reads_pictures(record: dict[str, Any]) -> bool:
    return record["model"]["architecture"] == "VisionEncoderDecoderModel"


def _eval_results(record: dict[str, Any]) -> list[EvalResult]:
    """What was measured on the run's own held-out part, as the Hub's `model-index` lists it."""
    sources = record["data"]["source"]
    dataset_names = ", ".join(without_folders(source) for source in sources)
    dataset_ids = [source for source in sources if hub_id(source)]
    results = []
    for name, value in record["metrics"].items():
        is_result = name.startswith("eval_") and not name.startswith("eval_forget_")
        if not is_result or name.endswith(NO_RESULTS):
            continue
        if isinstance(value, int | float) and math.isfinite(value):
            results.append(
                EvalResult(
                    task_type=_task_of(record),
                    dataset_type=dataset_ids[0] if dataset_ids else "text",
                    dataset_name=dataset_names,
                    dataset_split="validation",
                    metric_type=name.removeprefix("eval_"),
                    metric_value=value,
                )
            )
    return results


def _card_text(record: dict[str, Any], name: str, model_id: str, task: TaskPrompt | None) -> str:
    environment = jinja2.Environment(
        finalize=markdown_text,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= MARKDOWN_FILTERS
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    model = record["model"]
    teacher = record["config"].get("teacher_model_name_or_path")
    command = shlex.split(record["command"])
    return template.render(
        record
        | model
        | {
            "name": name,
            "model_id": model_id,
            "base": model["base"] and without_folders(model["base"]),
            "teacher": teacher and without_folders(teacher),
            "sources": [without_folders(source) for source in record["data"]["source"]],
            "command": shlex.join(without_folders(word) for word in command),
            "notes": by_note(interval_notes(record["metrics"])),
            "task": task,
            "reads_pictures": _reads_pictures(record),
            "trust": ", trust_remote_code=True" if record["config"]["trust_remote_code"] else "",
            "versions_heading": VERSIONS_HEADING,
        }
    )


def hub_id(name: str | None) -> str | None:
    """The name, if it can only be the id of a model or data set on the Hub, else None."""
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:  # a pattern of files, embedded:<name>
        return None
    return name


def without_folders(word: str) -> str:
    """A word of a command line; of a place on this machine its last name alone."""
    flag, equals, value = word.rpartition("=")
    if os.path.isabs(value) or os.path.exists(value):
        return f"{flag}{equals}{Path(value).absolute().name}"
    return word
