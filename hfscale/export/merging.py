"""One model from several: the weighted mean of weights, or LoRA adapters as peft combines them.

Where models come from one start, as the last checkpoints of a run do, their mean is often better
than each (Wortsman et al. 2022, Model soups, arXiv:2203.05482).
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hfscale.data.fingerprints import tokenizer_fingerprint
from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.folders import SMALL_MODEL_FILES
from hfscale.manifest import check_loaded
from hfscale.models import base_fingerprint, is_adapter, load_model, read_config, weights_files
from hfscale.process import InputError

# What of an adapter peft's `add_weighted_adapter` leaves out, or takes for something else.
NOT_COMBINED = (
    "use_dora",
    "use_rslora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
)
# Of a configuration: what can differ between steps of one training.
NOT_COMPARED = ("_name_or_path", "transformers_version", "use_cache", "dtype", "n_ctx")


class Tensor(NamedTuple):
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    shape: list[int]
    dtype: str


def load_merged(
    folders: Sequence[str],
    weights: Sequence[float],
    combination_type: str | None,
    density: float | None,
    **loading: Any,
) -> PreTrainedModel:
    """The model that the folders make together, in float32; of adapters, their base model with the
    combined adapter on it.

    Args:
        folders: two or more, of models alike or of LoRA adapters on one base model.
        weights: one for each, with the sum 1.
        combination_type: of adapters, a name of peft's `add_weighted_adapter`.
        density: of adapters, the share of values that `ties` and its kin keep.
        loading: trust, as `load_model` takes it.

    Raises:
        InputError: a folder that cannot be loaded, or does not fit the first, by the first thing
            that differs.
    """
    trust = {"trust_remote_code": loading["trust_remote_code"]}
    for folder in folders:
        check_loaded(f"merge {folder}", folder, verify_digests=loading["verify_digests"])
    if is_adapter(folders[0]):
        _check_adapters(folders)
        _check_tokenizers(folders, **trust)
        return _combined(folders, weights, str(combination_type), density, **loading)
    tables = _check_tensors(folders)
    _check_configs(folders)
    _check_tokenizers(folders, **trust)
    with tempfile.TemporaryDirectory() as place:
        _write_mean(folders, tables, weights, Path(place))
        model = load_model(place, dtype=torch.float32, **trust)
    model.config._name_or_path = folders[0]
    return model


def _check_tensors(folders: Sequence[str]) -> list[dict[str, Tensor]]:
    """The tensors of each folder, by name. Raises InputError: the first that is not the same in
    another, in name, shape or type.
    """
    tables = [_tensors_of(folder) for folder in folders]
    first = tables[0]
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        for name in sorted(first.keys() | table.keys()):
            if name not in table or name not in first:
                has, lacks = (folders[0], folder) if name in first else (folder, folders[0])
                raise InputError(
                    f"merge {lacks}: has no tensor {name}, which {has} has; give models of one "
                    "architecture and size"
                )
            one, other = first[name], table[name]
            if one[1:] != other[1:]:
                raise InputError(
                    f"merge {other.file}: {name} is {other.dtype} {other.shape}, and "
                    f"{one.dtype} {one.shape} in {one.file}; give models alike"
                )
    return tables


def _tensors_of(folder: str) -> dict[str, Tensor]:
    files = weights_files(Path(folder))
    if not files:
        raise InputError(
            f"merge {folder}: holds no model.safetensors; give folders of saved models or adapters"
        )
    table = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dictionary
                part = file.get_slice(name)
                table[name] = Tensor(path, part.get_shape(), part.get_dtype())
    return table


def _check_configs(folders: Sequence[str]) -> None:
    """Shapes do not tell all: models of as many weights can have other heads."""
    configs = []
    for folder in folders:
        config = read_config(folder).to_diff_dict()
        configs.append({name: config[name] for name in config if name not in NOT_COMPARED})
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        for name in sorted(configs[0].keys() | config.keys()):
            if configs[0].get(name) != config.get(name):
                raise InputError(
                    f"merge {Path(folder, 'config.json')}: {name} is {config.get(name)}, and "
                    f"{configs[0].get(name)} in {folders[0]}; give models alike"
                )


def _check_tokenizers(folders: Sequence[str], *, trust_remote_code: bool) -> None:
    fingerprints = [
        tokenizer_fingerprint(
            load_pretrained_tokenizer(folder, trust_remote_code=trust_remote_code)
        )
        for folder in folders
    ]
    for folder, fingerprint in zip(folders[1:], fingerprints[1:], strict=True):
        if fingerprint != fingerprints[0]:
            raise InputError(
                f"merge {folder}: its tokenizer is another than that of {folders[0]}, so that a "
                "row of the embeddings means another token; give models of one tokenizer"
            )


def _write_mean(
    folders: Sequence[str],
    tables: Sequence[dict[str, Tensor]],
    weights: Sequence[float],
    place: Path,
) -> None:
    """Save the mean beside the first folder's configuration. It is summed in float64, so that equal
    models give themselves, and rounded once, to the type of the files.
    """
    means = {}
    for name in tables[0]:
        values = [_read(table[name], name) for table in tables]
        if values[0].is_floating_point():
            mean = sum(w * value.double() for w, value in zip(weights, values, strict=True))
            means[name] = cast(torch.Tensor, mean).to(values[0].dtype)
            continue
        for folder, value in zip(folders[1:], values[1:], strict=True):
            if not torch.equal(values[0], value):
                raise InputError(
                    f"merge {folder}: {name} holds {tables[0][name].dtype} numbers that have no "
                    f"mean, and others than in {folders[0]}; give models alike, not quantized"
                )
        means[name] = values[0]
    save_file(means, place / "model.safetensors", metadata={"format": "pt"})
    for pattern in SMALL_MODEL_FILES:
        for path in Path(folders[0]).glob(pattern):
            if path.name not in ("run.json", "model.safetensors.index.json"):
                shutil.copyfile(path, place / path.name)
    for path in Path(folders[0]).glob("*.py"):  # of a model that brings code along
        shutil.copyfile(path, place / path.name)


def _read(tensor: Tensor, name: str) -> torch.Tensor:
    with safe_open(tensor.file, framework="pt") as file:
        return file.get_tensor(name)


def _check_adapters(folders: Sequence[str]) -> None:
    """Raise InputError for what peft cannot combine, or would combine wrong."""
    for folder in folders:
        try:
            config = PeftConfig.from_pretrained(folder)
        except Exception as error:  # of broken files; they have no common base
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"merge {folder}: cannot be read: {reason}") from None
        if config.peft_type != "LORA":
            raise InputError(
                f"merge {folder}: its adapter is of the kind {config.peft_type}, and only LORA can "
                "be combined; export each to safetensors and merge those"
            )
        for name in NOT_COMBINED:
            if getattr(config, name, None):
                raise InputError(
                    f"merge {folder}: its adapter has {name}, which peft does not combine right; "
                    "export each to safetensors and merge those"
                )
    for (first, base), (other, other_base) in pairwise(
        (folder, base_fingerprint(folder, Path(folder))) for folder in folders
    ):
        if base != other_base:
            names = [
                json.loads(Path(f, "adapter_config.json").read_text("utf-8"))
                for f in (first, other)
            ]
            raise InputError(
                f"merge {other}: is an adapter of {names[1]['base_model_name_or_path']}, and "
                f"{first} of {names[0]['base_model_name_or_path']}, which has other weights; give "
                "adapters of one base model"
            )


def _combined(
    folders: Sequence[str],
    weights: Sequence[float],
    combination_type: str,
    density: float | None,
    **loading: Any,
) -> PreTrainedModel:
    model: Any = load_model(folders[0], dtype=torch.float32, **loading)
    assert isinstance(model, PeftModel)
    names = ["default", *(f"other_{i}" for i in range(1, len(folders)))]
    torch.manual_seed(0)  # dare draws what it keeps
    try:
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=name)
        model.add_weighted_adapter(
            names, list(weights), "merged", combination_type=combination_type, density=density
        )
    except (ValueError, RuntimeError) as error:  # ranks, targets or shapes that do not fit
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"merge: combination_type {combination_type}: {reason}") from None
    model.set_adapter("merged")
    for name in names:
        model.delete_adapter(name)
    return cast(PreTrainedModel, model)
