"""What of a loaded checkpoint is trained: all of it, its upper layers, or a small adapter (through
peft).
"""

import functools
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_config, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from hfscale.arguments import AdapterArguments
from hfscale.behaviour import logits_equal, logits_on_trial
from hfscale.models import embedding_rows, is_adapter, load_model, load_saved_model, trial_size
from hfscale.process import InputError, is_main_rank, launched_engine, show_bitsandbytes

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MAMBA_WEIGHTS = (
    "dt_proj",
    "out_proj",
)  # its code reads their weights past the layers, where an adapter is not seen
OWN_TARGETS = ("IA3", "LN_TUNING")  # where these go is peft's knowledge of each architecture


def load_for_training(
    args: AdapterArguments, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | PeftModel:
    """The checkpoint `args.model` in float32, with new tokens (`tokenizer` gets them too), and
    frozen layers or an adapter as `args` says.

    Input and output embeddings that are one matrix stay so. An adapter holds the rows of its new
    tokens.

    Raises:
        InputError: settings that contradict each other or that the model does not have, 4 bits
            where they do not work, a checkpoint that is an adapter itself; see also `load_model`.
    """
    adapts = args.lora_r is not None or args.peft_type is not None
    _check(args, adapts)
    if is_adapter(args.model):
        raise InputError(
            f"model {args.model}: is an adapter; make a plain model of it first (its run with "
            "--merge)"
        )
    model = _load_float32(args)
    layers = model.config.get_text_config().num_hidden_layers
    if not 0 <= args.freeze_layers <= layers - adapts:
        raise InputError(f"freeze_layers: got {args.freeze_layers}, the model has {layers} blocks")
    new_ids = add_tokens(model, tokenizer, args.add_tokens) if args.add_tokens else []
    if adapts:
        return _attach(model, args, new_ids)
    if args.freeze_layers:
        embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
        for module in (*embeddings, *_first_blocks(model, args.freeze_layers)):
            module.requires_grad_(False)
    return model


def _check(args: AdapterArguments, adapts: bool) -> None:
    """Refuse what would otherwise be ignored without a word."""
    if args.lora_r is not None and args.lora_r < 1:
        raise InputError(f"lora_r: got {args.lora_r}, expected at least 1")
    check_new_tokens(args.add_tokens)
    if args.lora_r is not None and args.peft_type is not None:
        raise InputError(f"lora_r, peft_type {args.peft_type}: give one of the two")
    for name in ("use_dora", "use_rslora", "lora_dropout"):
        if getattr(args, name) and args.lora_r is None:
            raise InputError(f"{name}: works with --lora_r, which is not given")
    for name in ("lora_target_modules", "peft_kwargs", "load_in_4bit", "merge"):
        if getattr(args, name) and not adapts:
            raise InputError(
                f"{name}: works with --lora_r or --peft_type; without one, all weights are trained"
            )
    if args.add_tokens and (args.peft_type or args.freeze_layers and not adapts):
        raise InputError(
            "add_tokens: their embeddings would not be trained; use --lora_r or train all weights"
        )
    sharded = launched_engine() in ("ZeRO-3", "FSDP")
    if args.add_tokens and adapts and sharded:
        raise InputError(
            "add_tokens: an adapter cannot hold new tokens where weights are sharded; take zero2 "
            "or ddp"
        )
    if args.load_in_4bit and sharded:
        raise InputError("load_in_4bit: 4-bit weights are not sharded; take zero2 or ddp")
    if args.load_in_4bit and args.peft_type == "GRALORA":
        raise InputError(
            "load_in_4bit: GRALORA cannot be trained on 4-bit layers; take --lora_r or another "
            "method"
        )


def _load_float32(args: AdapterArguments) -> PreTrainedModel:
    if args.load_in_4bit:
        return _load_in_4bit(args.model, args.trust_remote_code)
    return load_model(args.model, trust_remote_code=args.trust_remote_code, dtype=torch.float32)


def _load_in_4bit(name: str, trust_remote_code: bool) -> PreTrainedModel:
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
        name,
        trust_remote_code=trust_remote_code,
        dtype=torch.float32,
        quantization_config=config,
        device_map={"": device},
    )
    for layer_name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            if (
                device.type == "cpu" and layer.in_features % 64
            ):  # its AVX-512 code reads other blocks' scales there
                raise InputError(
                    f"load_in_4bit: {layer_name} has {layer.in_features} inputs; on a CPU "
                    "bitsandbytes is right for multiples of 64 alone; leave load_in_4bit out"
                )
            layer.support_avx512bf16_for_cpu = (
                False  # evaluation would pack weights in a form that does not train
            )
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
        tokenizer.add_tokens(
            [token], special_tokens=token.startswith("<|") and token.endswith("|>")
        )
    old = [token for token in tokens if token in known]
    if old and is_main_rank():
        print(f"add_tokens: the tokenizer has {', '.join(map(repr, old))} already", file=sys.stderr)
    return sorted(
        tokenizer.convert_tokens_to_ids([token for token in tokens if token not in known])
    )


