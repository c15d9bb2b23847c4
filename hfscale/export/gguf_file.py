"""A model and its tokenizer as one GGUF file, as llama.cpp, Ollama and LM Studio read it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf import read_gguf_metadata

from hfscale.export.gguf_shapes import SHAPES, Shape, shape_as_gguf, value_of
from hfscale.export.gguf_tokenizer import vocabulary_as_gguf, write_vocabulary

# By llama.cpp's names in its converter's --outtype.
TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
QUANTIZATION_VERSION = 2  # of ggml's blocks
ALWAYS_FLOAT32 = ("position_embd.weight",)  # beside vectors, as llama.cpp's converter has it


def check_as_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a model or tokenizer that `write_gguf` does not take."""
    shape_as_gguf(model.config)
    vocabulary_as_gguf(tokenizer, model.config.vocab_size)


def write_gguf(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, outtype: str, name: str
) -> None:
    """Write the model in float32 with its tokenizer as `path`.

    Args:
        outtype: a key of `TYPES`, for the matrices; vectors stay float32, and so does a matrix's
            float16 where its rows are no whole blocks of `q8_0` (32 numbers).
        name: of the model, which programs show.

    Raises InputError: see `shape_as_gguf` and `vocabulary_as_gguf`.
    """
    shape = shape_as_gguf(model.config)
    vocabulary = vocabulary_as_gguf(tokenizer, model.config.vocab_size)
    writer = GGUFWriter(path, model.config.model_type)
    try:
        writer.add_name(name)
        writer.add_quantization_version(QUANTIZATION_VERSION)
        writer.add_file_type(TYPES[outtype][1])
        writer.add_vocab_size(model.config.vocab_size)
        for method, field in shape.values.items():
            getattr(writer, method)(value_of(model.config, field))
        write_vocabulary(writer, tokenizer, vocabulary)
        for weight_name, weights in _weights_as_gguf(model, shape).items():
            kind = _type_of(weight_name, weights, outtype)
            writer.add_tensor(weight_name, gguf.quantize(weights, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf(folder: Path, file_name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32 and tokenizer as transformers' own reader takes them from the file."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file_name)
    config = AutoConfig.from_pretrained(folder, gguf_file=file_name)
    metadata, _ = read_gguf_metadata(str(folder / file_name))
    for field, key in SHAPES[config.model_type].read_back.items():
        setattr(config, field, metadata[key])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file_name, config=config, dtype=torch.float32
    )
    return model.eval(), tokenizer


def _weights_as_gguf(model: PreTrainedModel, shape: Shape) -> dict[str, np.ndarray]:
    """By GGUF's names, (outputs, inputs). Embeddings that are one matrix are there once."""
    [arch] = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == model.config.model_type]
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tied = set(model.all_tied_weights_keys)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise ValueError(f"the weight {name} has no name in GGUF")
        weights[gguf_name] = _in_order(name, tensor.float().numpy(), model.config, shape)
    return weights


def _in_order(name: str, weights: np.ndarray, config: Any, shape: Shape) -> np.ndarray:
    if name.endswith(shape.transposed):
        return np.ascontiguousarray(weights.T)
    for end, heads in shape.rotary.items():
        if name.endswith(end):
            return _pairs_side_by_side(weights, value_of(config, heads))
    return weights


def _pairs_side_by_side(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a head in the order in which llama.cpp turns them: transformers turns row i with row
    i + half a head, llama.cpp rows that are neighbours (`permute` in its converter).
    """
    halves = weights.reshape(num_heads, 2, -1, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weights.shape)


def _type_of(name: str, weights: np.ndarray, outtype: str) -> GGMLQuantizationType:
    if weights.ndim == 1 or name in ALWAYS_FLOAT32:
        return GGMLQuantizationType.F32
    kind = TYPES[outtype][0]
    block_size, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if weights.shape[-1] % block_size == 0 else GGMLQuantizationType.F16
