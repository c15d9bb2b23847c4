"""What of a loaded checkpoint is trained: all of it, its upper layers, or a small adapter (through
peft).
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_config, get_peft_model
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from hfscale.arguments import AdapterArguments, loading
from hfscale.behaviour import logits_equal, logits_on_trial
from hfscale.models import embedding_rows, is_adapter, load_model, load_saved_model, trial_size
from hfscale.process import InputError, is_main_rank, launched_engine, show_bitsandbytes

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Mamba's code reads the weights of these past the layers, where an adapter is not seen.
MAMBA_WEIGHTS = ("dt_proj", "out_proj")
OWN_TARGETS = ("IA3", "LN_TUNING")  # where these go is peft's knowledge of each architecture
# Arguments that are ignored without what they work with.
NEED_LORA = ("use_dora", "use_rslora", "lora_dropout")
NEED_ADAPTER = ("lora_target_modules", "peft_kwargs", "load_in_4bit", "merge")
VERA_RANK = 1024  # the largest that is usual for VeRA, whose ranks are far above LoRA's by design


def load_for_training(
    args: AdapterArguments,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
) -> PreTrainedModel:
    """The checkpoint `args.model` in float32, with new tokens (`tokenizer` gets them too), and
    frozen layers or an adapter as `args` says; with an adapter it is a `peft.PeftModel`. `config`
    is another one than the checkpoint's own.

    Input and output embeddings that are one matrix stay so. An adapter holds the rows of its new
    tokens.

    Raises:
        InputError: settings that contradict each other or that the model does not have, 4 bits
            where they do not work, a checkpoint that is an adapter itself; see also `load_model`.
    """
    has_adapter = args.lora_r is not None or args.peft_type is not None
    _check_companions(args, has_adapter)
    _check_new_embeddings(args, has_adapter)
    _check_4bit(args)
    if is_adapter(args.model):
        raise InputError(
            f"model {args.model}: is an adapter; make a plain model of it first (its run with "
            "--merge)"
        )
    if config is not None and (has_adapter or args.load_in_4bit):
        raise InputError(
            "max_position_embeddings: an adapter keeps no configuration of its base model; train "
            "all weights, without --lora_r, --peft_type and --load_in_4bit"
        )
    model = _load_float32(args, config)
    layers = model.config.get_text_config().num_hidden_layers
    most_frozen = layers - 1 if has_adapter else layers
    if not 0 <= args.freeze_layers <= most_frozen:
        raise InputError(f"freeze_layers: got {args.freeze_layers}, the model has {layers} blocks")
    new_ids = add_tokens(model, tokenizer, args.add_tokens) if args.add_tokens else []
    if has_adapter:
        return _attach(model, args, new_ids)
    if args.freeze_layers:
        _freeze(model, args.freeze_layers)
    return model


def _freeze(model: PreTrainedModel, layers: int) -> None:
    """Keep the embeddings and the first blocks from being trained."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in (*embeddings, *_first_blocks(model, layers)):
        module.requires_grad_(False)


def _check_companions(args: AdapterArguments, has_adapter: bool) -> None:
    """Refuse what would be ignored without a word."""
    if args.lora_r is not None and args.peft_type is not None:
        raise InputError(f"lora_r, peft_type {args.peft_type}: give one of the two")
    for name in NEED_LORA:
        if getattr(args, name) and args.lora_r is None:
            raise InputError(f"{name}: works with --lora_r, which is not given")
    for name in NEED_ADAPTER:
        if getattr(args, name) and not has_adapter:
            raise InputError(
                f"{name}: works with --lora_r or --peft_type; without one, all weights are trained"
            )


def _check_new_embeddings(args: AdapterArguments, has_adapter: bool) -> None:
    """Refuse new tokens that would not be learned."""
    check_new_tokens(args.add_tokens)
    if not args.add_tokens:
        return
    are_frozen = bool(args.freeze_layers) and not has_adapter
    if args.peft_type or are_frozen:
        raise InputError(
            "add_tokens: their embeddings would not be trained; use --lora_r or train all weights"
        )
    if has_adapter and _is_sharded():
        raise InputError(
            "add_tokens: an adapter cannot hold new tokens where weights are sharded; take zero2 "
            "or ddp"
        )


