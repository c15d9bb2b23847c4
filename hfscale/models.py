"""A model loaded from a folder or the Hub."""

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import NewGELUActivation
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import find_adapter_config_file

from hfscale.behaviour import TRIED_TOKENS, has_weights, is_causal
from hfscale.manifest import check_loaded, has_manifest
from hfscale.process import InputError, show_bitsandbytes

UNSAFE_PICKLE = (
    "its .bin file is a pickle that holds more than weights, and could run code when read; take "
    ".safetensors files instead"
)
# Fields that programs of others read in a config.json and transformers writes no more, by
# model_type: llama.cpp's converter stops without this one.
ALSO_WRITTEN = {"gpt2": {"n_ctx": "n_positions"}}
# The files that transformers and peft read; others, such as copies in half precision, may lie
# beside them.
SAFETENSORS = ("adapter_model.safetensors", "model-*-of-*.safetensors", "model.safetensors")


def load_model(
    name: str | os.PathLike[str],
    *,
    trust_remote_code: bool = False,
    verify_digests: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A causal language model from a folder or Hub id; `kwargs` go to `from_pretrained`. Code that
    it brings along is run only with `trust_remote_code`. A folder with a manifest must be as it was
    written, its weights in size, or with `verify_digests` in content (see `check_loaded`).

    GPT-2's GELU runs as PyTorch's fused kernel (`fuse_gelu`); the configuration stays as it was
    saved. An adapter's folder or id gives its base model with the adapter on it, as a
    `peft.PeftModel`.

    Raises:
        InputError: the folder holds no model or not all of its weights (upstream would draw the
            missing ones at random), or the id is neither in the cache nor reachable; the model has
            an encoder, or sees the tokens that it is to predict; an adapter does not belong to its
            base model; a folder is not as its manifest says.
    """
    name = os.fspath(name)
    check_loaded(f"model {name}", name, verify_digests=verify_digests)
    if is_adapter(name):
        return _load_adapter(name, trust_remote_code, verify_digests, **kwargs)
    if os.path.isdir(name) and not Path(name, "config.json").is_file():
        newest = sorted(
            Path(name).glob("checkpoint-*/config.json"), key=lambda p: p.stat().st_mtime
        )
        hint = f"; the last checkpoint in it is {newest[-1].parent}" if newest else ""
        raise InputError(
            f"model {name}: this folder holds no config.json, so it is not a saved model{hint}"
        )
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        check_kind(config)
        if getattr(config, "quantization_config", None):
            show_bitsandbytes()
        # With its loading information, which upstream's types do not know.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
            **kwargs,
        )
    except Exception as error:  # file, format and Hub errors have no common base
        check_remote_code(f"model {name}", error)
        if "weights_only" in str(error):  # upstream advises to read it all the same
            raise InputError(f"model {name}: {UNSAFE_PICKLE}") from None
        reason = " ".join(str(error).split())[:200]
        if not os.path.isdir(name) and os.environ.get("HF_HUB_OFFLINE") == "1":
            reason = (
                "no such folder, not in the Hub cache, and the Hub is not reachable; give a saved "
                "model's folder"
            )
        raise InputError(f"model {name}: cannot be loaded: {reason}") from None
    model, info = loaded
    if wrong := sorted(info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}):
        raise InputError(
            f"model {name}: its files do not hold {len(wrong)} of the weights that its config.json "
            f"describes, such as {wrong[0]}; is it another kind of model, or not whole?"
        )
    check_is_causal(model, name)
    name_for_others(model.config)
    return fuse_gelu(model)


def name_for_others(config: PreTrainedConfig) -> None:
    """Give a configuration the fields of `ALSO_WRITTEN`, which are saved with it."""
    for name, field in ALSO_WRITTEN.get(config.model_type, {}).items():
        setattr(config, name, getattr(config, field))


def read_config(folder: str) -> PreTrainedConfig:
    """What the config.json of a folder says; raises InputError: of no causal language model."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        check_kind(config)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{Path(folder, 'config.json')}: {reason}") from None
    return config


