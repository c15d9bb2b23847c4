"""What of a loaded checkpoint is trained: all of it, its upper layers, or a small adapter (through peft)."""

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_config, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from hfscale.config import AdapterArguments, InputError, show_bitsandbytes
from hfscale.launch import launched_engine
from hfscale.models import is_adapter, load_model, load_saved_model

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
OWN_TARGETS = ("IA3", "LN_TUNING")  # where these go is peft's knowledge of each architecture


def load_for_training(args: AdapterArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | PeftModel:
    """The checkpoint `args.model` in float32, with new tokens (`tokenizer` gets them too), and frozen layers or an
    adapter as `args` says.

    Input and output embeddings that are one matrix stay so. An adapter holds the rows of its new tokens.

    Raises:
        InputError: settings that contradict each other or that the model does not have, 4 bits where they do not
            work, a checkpoint that is an adapter itself; see also `load_model`.
    """
    adapts = args.lora_rank is not None or args.peft_type is not None
    _check(args, adapts)
    if is_adapter(args.model):
        raise InputError(f"model {args.model}: is an adapter; make a plain model of it first (its run with --merge)")
    model = _load_float32(args)
    layers = model.config.get_text_config().num_hidden_layers
    if not 0 <= args.freeze_layers <= layers - adapts:
        raise InputError(f"freeze_layers: got {args.freeze_layers}, the model has {layers} blocks")
    new_ids = add_tokens(model, tokenizer, args.add_tokens) if args.add_tokens else []
    if adapts:
        return _attach(model, args, new_ids)
    if args.freeze_layers:
        embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
        for module in (*embeddings, *_blocks(model)[:args.freeze_layers]):
            module.requires_grad_(False)
    return model


def _check(args: AdapterArguments, adapts: bool) -> None:
    """Refuse what would otherwise be ignored without a word."""
    if args.lora_rank is not None and args.lora_rank < 1:
        raise InputError(f"lora_rank: got {args.lora_rank}, expected at least 1")
    if args.lora_rank is not None and args.peft_type is not None:
        raise InputError(f"lora_rank, peft_type {args.peft_type}: give one of the two")
    for name in ("use_dora", "use_rslora", "lora_dropout"):
        if getattr(args, name) and args.lora_rank is None:
            raise InputError(f"{name}: works with --lora_rank, which is not given")
    for name in ("target_modules", "peft_kwargs", "load_in_4bit", "merge"):
        if getattr(args, name) and not adapts:
            raise InputError(f"{name}: works with --lora_rank or --peft_type; without one, all weights are trained")
    if args.add_tokens and (args.peft_type or args.freeze_layers and not adapts):
        raise InputError("add_tokens: their embeddings would not be trained; use --lora_rank or train all weights")
    sharded = launched_engine() in ("ZeRO-3", "FSDP")
    if args.add_tokens and adapts and sharded:
        raise InputError("add_tokens: an adapter cannot hold new tokens where weights are sharded; take zero2 or ddp")
    if args.load_in_4bit and sharded:
        raise InputError("load_in_4bit: 4-bit weights are not sharded; take zero2 or ddp")
    if args.load_in_4bit and args.peft_type == "GRALORA":
        raise InputError("load_in_4bit: GRALORA cannot be trained on 4-bit layers; take --lora_rank or another method")


def _load_float32(args: AdapterArguments) -> PreTrainedModel:
    if args.load_in_4bit:
        return _load_in_4bit(args.model, args.trust_remote_code)
    return load_model(args.model, trust_remote_code=args.trust_remote_code, dtype=torch.float32)


def _load_in_4bit(name: str, trust_remote_code: bool) -> PreTrainedModel:
    """A checkpoint with the linear layers of its blocks in 4 bits (NF4, scales in 8 bits; Dettmers et al. 2023,
    arXiv:2305.14314) on this process's device, the rest in float32.

    They compute in float32, which autocast makes bf16 where the run is in bf16: told to compute in bf16 at all times,
    bitsandbytes would round their biases for good.
    """
    show_bitsandbytes()
    if find_spec("bitsandbytes") is None:
        raise InputError('load_in_4bit: bitsandbytes is not installed: pip install "hfscale[quantization]"')
    from bitsandbytes.nn import Linear4bit

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    device = PartialState().device
    model = load_model(name, trust_remote_code=trust_remote_code, dtype=torch.float32, quantization_config=config,
                       device_map={"": device})
    for layer_name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            if device.type == "cpu" and layer.in_features % 64:  # its AVX-512 code reads other blocks' scales there
                raise InputError(f"load_in_4bit: {layer_name} has {layer.in_features} inputs; on a CPU bitsandbytes "
                                 "is right for multiples of 64 alone; leave load_in_4bit out")
            layer.support_avx512bf16_for_cpu = False  # evaluation would pack weights in a form that does not train
    return model


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Ids of those tokens that were new; tokenizer and embeddings grow where they must. New rows are drawn around the
    mean of the old ones (upstream's way)."""
    before = len(tokenizer)
    for token in tokens:
        tokenizer.add_tokens([token], special_tokens=token.startswith("<|") and token.endswith("|>"))
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return list(range(before, len(tokenizer)))


def _attach(model: PreTrainedModel, args: AdapterArguments, new_ids: list[int]) -> PeftModel:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
              and module is not model.get_output_embeddings()}
    config = {"peft_type": args.peft_type or "LORA", "task_type": "CAUSAL_LM"}
    if args.peft_type in OWN_TARGETS and (args.target_modules or args.freeze_layers):
        raise InputError(f"target_modules, freeze_layers: {args.peft_type} has layers of its own; use --peft_kwargs")
    if args.peft_type not in OWN_TARGETS:
        config["target_modules"] = _targets(model, args, linear)
    if args.peft_type != "LN_TUNING":
        config["fan_in_fan_out"] = any(Conv1D in (type(module), getattr(module, "source_cls", None))
                                       for module in linear.values())
    if args.lora_rank is not None:
        config |= {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout,
                   "use_dora": args.use_dora, "use_rslora": args.use_rslora,
                   "trainable_token_indices": new_ids or None}
    more = args.peft_kwargs or {}
    if twice := sorted(more.keys() & {*config, "modules_to_save"}):  # whole tied embeddings come apart when merged
        raise InputError(f"peft_kwargs: {twice[0]} cannot be set here; take the argument of its own (see --help)")
    try:
        adapted = get_peft_model(model, get_peft_config(config | more))
    except (TypeError, ValueError) as error:
        raise InputError(f"peft_kwargs: {config['peft_type']}: {' '.join(str(error).split())[:300]}") from None
    if new_ids:  # the adapter holds their rows; upstream would save the whole grown embeddings, twice
        adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def _targets(model: PreTrainedModel, args: AdapterArguments, linear: dict[str, nn.Module]) -> list[str]:
    """Names, or ends of names, of the layers that get an adapter."""
    ends = sorted({name.rpartition(".")[2] for name in linear})
    for end in args.target_modules or []:
        if not any(f".{name}".endswith(f".{end}") for name in linear):
            raise InputError(f"target_modules: {end} ends the name of no linear layer here; these do: "
                             f"{', '.join(ends)} (or longer, such as {next(iter(linear))})")
    ends = tuple(f".{end}" for end in args.target_modules or ends)
    if not args.freeze_layers:
        return [end[1:] for end in ends]
    frozen = {id(module) for block in _blocks(model)[:args.freeze_layers] for module in block.modules()}
    return [name for name, module in linear.items() if f".{name}".endswith(ends) and id(module) not in frozen]


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, from the first."""
    layers = model.config.get_text_config().num_hidden_layers
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers)


def merge_saved_adapter(folder: str, *, trust_remote_code: bool = False) -> None:
    """Make a plain model of the adapter saved in `folder`: the adapter is added to its base model, in float32."""
    model = load_saved_model(folder, trust_remote_code=trust_remote_code, dtype=torch.float32)
    model.merge_and_unload().save_pretrained(folder)
    for name in ADAPTER_FILES:
        Path(folder, name).unlink()
