"""A model with random weights, of any architecture that transformers knows."""

import copy
import dataclasses
import inspect
import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import set_zero3_state

from hfscale.architectures import ARCHITECTURES, default_fields
from hfscale.arguments import OF_THE_TOKENIZER, SHAPE_NAMES, ShapeArguments, shape_of
from hfscale.models import check_is_causal, check_kind, check_remote_code, name_for_others
from hfscale.options import did_you_mean
from hfscale.process import InputError

# Fields that count something begin or end so, and are at least 1.
COUNTS = ("num_", "n_")
SIZES = ("_size", "_dim", "_embeddings")
TRIED_VOCABULARY = 256  # tokens of a model that is made to be tried
# How configurations call the experts of a block.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def new_model(
    tokenizer: PreTrainedTokenizerBase,
    architecture: str = "gpt2",
    *,
    trust_remote_code: bool = False,
    **fields: Any,
) -> PreTrainedModel:
    """A model in float32, initialised as its architecture is, for this tokenizer's vocabulary.

    Args:
        tokenizer: says the number of tokens and the ids of the special ones.
        architecture, trust_remote_code, fields: as for `new_config`.

    Raises InputError: as `new_config` and `check_new_model`.
    """
    config = new_config(
        architecture,
        trust_remote_code=trust_remote_code,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    check_new_model(config, in_memory=torch.get_default_device().type != "meta")
    return _model_of(config)


def trial_model(architecture: str, **fields: Any) -> PreTrainedModel | None:
    """A model with random weights and a small vocabulary, whose behaviour can be tried before there
    is a tokenizer; None: the architecture is in the table, and the tests have tried it.

    Raises InputError: it sees later tokens.
    """
    if architecture in ARCHITECTURES:
        return None
    model = _model_of(new_config(architecture, vocab_size=TRIED_VOCABULARY, **fields))
    check_is_causal(model, architecture)
    return model


def _model_of(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """In this type, whatever a file says. Code of its own was trusted when the file was read.

    It is whole on each rank until training begins. Upstream would spread it over the ranks at once
    under ZeRO-3, with other random weights than one process draws, and without any on `meta`.
    """
    with set_zero3_state():
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=hasattr(config, "auto_map")
        )


def new_config(
    architecture: str = "gpt2",
    *,
    trust_remote_code: bool = False,
    vocab_size: int = 1,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    **fields: Any,
) -> PreTrainedConfig:
    """The configuration of a new model, as far as it is known before there is a tokenizer.

    Args:
        architecture: a key of `ARCHITECTURES`, or a config.json.
        trust_remote_code: whether code beside a config.json may run.
        vocab_size, bos_token_id, eos_token_id, pad_token_id: the tokenizer's.
        fields: of the configuration class, by their own names or those that all share; what the
            table, or the file, says stands for the others.

    Raises:
        InputError: an unknown architecture or field, a value of another type, sizes that do not go
            together, a file that describes no causal language model.
    """
    if architecture in ARCHITECTURES:
        config_class, fields = _fields_of_table(architecture, fields)
    else:
        config_class, fields = _fields_of_file(
            architecture, fields, trust_remote_code=trust_remote_code
        )
    fields |= {
        "vocab_size": vocab_size,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }
    try:
        config = config_class.from_dict(fields)
    except Exception as error:  # the classes' own checks have no common base
        reason = " ".join(str(error).rpartition("Error: ")[2].split())[:200]
        raise InputError(f"architecture {architecture}: {reason}") from None
    _check_sizes(config)
    name_for_others(config)
    return config


def _fields_of_table(
    architecture: str, given: Mapping[str, Any]
) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    config_class = CONFIG_MAPPING[architecture]
    entry = ARCHITECTURES[architecture]
    names = entry.names
    known = _field_names(config_class) | names.keys() | entry.config.keys()
    fields = default_fields(architecture, _checked(architecture, config_class, known, given))
    fields = {names.get(name, name): value for name, value in fields.items() if name in known}
    return config_class, fields


def _fields_of_file(
    path: str, given: Mapping[str, Any], *, trust_remote_code: bool
) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    if not os.path.isfile(path):
        raise InputError(
            f"architecture {path}: neither a file nor one of {', '.join(ARCHITECTURES)}"
            f"{did_you_mean(path, ARCHITECTURES)}"
        )
    place = f"architecture {path}"
    # Code of its own is looked for beside it.
    folder_or_file = str(Path(path).parent) if Path(path).name == "config.json" else path
    try:
        config = AutoConfig.from_pretrained(folder_or_file, trust_remote_code=trust_remote_code)
        written, _ = PreTrainedConfig.get_config_dict(folder_or_file)
        check_kind(config)
    except Exception as error:  # file, format and the class' own errors have no common base
        check_remote_code(place, error)
        raise InputError(f"{place}: {' '.join(str(error).split())[:200]}") from None
    if config.get_text_config() is not config:
        raise InputError(
            f"{place}: a model of the kind {config.model_type} reads more than text; give the "
            "config.json of one that reads text alone"
        )
    if written.get("quantization_config"):
        raise InputError(
            f"{place}: quantization_config: new weights are not quantized; take it out of a copy "
            "of this file"
        )
    known = _field_names(type(config)) | written.keys()
    fields = written | _checked(path, type(config), known, given)
    # Where its code lies.
    return type(config), fields | {"_name_or_path": folder_or_file}


def _field_names(config_class: type[PreTrainedConfig]) -> set[str]:
    """What a configuration class declares itself, and the shared names by which it knows that."""
    names = {*config_class.attribute_map, *inspect.signature(config_class).parameters}
    names -= {item.name for item in dataclasses.fields(PreTrainedConfig)}
    for base in config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]:
        names |= inspect.get_annotations(base).keys()
    return {name for name in names - {*OF_THE_TOKENIZER} if not name.startswith("_")}


