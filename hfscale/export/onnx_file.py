"""A model as one ONNX graph with a key/value cache, as onnxruntime, optimum and transformers.js
read it.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel
from transformers.exporters import (
    ExportFormat,
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
)
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from hfscale.export.runners import grow_greedily
from hfscale.process import InputError
from hfscale.shown import one_line

FOLDER = "onnx"  # where optimum and transformers.js look, beside config.json and tokenizer.json
FILES = {"f32": "model.onnx", "int8": "model_int8.onnx"}  # by the names of transformers.js
# One file up to here; above, Protobuf's 2 GB are near, and the weights lie beside the graph.
MOST_BYTES_INSIDE = 1_500_000_000
# How transformers' exporter names a layer's cache, and what the programs that read it look for.
CACHE = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")
PAST_PREFIX = "past_key_values"
CACHE_NAMES = {"input": PAST_PREFIX, "output": "present"}
# Sizes of the example that is traced; each stands for any other.
BATCH = 2
PAST = 5
SEQUENCE = 3
# Where each is found in the inputs, and its name in the file.
SIZES = (
    ("attention_mask", 0, "batch"),
    ("attention_mask", 1, "past + sequence"),
    ("input_ids", 0, "batch"),
    ("input_ids", 1, "sequence"),
    ("past_key_values.0.key", 2, "past"),
)


def write_onnx(folder: Path, model: PreTrainedModel, outtype: str) -> None:
    """Write `onnx/<FILES[outtype]>` into the folder: one graph for a prompt and each next token.

    Inputs: `input_ids` and `position_ids` (batch, sequence), `attention_mask` (batch, past +
    sequence), and of each layer `past_key_values.<layer>.key` and `.value` (batch, heads, past,
    width); `past` is 0 at the beginning. Outputs: `logits` (batch, sequence, vocabulary), and
    `present.<layer>.key` and `.value`, which the next call takes as the past.

    Args:
        outtype: a key of `FILES`; int8 is onnxruntime's dynamic quantization: whole numbers for
            weights, and for the other side of each product when it runs.

    Raises InputError: transformers' exporter cannot trace the model.
    """
    with exporter_silenced():
        graph = traced(model)
        if outtype == "int8":
            graph = _quantizer().quantize(graph, {}, ExportFormat.ONNX)
    _name_as_programs_do(graph.graph)
    path = folder / FOLDER / FILES[outtype]
    path.parent.mkdir()
    is_large = model.num_parameters() * 4 > MOST_BYTES_INSIDE
    onnx_ir.save(graph, path, external_data=f"{path.name}_data" if is_large else None)


def traced(model: PreTrainedModel) -> onnx_ir.Model:
    """The graph as transformers' exporter makes it. Raises InputError: it cannot."""
    try:
        example = _example(model)
        config = OnnxConfig(dynamic=True, dynamic_shapes=_free_sizes(example))
        return OnnxExporter().export(model, example, config).program
    except OSError:
        raise
    except Exception as error:  # whatever tracing, translating and optimizing come upon
        raise InputError(
            f"to onnx: transformers' exporter cannot trace {type(model).__name__} "
            f"({type(error).__name__}: {one_line(str(error))[:200]}); --to safetensors takes any"
        ) from None


def _quantizer() -> OnnxRuntimeQuantizer:
    """A scale for each output of a matrix, and weights of 7 bits: with 8, sums overflow on CPUs
    without VNNI, and what was compared here would not hold there.
    """
    return OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True))


@torch.no_grad()
def _example(model: PreTrainedModel) -> dict[str, Any]:
    """A call in the middle of a text."""
    past_ids = torch.zeros(BATCH, PAST, dtype=torch.long, device=model.device)
    cache = DynamicCache()  # of sliding windows, too, the whole past: the mask slides
    model(past_ids, past_key_values=cache, use_cache=True)
    length = PAST + SEQUENCE
    return {
        "input_ids": past_ids[:, :SEQUENCE],
        "attention_mask": torch.ones(BATCH, length, dtype=torch.long, device=model.device),
        "position_ids": torch.arange(PAST, length, device=model.device).repeat(BATCH, 1),
        "past_key_values": cache,
    }


