"""What `hfscale.probes.attention` found, as pictures and as one page that opens from disk."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from hfscale.folders import write_atomically
from hfscale.probes.attention_steps import Explanation
from hfscale.report.page import template
from hfscale.shown import printable_values

MAP_BYTES = 2_000_000  # of weights on the page; with the rest it stays below 3 MB
SHOWN = 24  # rows and columns of each matrix that explains a head
SECOND = "held_out"  # in the record: the same of a sentence of the run's held-out text
FROM = ("given", "of the run's held-out text")
OF_READING = ("sentence", "tokens", "loss", "heads", "logit_lens", "explain")
MOST_INCHES = 24  # of a picture's side: with more heads or layers the maps get smaller


def draw_maps(weights: np.ndarray, path: Path) -> None:
    """All heads of all layers, (layers, heads, tokens, tokens), in one picture; the shade grows
    with the root of the weight, so that the small ones of a long text show.
    """
    layers, heads, tokens, _ = weights.shape
    side = tokens + 1  # of a map with a white line beside it and below it
    framed = np.pad(weights, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    rows_of_maps = framed.transpose(0, 2, 1, 3).reshape(layers * side, heads * side)
    width = min(heads, MOST_INCHES)
    height = min(layers, MOST_INCHES) * width / heads
    figure = Figure(figsize=(2 + width, 1 + height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(rows_of_maps, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    axes.set(
        xlabel="head",
        ylabel="layer",
        title="what each token (row) attends to (column)",
        xticks=(np.arange(heads) + 0.5) * side - 1,
        xticklabels=range(heads),
        yticks=(np.arange(layers) + 0.5) * side - 1,
        yticklabels=range(layers),
    )
    figure.colorbar(image, label="weight", shrink=0.8)
    figure.savefig(path, dpi=120)


def draw_scores(scores: dict[str, np.ndarray], path: Path) -> None:
    """Each score as a map of layers and heads."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, 3).flat, scores.items(), strict=True):
        if values.min() < 0:  # white is 0, and the two colours are the two signs
            largest = abs(values).max()
            image = axes.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-largest, vmax=largest)
        else:
            image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0)
        axes.set(title=name.replace("_", " "), xlabel="head", ylabel="layer")
        axes.locator_params(integer=True)
        figure.colorbar(image)
    figure.savefig(path, dpi=120)


def conclusion(explained: Explanation) -> str:
    """One sentence: whether the steps gave what the model computed, with the measured
    difference.
    """
    verdict = (
        "equal the model's own to"
        if explained["equal"]
        else "DIFFER from the model's own by more than"
    )
    difference = explained["difference"]
    return (
        f"A, Z and O {verdict} {explained['tolerance']:g} of the largest number in each (at least "
        f"1): the largest difference is {difference['weights']:.1e} in the weights, "
        f"{difference['head']:.1e} in what the head gives and {difference['output']:.1e} in the "
        "layer's attention output."
    )


def with_conclusion(explained: Explanation) -> dict[str, Any]:
    """A head's steps as the record holds them."""
    return {**explained, "conclusion": conclusion(explained)}


def without_values(record: dict[str, Any]) -> dict[str, Any]:
    """The record without the matrices of the steps, which the page shows."""
    cut = dict(record)
    if record["explain"]:
        steps = [{**step, "values": None} for step in record["explain"]["steps"]]
        cut["explain"] = record["explain"] | {"steps": steps}
    if record.get(SECOND):
        cut[SECOND] = without_values(record[SECOND])
    return cut


def as_text(record: dict[str, Any]) -> str:
    """What the record says, for a terminal."""
    return template(Path(__file__).with_name("attention.txt.j2")).render(record)


def write_page(path: Path, record: dict[str, Any], weights: Sequence[np.ndarray]) -> None:
    """One HTML file without any other: maps with weights on hover, scores, logit lens, and the
    steps of one head, of the sentence and of the second one, if the record holds one.

    `weights` (layers, maps, tokens, tokens) of each sentence may hold more maps per layer than the
    heads that `record` scores: the last is the rollout. A long sentence is cut on the page, not in
    the files beside it.
    """
    readings = [record, *([record[SECOND]] if record.get(SECOND) else [])]
    layers, maps, _, _ = weights[0].shape
    # A map of n tokens is n (n + 1) / 2 numbers of two bytes, which base64 makes a third longer.
    most_tokens = int((MAP_BYTES * 3 / 4 / layers / maps / len(readings)) ** 0.5)
    explained = record.get("explain")
    data = {name: value for name, value in record.items() if name not in (*OF_READING, SECOND)} | {
        "maps": [layers, maps],
        "explained": explained and [explained["layer"], explained["head"]],
        "readings": [
            _reading(part, maps_of_part, most_tokens, said)
            for part, maps_of_part, said in zip(readings, weights, FROM, strict=False)
        ],
    }
    # Within a script element "<" could end it.
    text = json.dumps(printable_values(data), ensure_ascii=False, allow_nan=False)
    text = text.replace("<", "\\u003c")
    page = Path(__file__).with_name("attention.html").read_text("utf-8")
    write_atomically(path, page.replace("__DATA__", text))


def _reading(
    part: dict[str, Any], weights: np.ndarray, most_tokens: int, said: str
) -> dict[str, Any]:
    """What the page shows of one sentence; `said` is where it is from."""
    shown_tokens = min(weights.shape[-1], most_tokens)
    lower = weights[..., *np.tril_indices(shown_tokens)]
    two_bytes = np.rint(lower * 65535).astype("<u2").tobytes()
    explained = part.get("explain")
    if explained:
        steps = [{**step, "values": _corner(step["values"])} for step in explained["steps"]]
        explained = explained | {"steps": steps}
    return {name: part[name] for name in OF_READING if name in part} | {
        "from": said,
        "shown_tokens": shown_tokens,
        "weights": base64.b64encode(two_bytes).decode(),
        "logit_lens": [
            {**layer, "top": layer["top"][:shown_tokens]} for layer in part["logit_lens"]
        ],
        "explain": explained,
    }


def _corner(matrix: list[list[float]]) -> list[list[str]]:
    """The first rows and columns of a matrix as text, which JSON has for -inf too."""
    return [[f"{value:.4f}" for value in row[:SHOWN]] for row in matrix[:SHOWN]]
