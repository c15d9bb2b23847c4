"""Formats in which a model is handed on: what each takes, how it is written and read again."""

import copy
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TorchAoConfig,
)
from transformers.pytorch_utils import Conv1D

from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.export.modelfile import ollama_modelfile
from hfscale.export.runners import Runner, TorchRunner
from hfscale.folders import write_atomically
from hfscale.models import load_model
from hfscale.process import InputError

DTYPES = {"f32": torch.float32, "f16": torch.float16}


class Format(NamedTuple):
    """One value of --to.

    Attributes:
        outtypes: values of --outtype that it has.
        check: raises InputError for what it cannot hold: (model, tokenizer, outtype).
        write: puts model and tokenizer into a folder: (folder, model, tokenizer, outtype, name).
        read: that folder in the format's own runtime: (folder, outtype) -> runner, tokenizer.
        use: how a user loads it, with {name} for the folder and {outtype}.
        packages: that have to be installed.
    """

    outtypes: tuple[str, ...]
    check: Callable[[PreTrainedModel, PreTrainedTokenizerBase, str], None]
    write: Callable[[Path, PreTrainedModel, PreTrainedTokenizerBase, str, str], None]
    read: Callable[[Path, str], tuple[Runner, PreTrainedTokenizerBase]]
    use: str
    packages: tuple[str, ...] = ()


def check_format(to: str, outtype: str) -> Format:
    """The format, once it is known that it can be written here. Raises InputError."""
    chosen = FORMATS[to]
    if outtype not in chosen.outtypes:
        others = [name for name, other in FORMATS.items() if outtype in other.outtypes]
        raise InputError(
            f"outtype: {to} has no {outtype}, only {', '.join(chosen.outtypes)}; {outtype} is one "
            f"of {', '.join(others)}"
        )
    missing = [name for name in chosen.packages if find_spec(name) is None]
    if missing:
        extra = "torchao" if to == "torchao" else "export"
        raise InputError(
            f'to {to}: not installed: {", ".join(missing)}; pip install "hfscale[{extra}]"'
        )
    return chosen


def copy_task(model: str, folder: Path) -> None:
    """The task file that says how prompts are asked goes with a model that has one."""
    task_file = Path(model, "task.json")
    if task_file.is_file():
        shutil.copyfile(task_file, folder / task_file.name)


def _takes_any(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, outtype: str) -> None:
    """safetensors hold whatever transformers has, and of ONNX the exporter knows it."""


def _in_dtype(model: PreTrainedModel, outtype: str) -> PreTrainedModel:
    """The model, or a copy of it, in the type of its file."""
    if model.dtype == DTYPES[outtype]:
        return model
    copied = copy.deepcopy(model)
    return copied.to(DTYPES[outtype])  # type: ignore[arg-type]  # the stub takes it for the model


def _write_safetensors(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str,
    name: str,
) -> None:
    _in_dtype(model, outtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_safetensors(folder: Path, outtype: str) -> tuple[Runner, PreTrainedTokenizerBase]:
    model = load_model(str(folder), dtype=torch.float32)
    return TorchRunner(model), load_pretrained_tokenizer(str(folder))


def _check_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, outtype: str) -> None:
    from hfscale.export.gguf_file import check_as_gguf

    check_as_gguf(model, tokenizer)


def _write_gguf(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str,
    name: str,
) -> None:
    from hfscale.export.gguf_file import write_gguf

    file_name = _gguf_name(outtype)
    write_gguf(folder / file_name, model, tokenizer, outtype, name)
    write_atomically(folder / "Modelfile", ollama_modelfile(file_name, model, tokenizer))


def _read_gguf(folder: Path, outtype: str) -> tuple[Runner, PreTrainedTokenizerBase]:
    from hfscale.export.gguf_file import read_gguf

    model, tokenizer = read_gguf(folder, _gguf_name(outtype))
    return TorchRunner(model), tokenizer


def _gguf_name(outtype: str) -> str:
    return f"model-{outtype}.gguf"


def _write_onnx(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str,
    name: str,
) -> None:
    from hfscale.export.onnx_file import write_onnx

    write_onnx(folder, model, outtype)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_onnx(folder: Path, outtype: str) -> tuple[Runner, PreTrainedTokenizerBase]:
    from hfscale.export.onnx_file import FILES, FOLDER, OnnxRunner

    runner = OnnxRunner(folder / FOLDER / FILES[outtype])
    return runner, load_pretrained_tokenizer(str(folder))


def _check_torchao(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, outtype: str
) -> None:
    """torchao makes smaller what is `nn.Linear`; GPT-2's weights are another class, Conv1D."""
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise InputError(
            f"to torchao: {type(model).__name__} keeps its matrices in Conv1D, which torchao does "
            "not make smaller; --to onnx --outtype int8 and --to gguf --outtype q8_0 do"
        )


def _write_torchao(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str,
    name: str,
) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    with tempfile.TemporaryDirectory() as place:  # transformers does it when a model is loaded
        model.save_pretrained(place)
        quantized = AutoModelForCausalLM.from_pretrained(
            place, dtype="auto", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
        )
    quantized.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_html(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, outtype: str) -> None:
    from hfscale.export.page_file import check_as_page

    check_as_page(model, tokenizer, outtype)


def _write_html(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str,
    name: str,
) -> None:
    from hfscale.export.page_file import write_page

    write_page(folder, _in_dtype(model, outtype), tokenizer, name)


def _read_html(folder: Path, outtype: str) -> tuple[Runner, PreTrainedTokenizerBase]:
    from hfscale.export.page_file import read_page

    model, tokenizer = read_page(folder)
    return TorchRunner(model), tokenizer


FORMATS = {
    "safetensors": Format(
        ("f32", "f16"),
        _takes_any,
        _write_safetensors,
        _read_safetensors,
        'pipe = transformers.pipeline("text-generation", model="{name}")',
    ),
    "gguf": Format(
        ("f32", "f16", "q8_0"),
        _check_gguf,
        _write_gguf,
        _read_gguf,
        "llama-cli -m model-{outtype}.gguf\nollama create {name} -f Modelfile",
        ("gguf",),
    ),
    "onnx": Format(
        ("f32", "int8"),
        _takes_any,
        _write_onnx,
        _read_onnx,
        'session = onnxruntime.InferenceSession("onnx/model.onnx")  # int8: onnx/model_int8.onnx',
        ("onnx", "onnxscript", "onnxruntime"),
    ),
    "torchao": Format(
        ("int8",),
        _check_torchao,
        _write_torchao,
        _read_safetensors,
        'pipe = transformers.pipeline("text-generation", model="{name}")  # pip install torchao',
        ("torchao",),
    ),
    "html": Format(
        ("f32", "f16"),
        _check_html,
        _write_html,
        _read_html,
        "xdg-open model.html",
    ),
}