def _free_sizes(example: dict[str, Any]) -> dict[str, Any]:
    """Which sizes of the example stand for any other, as `torch.export` takes them. It finds out by
    itself which of them are the same.
    """
    rows = {0: Dim.AUTO, 1: Dim.AUTO}
    num_tensors = 2 * len(example["past_key_values"].layers)
    shapes: dict[str, Any] = {name: rows for name in example if name != "past_key_values"}
    return {**shapes, "past_key_values": [{0: Dim.AUTO, 2: Dim.AUTO}] * num_tensors}


def _name_as_programs_do(graph: onnx_ir.Graph) -> None:
    """Inputs and outputs as optimum and transformers.js look for them, and sizes by words."""
    for value in (*graph.inputs, *graph.outputs):
        if match := CACHE.fullmatch(str(value.name)):
            value.name = f"{CACHE_NAMES[match[1]]}.{match[2]}.{match[3]}"
    shapes = {value.name: value.shape for value in graph.inputs}
    words = {str(shape[axis]): word for name, axis, word in SIZES if (shape := shapes.get(name))}
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_worded(size, words) for size in value.shape])


def _worded(size: int | onnx_ir.SymbolicDim, words: dict[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    if size.value is None:
        return None
    return re.sub(r"\w+", lambda match: words.get(match[0], match[0]), str(size.value))


@contextlib.contextmanager
def exporter_silenced() -> Iterator[None]:
    """Its progress, and warnings that tell a user nothing: what comes of it is compared."""
    verbosity = get_verbosity()
    set_verbosity_error()
    torch_log = logging.getLogger("torch.onnx")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch_log.setLevel(level)
        set_verbosity(verbosity)


class OnnxRunner:
    """An ONNX file of `write_onnx` in onnxruntime, on the CPU."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(
            path, _options(), providers=["CPUExecutionProvider"]
        )
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All at once, with nothing before."""
        logits, _ = self.run(input_ids, self.no_past(len(input_ids)))
        return logits

    def continue_greedily(self, input_ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """Token by token, with the cache."""
        past = self.no_past(len(input_ids))
        read = 0

        def next_logits(ids: torch.Tensor) -> torch.Tensor:
            nonlocal past, read
            logits, past = self.run(ids[:, read:], past)
            read = ids.shape[1]
            return logits[:, -1]

        return grow_greedily(next_logits, input_ids, max_new_tokens)

    def no_past(self, batch: int) -> dict[str, np.ndarray]:
        """The cache before the first token."""
        past = {name: value for name, value in self.inputs.items() if name.startswith(PAST_PREFIX)}
        return {
            name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
            for name, value in past.items()
        }

    def run(
        self, input_ids: torch.Tensor, past: dict[str, np.ndarray]
    ) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        """Logits of the next tokens after a past, and the cache with them in it."""
        batch, length = input_ids.shape
        num_past = next(iter(past.values())).shape[2]
        positions = np.arange(num_past, num_past + length)
        ids = {
            "input_ids": input_ids.numpy(),
            "attention_mask": np.ones((batch, num_past + length), np.int64),
            "position_ids": np.tile(positions, (batch, 1)),
        }
        given = {name: value for name, value in (ids | past).items() if name in self.inputs}
        results = dict(zip(self.outputs, self.session.run(None, given), strict=True))
        logits = torch.from_numpy(results.pop("logits"))
        present = {name.replace("present", PAST_PREFIX): value for name, value in results.items()}
        return logits, present


def _options() -> onnxruntime.SessionOptions:
    """As many threads as PyTorch uses: onnxruntime takes all cores, also those of others."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return options