def check_kind(config: PreTrainedConfig) -> None:
    """Raise ValueError for what `AutoModelForCausalLM` does not take, or takes only half of."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ValueError(
            f"a model of the kind {kind} has an encoder; give one that only continues text, such "
            "as GPT-2"
        )
    brings_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not brings_code:
        raise ValueError(
            f"transformers has no causal language model of the kind {kind}; give one that "
            "continues text, such as GPT-2"
        )


def check_is_causal(model: PreTrainedModel, name: str) -> None:
    """Raise InputError unless the model is seen to predict tokens from those before them alone: one
    that was made to fill gaps loads without a word, and its losses and texts mean nothing.
    """
    if getattr(model, "is_quantized", False) or not has_weights():
        return
    try:
        causal = is_causal(model, trial_size(model))
    except Exception as error:  # whatever the model's own code raises
        if torch.accelerator.is_available():  # where it is not yet, and may need to be
            return
        raise InputError(
            f"model {name}: {type(model).__name__} cannot read a few tokens: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from None
    if not causal:
        raise InputError(
            f"model {name}: {type(model).__name__} sees later tokens, also the one to be "
            "predicted, as models do that fill gaps in text; give one that continues text, such as "
            "GPT-2"
        )


def check_remote_code(place: str, error: Exception) -> None:
    """Raise InputError, beginning with `place`, if the error is upstream's refusal to run a
    folder's code.
    """
    if "trust_remote_code" in str(error):
        raise InputError(
            f"{place}: brings code of its own, which can do anything on this machine; read it, and "
            "pass --trust_remote_code if you trust it"
        ) from None


def check_models(names: list[str], *, trust_remote_code: bool = False) -> None:
    """Raise InputError as `load_model` for names with no configuration, before anything large is
    read."""
    for name in names:
        check_loaded(f"model {name}", name)
        try:
            check_kind(AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code))
        except Exception:  # file, format and Hub errors have no common base
            if not is_adapter(name):
                load_model(name, trust_remote_code=trust_remote_code)  # says what is wrong


def is_adapter(name: str) -> bool:
    """Whether a folder or Hub id holds an adapter (`adapter_config.json`)."""
    try:
        return find_adapter_config_file(name) is not None
    except Exception:  # not even the form of a Hub id: what loads it says so
        return False


def _load_adapter(
    name: str, trust_remote_code: bool, verify_digests: bool, **kwargs
) -> PreTrainedModel:
    """`AutoModelForCausalLM` would load DoRA with other numbers, and what does not fit without a
    word.
    """
    from peft import PeftConfig, PeftModel, load_peft_weights

    with _readable(name):
        config = PeftConfig.from_pretrained(name)
    if not config.base_model_name_or_path:
        raise InputError(
            f"adapter {name}: adapter_config.json names no base model (base_model_name_or_path)"
        )
    base = _place_of_base(name, config.base_model_name_or_path)
    try:
        if is_adapter(base):
            raise InputError(f"model {base}: is an adapter itself; make a plain model of it first")
        # One without a manifest is known by the fingerprint of its weights, below.
        verify_base = verify_digests and has_manifest(base)
        model = load_model(
            base, trust_remote_code=trust_remote_code, verify_digests=verify_base, **kwargs
        )
    except InputError as error:
        raise InputError(
            f"adapter {name}: its base {error} (named in adapter_config.json)"
        ) from None
    trained_on = _fingerprint_of_base(name)
    if trained_on and trained_on != weights_fingerprint(base):
        raise InputError(
            f"adapter {name}: its base model {base} has other weights than those that it was "
            "trained on; put them back, or train the adapter again"
        )
    with _readable(name):
        weights = load_peft_weights(name, "cpu")
    try:
        tokens = getattr(config, "trainable_token_indices", None) or [0]
        if isinstance(tokens, dict):  # by the name of the embedding
            tokens = [index for indices in tokens.values() for index in indices]
        if max(tokens) >= embedding_rows(model):  # rows for tokens that the adapter added
            model.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)
        adapted = PeftModel.from_pretrained(model, name)
        _set_weights(adapted, weights)
    except Exception as error:  # shapes, names and types that do not fit have no common base
        raise InputError(
            f"adapter {name}: does not fit its base model {base} "
            f"({' '.join(str(error).split())[:160]}); it was made for another one"
        ) from None
    # A PeftModel hands on what it does not have to the model below it.
    return cast(PreTrainedModel, adapted)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raises InputError where a file of an adapter is broken, or a pickle that holds more than
    weights."""
    try:
        yield
    except pickle.UnpicklingError:
        raise InputError(f"adapter {name}: {UNSAFE_PICKLE}") from None
    except Exception as error:  # broken files, and the Hub's errors, have no common base
        raise InputError(
            f"adapter {name}: cannot be read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def _place_of_base(name: str, base: str) -> str:
    """Where the base model lies that an adapter names. A relative path means the current folder, or
    one above the adapter's: both can be moved together.
    """
    places = [Path(base)]
    if os.path.isdir(name):
        places += [parent / base for parent in Path(name).absolute().parents]
    return next((str(place) for place in places if place.is_dir()), base)


def _fingerprint_of_base(name: str) -> str | None:
    """Of the base model's weights when the adapter was trained, if a record says so."""
    try:
        return json.loads(Path(name, "run.json").read_text("utf-8"))["model"]["base_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):  # trained elsewhere
        return None


def _set_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give the adapter on a model the weights that its file holds, all of them: peft passes over
    some (of shared experts).

    Raises ValueError: file and model do not have the same ones.
    """
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing = wanted.keys() - weights.keys()
    foreign = weights.keys() - wanted.keys() - model.state_dict().keys()
    if missing | foreign:
        raise ValueError(
            f"{len(missing | foreign)} weights are on one side only, such as "
            f"{min(missing | foreign)}"
        )
    for name in _differing(wanted, weights):
        wanted[name].copy_(weights[name])
    kept = _differing(get_peft_model_state_dict(model, save_embedding_layers=False), weights)
    if kept:
        raise ValueError(f"{len(kept)} weights cannot be set, such as {kept[0]}")


def _differing(state: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> list[str]:
    return [
        name
        for name, value in state.items()
        if not torch.equal(value.cpu(), weights[name].to(value.dtype))
    ]


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens both the input and the output embeddings have a row for (under ZeRO-3 too,
    where no weight shows its shape).
    """
    inputs: Any = model.get_input_embeddings()
    outputs = model.get_output_embeddings()
    return min(inputs.num_embeddings, getattr(outputs, "out_features", inputs.num_embeddings))


def weights_fingerprint(name: str) -> str | None:
    """SHA-256 over the files of a model's weights (16 hexadecimal digits): of a folder, or of a Hub
    id in the cache. An adapter's counts its base model's too. None: no weights are there.
    """
    folder = _folder_of(name)
    if folder is None:
        return None
    files = weights_files(folder) or sorted(folder.glob("*_model*.bin"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if (folder / "adapter_config.json").is_file():
        digest.update(str(base_fingerprint(name, folder)).encode())
    return digest.hexdigest()[:16]


def weights_files(folder: Path) -> list[Path]:
    """The .safetensors files that transformers and peft read in a folder."""
    return [path for pattern in SAFETENSORS for path in sorted(folder.glob(pattern))]


def _folder_of(name: str) -> Path | None:
    """Where a model's files lie on this machine; None: nowhere."""
    if os.path.isdir(name):
        return Path(name)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not in the cache; not the form of a Hub id
        return None


def base_fingerprint(name: str, folder: Path) -> str | None:
    """Of the weights of an adapter's base model; None: it names none, or they are not there."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    base = config.get("base_model_name_or_path")
    return weights_fingerprint(_place_of_base(name, base)) if base else None


def load_saved_model(output_dir: str, **kwargs) -> PreTrainedModel:
    """The final model of a run, on this rank alone, also right after training it under ZeRO-3
    (which would else wait for the other ranks).
    """
    if is_deepspeed_zero3_enabled():
        unset_hf_deepspeed_config()
    return load_model(output_dir, **kwargs)


def fuse_gelu(model: PreTrainedModel) -> PreTrainedModel:
    """Replace `gelu_new`, computed piece by piece upstream, by the same function in one kernel.
    Changes no weight and no configuration; differences are float rounding.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def context_limit(model: PreTrainedModel) -> int | None:
    """Most tokens that the model reads at once; None: its configuration states no limit."""
    limit = stated_limit(model.config)
    inputs = model.get_input_embeddings()
    for module in model.modules():
        # RoBERTa's kind counts places from the one after its padding's.
        if (
            isinstance(module, nn.Embedding)
            and module is not inputs
            and module.num_embeddings == limit
            and module.padding_idx is not None
        ):
            return limit - module.padding_idx - 1
    return limit


def stated_limit(config: PreTrainedConfig) -> int | None:
    """Most tokens that a model is made for, as its configuration says; None: it states no limit."""
    config = config.get_text_config()
    stated = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return next((size for size in stated if size is not None and size > 0), None)


def trial_size(model: PreTrainedModel) -> int:
    """Tokens of a row on which a model's behaviour is tried out."""
    return min(TRIED_TOKENS, context_limit(model) or TRIED_TOKENS)


def check_token_ids(model: PreTrainedModel, ids: Iterable[int], place: str) -> None:
    """Raise InputError, beginning with `place`, if an id is outside the model's vocabulary."""
    largest = max(ids, default=0)
    size = model.config.get_text_config().vocab_size
    if largest >= size:
        raise InputError(
            f"{place}: token id {largest} is outside the model's vocabulary of {size}; use the "
            "tokenizer that the model was trained with"
        )


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters, tied ones once, 4-bit ones (two in a byte) each; and without token and position
    embeddings.
    """
    return {
        "parameters": _count(model),
        "parameters_without_embeddings": _count(model, exclude_embeddings=True),
    }


def count_trained(model: PreTrainedModel) -> int:
    """Parameters that training changes, tied ones once."""
    return _count(model, only_trainable=True)


def _count(
    model: PreTrainedModel, *, only_trainable: bool = False, exclude_embeddings: bool = False
) -> int:
    """The model's own count, but under ZeRO-3, where each rank holds a part of each parameter and
    DeepSpeed knows the whole size.
    """
    if not any(hasattr(parameter, "ds_numel") for parameter in model.parameters()):
        return model.num_parameters(only_trainable, exclude_embeddings)
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    left_out = {id(module.weight) for module in embeddings} if exclude_embeddings else set()
    return sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in model.parameters()
        if id(parameter) not in left_out and (parameter.requires_grad or not only_trainable)
    )
