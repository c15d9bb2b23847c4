"""A model from random weights, or loaded from a folder or the Hub."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from transformers.utils import find_adapter_config_file

from hfscale.config import InputError, show_bitsandbytes

# What GPT-2's own configuration has otherwise: the same GELU, but in one kernel, and no dropout, since pretraining
# seldom repeats its text.
DEFAULTS = {"activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def new_model(tokenizer: PreTrainedTokenizerBase, **architecture: int | float | str) -> GPT2LMHeadModel:
    """GPT-2 with random weights for this tokenizer's vocabulary; `architecture` are `GPT2Config` arguments
    (see `DEFAULTS`).

    Raises:
        InputError: a size below 1, a width that the heads do not divide, a dropout outside [0, 1).
    """
    for name, value in architecture.items():
        if name.startswith("n_") and value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
        if name.endswith("_pdrop") and not 0 <= value < 1:
            raise InputError(f"{name}: got {value}, expected a number from 0 to below 1")
    if architecture["n_embd"] % architecture["n_head"]:
        raise InputError(f"n_embd {architecture['n_embd']} is not a multiple of n_head {architecture['n_head']}")
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **(DEFAULTS | architecture)))


def load_model(name: str, *, trust_remote_code: bool = False, **kwargs) -> PreTrainedModel:
    """A causal language model from a folder or Hub id; `kwargs` go to `from_pretrained`. Code that it brings along is
    run only with `trust_remote_code`.

    GPT-2's GELU runs as PyTorch's fused kernel (`fuse_gelu`); the configuration stays as it was saved. An adapter's
    folder or id gives its base model with the adapter on it, as a `peft.PeftModel`.

    Raises:
        InputError: the folder holds no model or not all of its weights (upstream would draw the missing ones at
            random), or the id is neither in the cache nor reachable; an adapter does not belong to its base model.
    """
    if is_adapter(name):
        return _load_adapter(name, trust_remote_code=trust_remote_code, **kwargs)
    if os.path.isdir(name) and not Path(name, "config.json").is_file():
        newest = sorted(Path(name).glob("checkpoint-*/config.json"), key=lambda p: p.stat().st_mtime)
        hint = f"; the last checkpoint in it is {newest[-1].parent}" if newest else ""
        raise InputError(f"model {name}: this folder holds no config.json, so it is not a saved model{hint}")
    try:
        if "quantization_config" in PreTrainedConfig.get_config_dict(name)[0]:
            show_bitsandbytes()
        model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True,
                                                           ignore_mismatched_sizes=True,
                                                           trust_remote_code=trust_remote_code, **kwargs)
    except Exception as error:  # file, format and Hub errors have no common base
        check_remote_code(f"model {name}", error)
        reason = " ".join(str(error).split())[:200]
        if not os.path.isdir(name) and os.environ.get("HF_HUB_OFFLINE") == "1":
            reason = "no such folder, not in the Hub cache, and the Hub is not reachable; give a saved model's folder"
        raise InputError(f"model {name}: cannot be loaded: {reason}") from None
    if wrong := sorted(info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}):
        raise InputError(f"model {name}: its files do not hold {len(wrong)} of the weights that its config.json "
                         f"describes, such as {wrong[0]}; is it another kind of model, or not whole?")
    return fuse_gelu(model)


def check_remote_code(place: str, error: Exception) -> None:
    """Raise InputError, beginning with `place`, if the error is upstream's refusal to run a folder's code."""
    if "trust_remote_code" in str(error):
        raise InputError(f"{place}: brings code of its own, which can do anything on this machine; read it, and pass "
                         "--trust_remote_code if you trust it") from None


def check_models(names: list[str], *, trust_remote_code: bool = False) -> None:
    """Raise InputError as `load_model` for names with no configuration, before anything large is
    read."""
    for name in names:
        try:
            AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        except Exception:  # file, format and Hub errors have no common base
            if not is_adapter(name):
                load_model(name, trust_remote_code=trust_remote_code)  # says what is wrong


def is_adapter(name: str) -> bool:
    """Whether a folder or Hub id holds an adapter (`adapter_config.json`)."""
    try:
        return find_adapter_config_file(name) is not None
    except Exception:  # not even the form of a Hub id: what loads it says so
        return False


def _load_adapter(name: str, **kwargs) -> PreTrainedModel:
    """`AutoModelForCausalLM` would load DoRA with other numbers, and what does not fit without a word."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights

    config = PeftConfig.from_pretrained(name)
    base = config.base_model_name_or_path
    # A relative path means the current folder, or one above the adapter's: both can be moved together.
    above = [parent / base for parent in Path(name).absolute().parents] if os.path.isdir(name) else []
    base = next((str(path) for path in (Path(base), *above) if path.is_dir()), base)
    try:
        model = load_model(base, **kwargs)
    except InputError as error:
        raise InputError(f"adapter {name}: its base {error} (named in adapter_config.json)") from None
    record = Path(name, "run.json")
    made = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    trained_on = made.get("model", {}).get("base_fingerprint")
    if trained_on and trained_on != weights_fingerprint(base):
        raise InputError(f"adapter {name}: its base model {base} has other weights than those that it was trained on; "
                         "put them back, or train the adapter again")
    tokens = getattr(config, "trainable_token_indices", None) or [0]
    if max(tokens) >= model.get_input_embeddings().num_embeddings:  # rows for tokens that the adapter added
        model.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)
    try:
        model = PeftModel.from_pretrained(model, name)
        own, saved = get_peft_model_state_dict(model, save_embedding_layers=False), load_peft_weights(name, "cpu")
        if wrong := sorted((own.keys() - saved.keys()) | (saved.keys() - own.keys() - model.state_dict().keys())):
            raise ValueError(f"{len(wrong)} weights are on one side only, such as {wrong[0]}")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"adapter {name}: does not fit its base model {base} ({' '.join(str(error).split())[:160]}); "
                         "it was made for another one") from None
    return model


