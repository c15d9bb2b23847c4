"""Perplexity by how much of its document a token is predicted from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from torch.nn import functional as F
from transformers import PreTrainedModel

from hfscale.data.packing import IGNORED, collate_rows
from hfscale.metrics.intervals import estimate
from hfscale.report.pictures import in_picture


def position_edges(context: int, longest: int) -> list[int]:
    """Where ranges of positions begin, and the end of the last one: quarters up to `context`, then
    each half as far again as the power of two before it, up to `longest`.
    """
    edges = [1, *(context * quarter // 4 for quarter in (1, 2, 3))]
    edge = context
    while edge < longest:
        edges += [edge, edge * 3 // 2]
        edge *= 2
    return sorted({edge for edge in edges if 1 <= edge < longest}) + [longest]


@torch.inference_mode()
def sums_by_position(
    model: PreTrainedModel, rows: Dataset, edges: Sequence[int], batch_size: int
) -> np.ndarray:
    """Summed negative log-likelihood in nats and number of targets, (rows, ranges, 2).

    Args:
        model: any causal language model, in float32.
        rows: as `pack_documents` gives them.
        edges: range i holds the tokens with at least edges[i] and fewer than edges[i + 1] tokens
            of their document before them in their row.
        batch_size: rows at once.
    """
    was_training = model.training
    model.eval()
    sums: list[np.ndarray] = []
    for start in range(0, len(rows), batch_size):
        chosen = rows.select(range(start, min(start + batch_size, len(rows))))
        batch = collate_rows(list(chosen))
        labels = batch.pop("labels")
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        logits = model(**inputs, use_cache=False).logits.cpu()
        whole_rows = torch.arange(labels.shape[1]).expand_as(labels)
        positions = batch.get("position_ids", whole_rows)
        sums += [
            _sums_of_row(*row, edges=edges) for row in zip(logits, labels, positions, strict=True)
        ]
    model.train(was_training)
    return np.stack(sums)


def _sums_of_row(
    logits: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, *, edges: Sequence[int]
) -> np.ndarray:
    """(ranges, 2), see `sums_by_position`."""
    nll = F.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=IGNORED, reduction="none")
    is_target = labels[1:] != IGNORED
    # The place that predicts a token is itself one of those before it.
    tokens_before = positions[:-1][is_target].numpy() + 1
    index = np.digitize(tokens_before, edges) - 1
    ranges = len(edges) - 1
    nll_sums = np.bincount(index, nll[is_target].double().numpy(), minlength=ranges)
    return np.stack([nll_sums, np.bincount(index, minlength=ranges)], axis=1)


def perplexity_by_position(
    model: PreTrainedModel, rows: Dataset, edges: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    """Of each range of positions that holds tokens: `first_position`, `last_position`, `tokens`,
    `perplexity` and `perplexity_ci95` (resampled rows); see `sums_by_position`.
    """
    sums = sums_by_position(model, rows, edges, batch_size)
    ranges = []
    for number, (first, end) in enumerate(zip(edges, edges[1:], strict=False)):
        columns = sums[:, number]
        columns = columns[columns[:, 1] > 0]
        if len(columns):
            ranges.append(
                {
                    "first_position": first,
                    "last_position": end - 1,
                    "tokens": int(columns[:, 1].sum()),
                    **estimate(columns, _perplexity),
                }
            )
    return ranges


def _perplexity(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"perplexity": np.exp(sums[..., 0] / sums[..., 1])}


def draw_by_position(
    path: Path, ranges_by_model: Mapping[str, Sequence[Mapping[str, Any]]], context: int
) -> None:
    """A PNG with a line per model over the positions; a vertical line stands at `context`."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, ranges in ranges_by_model.items():
        middles = [(one["first_position"] + one["last_position"]) / 2 for one in ranges]
        values = [one["perplexity"] for one in ranges]
        axes.plot(middles, values, marker="o", ms=3, label=in_picture(name))
        intervals = [one["perplexity_ci95"] for one in ranges]
        if all(intervals):
            lows, highs = zip(*intervals, strict=True)
            axes.fill_between(middles, lows, highs, alpha=0.2)
    axes.axvline(context, color="gray", lw=1, ls="--", label=f"context before: {context}")
    axes.set_yscale("log")
    # Plain numbers, as many in a narrow range as in a wide one.
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_title("perplexity along the context")
    axes.set_xlabel("tokens of the document before the predicted one")
    axes.set_ylabel("perplexity")
    axes.legend()
    figure.savefig(path, dpi=120)