def _check_4bit(args: AdapterArguments) -> None:
    """Refuse 4-bit weights where they are not trained right."""
    if not args.load_in_4bit:
        return
    if _is_sharded():
        raise InputError("load_in_4bit: 4-bit weights are not sharded; take zero2 or ddp")
    if args.peft_type == "GRALORA":
        raise InputError(
            "load_in_4bit: GRALORA cannot be trained on 4-bit layers; take --lora_r or another "
            "method"
        )


def _is_sharded() -> bool:
    return launched_engine() in ("ZeRO-3", "FSDP")


def _load_float32(args: AdapterArguments, config: PreTrainedConfig | None) -> PreTrainedModel:
    if args.load_in_4bit:
        return _load_in_4bit(args)
    settings: dict[str, Any] = {**loading(args), "dtype": torch.float32}
    if config is not None:
        settings["config"] = config
    return load_model(args.model, **settings)


def _load_in_4bit(args: AdapterArguments) -> PreTrainedModel:
    """A checkpoint with the linear layers of its blocks in 4 bits (NF4, scales in 8 bits; Dettmers
    et al. 2023, arXiv:2305.14314) on this process's device, the rest in float32.

    They compute in float32, which autocast makes bf16 where the run is in bf16: told to compute in
    bf16 at all times, bitsandbytes would round their biases for good.
    """
    show_bitsandbytes()
    if find_spec("bitsandbytes") is None:
        raise InputError(
            'load_in_4bit: bitsandbytes is not installed: pip install "hfscale[quantization]"'
        )
    from bitsandbytes.nn import Linear4bit

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    device = PartialState().device
    model = load_model(
        args.model,
        **loading(args),
        dtype=torch.float32,
        quantization_config=config,
        device_map={"": device},
    )
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        # Its AVX-512 code reads the scales of other blocks there.
        if device.type == "cpu" and layer.in_features % 64:
            raise InputError(
                f"load_in_4bit: {layer_name} has {layer.in_features} inputs; on a CPU "
                "bitsandbytes is right for multiples of 64 alone; leave load_in_4bit out"
            )
        # Evaluation would pack the weights in a form that does not train.
        layer.support_avx512bf16_for_cpu = False
    return model