def weights_fingerprint(name: str) -> str | None:
    """SHA-256 over the weight files of a folder (16 hexadecimal digits); None: it has none, or is a Hub id."""
    digest, files = hashlib.sha256(), sorted(Path(name).glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if files else None


def load_saved_model(output_dir: str, **kwargs) -> PreTrainedModel:
    """The final model of a run, on this rank alone, also right after training it under ZeRO-3 (which would else wait
    for the other ranks)."""
    if is_deepspeed_zero3_enabled():
        unset_hf_deepspeed_config()
    return load_model(output_dir, **kwargs)


def fuse_gelu(model: PreTrainedModel) -> PreTrainedModel:
    """Replace `gelu_new`, computed piece by piece upstream, by the same function in one kernel. Changes no weight and
    no configuration; differences are float rounding."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def context_limit(model: PreTrainedModel) -> int | None:
    """Most tokens that the model reads at once; None: its configuration states no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_token_ids(model: PreTrainedModel, ids: Iterable[int], place: str) -> None:
    """Raise InputError, beginning with `place`, if an id is outside the model's vocabulary."""
    largest, size = max(ids, default=0), model.config.get_text_config().vocab_size
    if largest >= size:
        raise InputError(f"{place}: token id {largest} is outside the model's vocabulary of {size}; use the tokenizer "
                         "that the model was trained with")


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters, tied ones once, whole ones under ZeRO-3, 4-bit ones (two in a byte) each; and without token and
    position embeddings."""
    embeddings = sum(_size(m.weight) for m in model.modules() if isinstance(m, nn.Embedding))
    total = sum(_size(p) for p in model.parameters())
    return {"parameters": total, "parameters_without_embeddings": total - embeddings}


def count_trained(model: PreTrainedModel) -> int:
    """Parameters that training changes, tied ones once, whole ones under ZeRO-3."""
    return sum(_size(p) for p in model.parameters() if p.requires_grad)


def _size(parameter: nn.Parameter) -> int:
    if state := getattr(parameter, "quant_state", None):
        return state.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())