def check_new_tokens(tokens: Sequence[str]) -> None:
    """Raise InputError for a token without characters, or given twice."""
    if "" in tokens:
        raise InputError("add_tokens: got an empty one; a token has at least one character")
    twice = [token for i, token in enumerate(tokens) if token in tokens[:i]]
    if twice:
        raise InputError(f"add_tokens: {twice[0]!r} is given twice; give each once")


def _attach(model: PreTrainedModel, args: AdapterArguments, new_ids: list[int]) -> PeftModel:
    linear = _linear_layers(model)
    if not linear:
        raise InputError(
            f"model {args.model}: {type(model).__name__} has no linear layer that an adapter could "
            "be put on; train all weights"
        )
    config = {"peft_type": args.peft_type or "LORA", "task_type": "CAUSAL_LM"}
    if args.peft_type in OWN_TARGETS and (args.lora_target_modules or args.freeze_layers):
        raise InputError(
            f"lora_target_modules, freeze_layers: {args.peft_type} has layers of its own; use "
            "--peft_kwargs"
        )
    if args.peft_type not in OWN_TARGETS:
        config["target_modules"] = _targets(model, args, linear)
    if args.peft_type != "LN_TUNING":
        config["fan_in_fan_out"] = any(
            Conv1D in (type(module), getattr(module, "source_cls", None))
            for module in linear.values()
        )
    if args.lora_r is not None:
        config |= {
            "r": args.lora_r,
            "lora_alpha": args.lora_alpha,
            "lora_dropout": args.lora_dropout,
            "use_dora": args.use_dora,
            "use_rslora": args.use_rslora,
            **_token_rows(model, new_ids),
        }
        _check_rank("lora_r", args.lora_r, linear)
    more = args.peft_kwargs or {}
    if twice := sorted(
        more.keys() & {*config, "modules_to_save"}
    ):  # whole tied embeddings come apart when merged
        raise InputError(
            f"peft_kwargs: {twice[0]} cannot be set here; take the argument of its own (see --help)"
        )
    _check_rank("peft_kwargs: r", more.get("r"), linear, always=1024)  # VeRA's is larger by design
    try:
        adapted = get_peft_model(model, get_peft_config(config | more))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"peft_kwargs: {config['peft_type']}: {' '.join(str(error).split())[:300]}"
        ) from None
    if (
        new_ids
    ):  # the adapter holds their rows; upstream would save the whole grown embeddings, twice
        adapted.save_pretrained = functools.partial(
            adapted.save_pretrained, save_embedding_layers=False
        )
    return adapted


def _check_rank(place: str, rank: Any, linear: dict[str, nn.Module], *, always: int = 1) -> None:
    """Raise InputError, beginning with `place`, for a rank above both sides of the widest layer,
    where it takes memory and gives nothing. One up to `always` is right for any layer.
    """
    sides = [side for module in linear.values() for side in _sides(module)]
    most = max([always, *sides])
    if isinstance(rank, int) and rank > most:
        raise InputError(
            f"{place}: got {rank}, expected at most {most}, the wider side of the widest layer"
        )