def add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]
) -> list[int]:
    """Ids of those tokens that were new; tokenizer and embeddings grow where they must. New rows
    are drawn around the mean of the old ones (upstream's way).

    Raises InputError: the model's embeddings cannot grow.
    """
    new_ids = extend_tokenizer(tokenizer, tokens)
    if max(new_ids, default=0) >= embedding_rows(model):
        try:
            model.resize_token_embeddings(max(new_ids) + 1)
        except Exception as error:  # whatever the model's own code raises
            raise InputError(
                f"add_tokens: the embeddings of {type(model).__name__} cannot grow: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
    return new_ids


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Add the tokens, those written <|like this|> as special ones; ids of those that were new.
    Those that were not are named on stderr.

    Raises InputError: as `check_new_tokens`.
    """
    check_new_tokens(tokens)
    known = tokenizer.get_vocab()
    for token in tokens:
        is_special = token.startswith("<|") and token.endswith("|>")
        tokenizer.add_tokens([token], special_tokens=is_special)
    old = [token for token in tokens if token in known]
    if old and is_main_rank():
        print(f"add_tokens: the tokenizer has {', '.join(map(repr, old))} already", file=sys.stderr)
    new = [token for token in tokens if token not in known]
    ids = tokenizer.get_vocab()
    return sorted(ids[token] for token in new)


def check_new_tokens(tokens: Sequence[str]) -> None:
    """Raise InputError for a token without characters, or given twice."""
    if "" in tokens:
        raise InputError("add_tokens: got an empty one; a token has at least one character")
    twice = [token for i, token in enumerate(tokens) if token in tokens[:i]]
    if twice:
        raise InputError(f"add_tokens: {twice[0]!r} is given twice; give each once")


def _attach(model: PreTrainedModel, args: AdapterArguments, new_ids: list[int]) -> PreTrainedModel:
    """The model below a new adapter of the method, and at the layers, that `args` names."""
    linear = _linear_layers(model)
    if not linear:
        raise InputError(
            f"model {args.model}: {type(model).__name__} has no linear layer that an adapter could "
            "be put on; train all weights"
        )
    config = _adapter_config(model, args, linear, new_ids)
    config |= _more_settings(args, config, linear)
    try:
        adapted = get_peft_model(model, get_peft_config(config))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"peft_kwargs: {config['peft_type']}: {' '.join(str(error).split())[:300]}"
        ) from None
    if new_ids:
        # The adapter holds their rows; upstream would save the whole grown embeddings, twice.
        save = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
        setattr(adapted, "save_pretrained", save)  # noqa: B010  # it is a method to the type checker
    # A PeftModel hands on what it does not have to the model below it.
    return cast(PreTrainedModel, adapted)


def _adapter_config(
    model: PreTrainedModel,
    args: AdapterArguments,
    linear: dict[str, nn.Module],
    new_ids: list[int],
) -> dict[str, Any]:
    """peft's configuration of the adapter, but for `--peft_kwargs`."""
    config: dict[str, Any] = {"peft_type": args.peft_type or "LORA", "task_type": "CAUSAL_LM"}
    if args.peft_type not in OWN_TARGETS:
        config["target_modules"] = _targets(model, args, linear)
    elif args.lora_target_modules or args.freeze_layers:
        raise InputError(
            f"lora_target_modules, freeze_layers: {args.peft_type} has layers of its own; use "
            "--peft_kwargs"
        )
    if args.peft_type != "LN_TUNING":
        config["fan_in_fan_out"] = any(_is_conv1d(module) for module in linear.values())
    if args.lora_r is not None:
        _check_rank("lora_r", args.lora_r, linear)
        config |= {
            "r": args.lora_r,
            "lora_alpha": args.lora_alpha,
            "lora_dropout": args.lora_dropout,
            "use_dora": args.use_dora,
            "use_rslora": args.use_rslora,
        }
        config |= _token_rows(model, new_ids)
    return config


def _is_conv1d(layer: nn.Module) -> bool:
    """Whether the layer holds its weights inputs first, also where it is in 4 bits."""
    return Conv1D in (type(layer), getattr(layer, "source_cls", None))


def _more_settings(
    args: AdapterArguments, config: dict[str, Any], linear: dict[str, nn.Module]
) -> dict[str, Any]:
    """`--peft_kwargs`; raises InputError for one that is set elsewhere."""
    settings = args.peft_kwargs or {}
    # Tied embeddings that are saved whole come apart when the adapter is merged.
    taken = {*config, "modules_to_save"}
    for name in sorted(settings):
        if name in taken:
            raise InputError(
                f"peft_kwargs: {name} cannot be set here; take the argument of its own (see --help)"
            )
    _check_rank("peft_kwargs: r", settings.get("r"), linear, always=VERA_RANK)
    return settings


def _check_rank(place: str, rank: Any, linear: dict[str, nn.Module], *, always: int = 1) -> None:
    """Raise InputError, beginning with `place`, for a rank above both sides of the widest layer,
    where it takes memory and gives nothing. One up to `always` is right for any layer.
    """
    most = max([always, *(_widest_side(layer) for layer in linear.values())])
    if isinstance(rank, int) and rank > most:
        raise InputError(
            f"{place}: got {rank}, expected at most {most}, the wider side of the widest layer"
        )


def _widest_side(layer: nn.Module) -> int:
    """Inputs or outputs, whatever is more, also of a layer in 4 bits or under ZeRO-3."""
    sides: Any = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else _sides_of_linear(layer)
    return max(sides)


def _sides_of_linear(layer: nn.Module) -> tuple[Any, Any]:
    return layer.in_features, layer.out_features


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that can have adapters, by name: all linear ones but the output embeddings and
    those that peft would not reach or would break.
    """
    modules = dict(model.named_modules())
    outputs = model.get_output_embeddings()
    described = " ".join(f"{name} {type(module).__name__}" for name, module in modules.items())
    unseen = MAMBA_WEIGHTS if "mamba" in described.lower() else ()
    linear: dict[str, nn.Module] = {}
    for name, module in modules.items():
        # A router of experts returns more than a product.
        is_router = "router" in type(module).__name__.lower()
        is_reached = module is not outputs and _last_part(name) not in unseen
        if isinstance(module, nn.Linear | Conv1D) and is_reached and not is_router:
            linear[name] = module
    return linear


def _last_part(name: str) -> str:
    """`c_attn` of `transformer.h.0.attn.c_attn`."""
    return name.rpartition(".")[2]


def _token_rows(model: PreTrainedModel, new_ids: list[int]) -> dict[str, Any]:
    """Settings by which a LoRA adapter trains, and holds, all rows of the embeddings that belong to
    new tokens. Those that it does not hold would be drawn anew whenever it is loaded.
    """
    inputs = model.get_input_embeddings()
    outputs = model.get_output_embeddings()
    if not new_ids or outputs is None:
        return {"trainable_token_indices": new_ids or None}
    tied = outputs.weight is inputs.weight
    has_bias = getattr(outputs, "bias", None) is not None
    if tied and has_bias:
        raise InputError(
            f"add_tokens: the output layer of {type(model).__name__} has a bias, which peft would "
            "leave out; train all weights (without --lora_r)"
        )
    if tied:
        return {"trainable_token_indices": new_ids}
    names = {id(module): name for name, module in model.named_modules()}
    input_name = names[id(inputs)]
    output_name = names[id(outputs)]
    # peft's layer for rows knows no bias, so the whole output layer is trained and saved.
    if has_bias:
        return {"trainable_token_indices": {input_name: new_ids}, "modules_to_save": [output_name]}
    return {"trainable_token_indices": {input_name: new_ids, output_name: new_ids}}


def _targets(
    model: PreTrainedModel, args: AdapterArguments, linear: dict[str, nn.Module]
) -> list[str]:
    """Names, or ends of names, of the layers that get an adapter."""
    ends = sorted({_last_part(name) for name in linear})
    for end in args.lora_target_modules or []:
        if not any(_ends_with(name, end) for name in linear):
            raise InputError(
                f"lora_target_modules: {end} ends the name of no linear layer here; these do: "
                f"{', '.join(ends)} (or longer, such as {next(iter(linear))})"
            )
    wanted = args.lora_target_modules or ends
    frozen = {
        id(module)
        for block in _first_blocks(model, args.freeze_layers)
        for module in block.modules()
    }
    chosen = [
        name
        for name, module in linear.items()
        if any(_ends_with(name, end) for end in wanted) and id(module) not in frozen
    ]
    # Ends make a short record, but those of layers in a Sequential are numbers, as those of blocks
    # are, and peft would take other modules for them.
    meant = [
        name for name, _ in model.named_modules() if any(_ends_with(name, end) for end in wanted)
    ]
    return list(wanted) if sorted(chosen) == sorted(meant) else chosen


def _ends_with(name: str, end: str) -> bool:
    """Whether a module's name ends with these whole parts: `attn.c_attn`, not `_attn`."""
    return f".{name}".endswith(f".{end}")


def _first_blocks(model: PreTrainedModel, count: int) -> Iterable[nn.Module]:
    """The first `count` of the blocks that a model is a stack of."""
    if not count:
        return []
    layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module[:count]
    raise InputError(
        f"freeze_layers: {type(model).__name__} is no stack of {layers} blocks; leave it out"
    )


def merge_saved_adapter(folder: str, *, trust_remote_code: bool = False) -> None:
    """Make a plain model of the adapter saved in `folder`: the adapter is added to its base model,
    in float32.

    Raises InputError: the sum is another model; the adapter stays as it was.
    """
    model = load_saved_model(folder, trust_remote_code=trust_remote_code, dtype=torch.float32)
    try:
        merged = merge_adapter(model)
    except InputError as error:
        raise InputError(f"{error}; leave --merge out and use it as it is: {folder}") from None
    merged.save_pretrained(folder)
    for name in ADAPTER_FILES:
        Path(folder, name).unlink()


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model that an adapter and the model below it make, in place; a plain one stays.

    Raises InputError: the sum is another model.
    """
    if not isinstance(model, PeftModel):
        return model
    before = logits_on_trial(model, trial_size(model))
    merged = cast(Any, model).merge_and_unload()
    if not logits_equal(logits_on_trial(merged, trial_size(merged)), before):
        raise InputError(
            f"merge: added to the weights of {type(merged).__name__}, the adapter gives other "
            "logits"
        )
    return merged
