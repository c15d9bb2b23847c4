"""A longer context for a model with rotary positions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hfscale.folders import BY_POSITION, write_json
from hfscale.metrics.positions import draw_by_position, perplexity_by_position, position_edges
from hfscale.models import check_models
from hfscale.process import InputError
from hfscale.report.tables import number, show_table
from hfscale.shown import show_text


def longer_context(
    name: str, max_position_embeddings: int, rope_scaling: str, *, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The configuration of a saved model for contexts of so many tokens.

    Args:
        name: folder or Hub id.
        max_position_embeddings: tokens, more than the model reads now.
        rope_scaling: transformers' `rope_type`: `linear` (all positions moved closer together,
            Chen et al. 2023, arXiv:2306.15595), `yarn` (only those of slow rotations, Peng et al.
            2023, arXiv:2309.00071) or `default` (positions as they were).

    Raises:
        InputError: the model has a learned vector for each position, or its positions are scaled
            already, or differ from layer to layer; the context is not longer. See also
            `check_models`.
    """
    check_models([name], trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    place = f"max_position_embeddings {max_position_embeddings}: model {name}"
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        raise InputError(
            f"{place} ({config.model_type}) has no rotary positions that could be stretched; take "
            "one that has, such as a new llama (pretrain --architecture llama)"
        )
    if "rope_type" not in rope:
        raise InputError(f"{place} has other rotary positions in some layers, which is not offered")
    if rope["rope_type"] != "default":
        raise InputError(
            f"{place} has rotary positions that are scaled already ({rope['rope_type']}); take the "
            "model that it was made from"
        )
    before = config.max_position_embeddings
    if max_position_embeddings <= before:
        raise InputError(f"{place} reads {before} tokens already; ask for more")
    if rope_scaling != "default":
        rope = rope | {"rope_type": rope_scaling, "factor": max_position_embeddings / before}
    if rope_scaling == "yarn":
        rope["original_max_position_embeddings"] = before
    config.rope_parameters = rope
    config.max_position_embeddings = max_position_embeddings
    return config


def check_reaches(rows: Mapping[str, Dataset], name: str) -> None:
    """Raise InputError unless rows for training and for evaluation hold tokens beyond the context
    of the model that is stretched.
    """
    context = AutoConfig.from_pretrained(name).max_position_embeddings
    for part in ("train", "validation"):
        longest = _longest_context(rows[part])
        if longest <= context:
            raise InputError(
                f"max_position_embeddings: no {part} document is longer than {longest} tokens, "
                f"and the model reads {context} already: a longer context would neither be learned "
                "nor measured; give longer documents, or a longer --max_length"
            )


def _longest_context(rows: Dataset) -> int:
    """Most tokens of a document in one row."""
    if "position_ids" not in rows.column_names:  # a row holds one document
        return max(map(len, rows["input_ids"]))
    return 1 + max(max(positions) for positions in rows["position_ids"])


def report_by_position(
    output_dir: str,
    models: Mapping[str, PreTrainedModel],
    rows: Dataset,
    batch_size: int,
) -> None:
    """Print the perplexity of each model by position, and leave it in `output_dir` as JSON and as a
    picture.

    Args:
        output_dir: the run's folder.
        models: by the name that the table shows; the first is the one before the training.
        rows: held out and packed.
        batch_size: rows at once.
    """
    context = next(iter(models.values())).config.max_position_embeddings
    longest = len(rows[0]["input_ids"])
    edges = position_edges(context, longest)
    ranges = {
        name: perplexity_by_position(model, rows, edges, batch_size)
        for name, model in models.items()
    }
    record, picture = (Path(output_dir, name) for name in BY_POSITION)
    write_json(record, {"context": context, **ranges})
    draw_by_position(picture, ranges, context)
    shown = [_table_row(list(of_models)) for of_models in zip(*ranges.values(), strict=True)]
    show_table(["tokens before", "predicted", *(f"perplexity {name}" for name in ranges)], shown)
    show_text(f"perplexity by position: {picture}")


def _table_row(of_models: list[dict[str, Any]]) -> list[str]:
    """One range of positions; which tokens it holds is the same for all models."""
    first = of_models[0]
    cells = [f"{first['first_position']} to {first['last_position']}", f"{first['tokens']:,}"]
    for one in of_models:
        interval = one["perplexity_ci95"]
        ends = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
        cells.append(f"{number(one['perplexity'])}{ends}")
    return cells