def _sides(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs, also of a layer in 4 bits or under ZeRO-3."""
    return (
        (layer.nx, layer.nf)
        if isinstance(layer, Conv1D)
        else (layer.in_features, layer.out_features)
    )


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that can have adapters, by name: all linear ones but the output embeddings and
    those that peft would not reach or would break."""
    modules = dict(model.named_modules())
    is_mamba = any(
        "mamba" in f"{name} {type(module).__name__}".lower() for name, module in modules.items()
    )
    unseen = MAMBA_WEIGHTS if is_mamba else ()

    def can_adapt(name: str, module: nn.Module) -> bool:
        return (
            isinstance(module, nn.Linear | Conv1D)
            and module is not model.get_output_embeddings()
            and "router"
            not in type(module).__name__.lower()  # of experts: returns more than a product
            and name.rpartition(".")[2] not in unseen
        )

    return {name: module for name, module in modules.items() if can_adapt(name, module)}


def _token_rows(model: PreTrainedModel, new_ids: list[int]) -> dict[str, Any]:
    """Settings by which a LoRA adapter trains, and holds, all rows of the embeddings that belong to
    new tokens. Those that it does not hold would be drawn anew whenever it is loaded.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if not new_ids or outputs is None:
        return {"trainable_token_indices": new_ids or None}
    tied, has_bias = outputs.weight is inputs.weight, getattr(outputs, "bias", None) is not None
    if tied and has_bias:
        raise InputError(
            f"add_tokens: the output layer of {type(model).__name__} has a bias, which peft would "
            "leave out; train all weights (without --lora_r)"
        )
    if tied:
        return {"trainable_token_indices": new_ids}
    names = {id(module): name for name, module in model.named_modules()}
    input_name, output_name = names[id(inputs)], names[id(outputs)]
    if has_bias:  # peft's layer for rows knows none, so the whole output layer is trained and saved
        return {"trainable_token_indices": {input_name: new_ids}, "modules_to_save": [output_name]}
    return {"trainable_token_indices": {input_name: new_ids, output_name: new_ids}}


def _targets(
    model: PreTrainedModel, args: AdapterArguments, linear: dict[str, nn.Module]
) -> list[str]:
    """Names, or ends of names, of the layers that get an adapter."""
    ends = sorted({name.rpartition(".")[2] for name in linear})
    for end in args.lora_target_modules or []:
        if not any(f".{name}".endswith(f".{end}") for name in linear):
            raise InputError(
                f"lora_target_modules: {end} ends the name of no linear layer here; these do: "
                f"{', '.join(ends)} (or longer, such as {next(iter(linear))})"
            )
    endings = tuple(f".{end}" for end in args.lora_target_modules or ends)
    frozen = {
        id(module)
        for block in _first_blocks(model, args.freeze_layers)
        for module in block.modules()
    }
    chosen = [
        name
        for name, module in linear.items()
        if f".{name}".endswith(endings) and id(module) not in frozen
    ]
    meant = [name for name, _ in model.named_modules() if f".{name}".endswith(endings)]
    # Ends make a short record, but those of layers in a Sequential are numbers, as those of blocks
    # are.
    return [ending[1:] for ending in endings] if sorted(chosen) == sorted(meant) else chosen


def _first_blocks(model: PreTrainedModel, count: int) -> Sequence[nn.Module]:
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
    before = logits_on_trial(model, trial_size(model))
    merged = model.merge_and_unload()
    if not logits_equal(logits_on_trial(merged, trial_size(merged)), before):
        raise InputError(
            f"merge: added to the weights of {type(merged).__name__}, the adapter gives other "
            f"logits; leave --merge out and use it as it is: {folder}"
        )
    merged.save_pretrained(folder)
    for name in ADAPTER_FILES:
        Path(folder, name).unlink()
