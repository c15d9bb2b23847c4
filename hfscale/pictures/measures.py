"""How well captions say what is in the pictures, and whether the model looked at them at all."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase, Trainer

from hfscale.generation.terminal import command_line
from hfscale.metrics.batches import run_batches
from hfscale.metrics.evaluate_metrics import compute_with_intervals, load_metrics
from hfscale.metrics.intervals import (
    Statistics,
    by_note,
    compare_paired,
    drawn_floor,
    estimate,
    interval_notes,
)
from hfscale.pictures.rows import PictureCollator
from hfscale.report.tables import show_records
from hfscale.shown import show_text
from hfscale.training.steps import show_place

METRICS = ("exact_match", "bleu")
ALL = "attribute_accuracy"  # the mean over the attributes
SAMPLES = 3  # captions that are shown and recorded


def write_captions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    collate: PictureCollator,
    pictures: Sequence[bytes],
    *,
    batch_size: int,
    max_new_tokens: int,
    progress: bool = False,
) -> list[str]:
    """The likeliest caption of each picture (as `examples.FEATURES` has it), token by token; on
    every rank all of them.
    """
    starts = range(0, len(pictures), batch_size)
    batches = [pictures[start : start + batch_size] for start in starts]

    def answer(batch: Sequence[bytes]) -> list[str]:
        pixel_values = collate.pixel_values(batch).to(model.device)
        ids = model.generate(pixel_values=pixel_values, max_new_tokens=max_new_tokens)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    was_training = model.training
    model.eval()
    with torch.inference_mode():
        texts = run_batches(batches, answer, desc="captions", progress=progress)
    model.train(was_training)
    return [text.strip() for batch in texts for text in batch]


def without_picture(pictures: Sequence[bytes], baseline: str) -> list[bytes]:
    """What a model sees that is to be judged without the right picture: that of an example half of
    all away, or one even grey.
    """
    if baseline == "blank_pictures":
        return [bytes([127]) * len(picture) for picture in pictures]
    half = max(1, len(pictures) // 2)
    return [*pictures[half:], *pictures[:half]]


def said(text: str, values: Sequence[str]) -> list[str]:
    """Which values of an attribute stand in a text as whole words, but those inside longer ones
    that do ("left" in "top left").
    """
    found = [v for v in values if re.search(rf"(?<!\w){re.escape(v)}(?!\w)", text)]
    return [v for v in found if not any(v != other and v in other for other in found)]


class CaptionMetrics:
    """Judges captions of the held-out examples: exact match and BLEU, and for each attribute the
    share of captions that say its value and no other of that attribute's values.

    Args:
        examples: of `load_examples`.
        attributes: their names, in the order of the column `attributes`; none: they are not judged.
    """

    def __init__(self, examples: DatasetDict, attributes: Sequence[str]):
        self.names = [f"{name}_accuracy" for name in attributes]
        self.held_out = examples["validation"]
        seen = [row for split in examples.values() for row in split["attributes"]]
        # Of each attribute its values, longest first.
        self.values = [sorted(set(column)) for column in zip(*seen, strict=True)]
        self.texts = evaluate.combine(load_metrics(METRICS, {}))

    def measure(self, captions: Sequence[str]) -> tuple[dict[str, Any], list[Statistics]]:
        """The values with their 95 % intervals, in percent, and what they are computed from."""
        references = [[text] for text in self.held_out["text"]]
        inputs: dict[str, list] = {"predictions": list(captions), "references": references}
        measured = compute_with_intervals(self.texts, inputs)
        statistics = [metric.statistics for metric in self.texts.evaluation_modules]
        if self.names:
            judged = Statistics(self._right(captions), self._attribute_values)
            measured |= estimate(judged.rows, judged.values)
            statistics.append(judged)
        return measured, statistics

    def _right(self, captions: Sequence[str]) -> np.ndarray:
        """(captions, attributes + 2): is each right, the share that is, and 1."""
        rows = []
        for text, wanted in zip(captions, self.held_out["attributes"], strict=True):
            right = [
                said(text, values) == [value]
                for values, value in zip(self.values, wanted, strict=True)
            ]
            rows.append([*right, np.mean(right), 1.0])
        return np.array(rows, np.float64)

    def _attribute_values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        names = [*self.names, ALL]
        return {name: 100 * sums[..., i] / sums[..., -1] for i, name in enumerate(names)}


def measure_captions(
    trainer: Trainer, judge: CaptionMetrics, args: Any, when: str
) -> tuple[dict[str, Any], list[Statistics], list[str]]:
    """(metrics, statistics, captions) of the trainer's model on the held-out pictures.

    Args:
        when: `eval` and `before_eval`: with the pictures; `baseline`: with what `args.baseline`
            says in their place. Names of metrics begin with it.
    """
    pictures = judge.held_out["picture"][:]
    if when == "baseline":
        pictures = without_picture(pictures, args.baseline)
    tokenizer, collate = trainer.processing_class, trainer.data_collator
    assert isinstance(tokenizer, PreTrainedTokenizerBase) and isinstance(collate, PictureCollator)
    captions = write_captions(
        trainer.accelerator.unwrap_model(trainer.model),
        tokenizer,
        collate,
        pictures,
        batch_size=trainer.args.per_device_eval_batch_size,
        max_new_tokens=args.max_new_tokens,
        progress=not trainer.args.disable_tqdm,
    )
    measured, statistics = judge.measure(captions)
    return {f"{when}_{name}": value for name, value in measured.items()}, statistics, captions


def picture_effect(
    without: Sequence[Statistics], with_pictures: Sequence[Statistics]
) -> dict[str, Any]:
    """{picture_effect_<metric>: by how much it is better with the right picture than without}, with
    the interval and p-value of a comparison picture by picture (see `compare_paired`).
    """
    effect: dict[str, Any] = {}
    for before, after in zip(without, with_pictures, strict=True):
        floor = drawn_floor(before.rows, after.rows)
        compared = compare_paired(before.rows, after.rows, after.values)
        for name, found in compared.items():
            effect[f"picture_effect_{name}"] = found["difference"]
            effect[f"picture_effect_{name}_ci95"] = found["difference_ci95"]
            effect[f"picture_effect_{name}_p_value"] = found["p_value"]
            if floor is not None:
                effect[f"picture_effect_{name}_p_value_floor"] = floor
    return effect


def sample_texts(examples: Dataset, captions: Sequence[str]) -> list[str]:
    """The first few captions, each with its picture's place and the reference."""
    shown = examples.take(min(SAMPLES, len(examples)))
    return [
        f"{example['place']}\n--- caption: {caption}\n--- reference: {example['text']}"
        for example, caption in zip(shown, captions, strict=False)
    ]


def caption_records(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each metric: before training, without the picture, after training."""
    records = []
    for name in metrics:
        metric = name.removeprefix("before_eval_")
        if metric != name and not name.endswith("_ci95"):
            records.append(
                {
                    "held out": metric.replace("_", " "),
                    "before training": metrics[name],
                    "other picture": metrics[f"baseline_{metric}"],
                    "after training": metrics[f"eval_{metric}"],
                    "after training_ci95": metrics[f"eval_{metric}_ci95"],
                }
            )
    return records


def show_captions(output_dir: str, metrics: Mapping[str, Any], samples: Sequence[str]) -> None:
    """Print the metrics before, after and with a wrong picture, what intervals cannot show, some
    captions, and what comes next.
    """
    show_records(caption_records(metrics))
    after = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    for note, about in by_note(interval_notes(after)).items():
        show_text(f"{about}: {note}")
    for sample in samples:
        show_text(f"\n{sample}")
    print()
    show_place(output_dir)
    command = command_line("generate", "--model", output_dir, "--pictures", "FILE")
    show_text(f"next: {command}")