def _checked(
    architecture: str,
    config_class: type[PreTrainedConfig],
    known: AbstractSet[str],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The given fields by their shared names, whole numbers as float where the class wants that.

    Raises InputError: a field that is not known, or a number that no such field can have.
    """
    shared_names = {own: shared for shared, own in config_class.attribute_map.items()}
    types = {item.name: item.type for item in dataclasses.fields(config_class)}
    checked = {}
    for name, value in given.items():
        place = f"architecture {architecture}: {name}"
        if name not in known:
            raise InputError(
                f"{place}: {config_class.__name__} has no such field"
                f"{did_you_mean(name, known) or '; leave it out'}"
            )
        _check_number(place, name, value)
        if types.get(name) is float and type(value) is int:
            value = float(value)
        checked[shared_names.get(name, name)] = value
    return checked


def _check_number(place: str, name: str, value: Any) -> None:
    """Raise InputError for a count below 1, or a dropout outside [0, 1)."""
    is_number = type(value) in (int, float)
    if is_number and (name.startswith(COUNTS) or name.endswith(SIZES)) and value < 1:
        raise InputError(f"{place}: got {value}, expected at least 1")
    if is_number and ("dropout" in name or name.endswith("pdrop")) and not 0 <= value < 1:
        raise InputError(f"{place}: got {value}, expected a number from 0 to below 1")


def _check_sizes(config: PreTrainedConfig) -> None:
    """Raise InputError for sizes that do not go together."""
    width: Any = getattr(config, "hidden_size", None)
    heads = getattr(config, "num_attention_heads", None)
    key_value_heads = getattr(config, "num_key_value_heads", None)
    _check_multiple("hidden_size", width, "num_attention_heads", heads)
    _check_multiple("num_attention_heads", heads, "num_key_value_heads", key_value_heads)
    if getattr(config, "rope_parameters", None) and isinstance(heads, int):
        head_dim = getattr(config, "head_dim", None) or width // heads
        if head_dim % 2:
            raise InputError(
                f"hidden_size {width}, num_attention_heads {heads}: heads of width {head_dim}; "
                "rotary positions turn pairs of numbers, so it must be even"
            )
    experts = num_experts(config)
    chosen = getattr(config, "num_experts_per_tok", None)
    if experts and chosen and chosen > experts:
        raise InputError(
            f"num_experts_per_tok {chosen} is more than the {experts} experts of a block"
        )


def num_experts(config: PreTrainedConfig) -> int | None:
    """Of a block; None: its MLP is one."""
    return next(filter(None, (getattr(config, name, None) for name in EXPERTS)), None)


def _check_multiple(name: str, value: Any, divisor_name: str, divisor: Any) -> None:
    """Raise InputError unless the second, where there is one, divides the first."""
    if isinstance(value, int) and isinstance(divisor, int) and divisor and value % divisor:
        raise InputError(f"{name} {value} is not a multiple of {divisor_name} {divisor}")


def settle_shape(args: ShapeArguments, *, in_memory: bool = True) -> PreTrainedConfig:
    """The configuration of the model that a recipe is to make; sets in `args` the sizes that follow
    from the architecture. Raises InputError as `new_config` and `check_new_model`.
    """
    config = new_config(**shape_of(args))
    check_new_model(config, in_memory=in_memory)
    known = _field_names(type(config))
    for name in SHAPE_NAMES:
        if getattr(args, name) is None and name in known:
            setattr(args, name, getattr(config, name, None))
    return config


def check_new_model(config: PreTrainedConfig, *, in_memory: bool = True) -> None:
    """Raise InputError for a model that cannot be made at all, or, where it is to be held
    `in_memory`, whose weights this machine's memory does not hold.
    """
    place = ", ".join(
        f"{name} {getattr(config, name)}"
        for name in ("num_hidden_layers", "hidden_size", "max_position_embeddings")
        if hasattr(config, name)
    )
    try:
        needed = 4 * count_new_parameters(config)  # in float32
    except Exception as error:  # whatever a model's own code raises
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{place}: cannot be made: {type(error).__name__}: {reason}") from None
    available = psutil.virtual_memory().total
    if in_memory and needed > available:
        raise InputError(
            f"{place}: the weights alone take {needed / 2**30:,.0f} GiB, this machine has "
            f"{available / 2**30:,.0f} GiB of memory; choose smaller sizes"
        )


def count_new_parameters(config: PreTrainedConfig) -> int:
    """Of a model of this configuration, which takes no memory."""
    return meta_model(config).num_parameters()


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of this configuration with shapes and no weights."""
    with torch.device("meta"):
        return _without_values(config)


def fake_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """As `meta_model`, on tensors that say they are on the CPU, so that its kernels are chosen."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _without_values(config, dtype)


def _without_values(
    config: PreTrainedConfig, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    with no_init_weights():
        model = _model_of(copy.deepcopy(config), dtype)
    model.tie_weights()
    return model
