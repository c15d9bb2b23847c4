"""What a training configuration asks for, in the terms of a plan, or one line about what of it
cannot be counted.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.arguments import ShapeArguments
from hfscale.config import check_recipe_args, pick_flags
from hfscale.planning.flops import Shape
from hfscale.planning.memory import Step
from hfscale.planning.plan import divisors
from hfscale.planning.shapes import saved_tokenizer
from hfscale.process import InputError

# Bytes that each optimizer keeps per trained parameter, beside the weights and their gradients.
OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adagrad": 4, "rmsprop": 4, "sgd": 0}
# Arguments of training that change memory or time in a way that is not counted, but for these
# values.
ONLY_WITH = {
    "torch_compile": (False,),
    "torch_compile_backend": (None,),
    "torch_compile_mode": (None,),
    "activation_checkpointing_kwargs": (None, {}, {"use_reentrant": False}),
    "gradient_checkpointing_kwargs": (None, {}, {"use_reentrant": False}),
    "optim_args": (None, ""),
    "optim_target_modules": (None,),
    "label_smoothing_factor": (0,),
    "parallelism_config": (None,),
    "bf16_full_eval": (False,),
    "fp16_full_eval": (False,),
    "use_cpu": (False,),
}
# Arguments of finetune, alike.
ADAPTERS_ONLY_WITH = {"peft_type": (None,), "peft_kwargs": (None, {}), "use_dora": (False,)}
ON_A_CHECKPOINT = ("lora_r", "freeze_layers", "load_in_4bit", "add_tokens", "merge")
WITH_ADAPTERS = ("lora_target_modules", "load_in_4bit", "lora_dropout", "use_rslora", "merge")
DEFAULT_BATCH_SIZE = 8  # TrainingArguments', for training and evaluation


POSITIVE = (
    "num_gpus",
    "num_machines",
    "network_gbit_s",
    "efficiency",
    "tokens",
    "tokens_per_step",
    "vocab_size",
    "price_per_gpu_hour",
    "price_per_kwh",
    "max_length",
    "lora_r",
)
POSITIVE_IN_TRAINING = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
)
FINETUNED_LENGTH = 1024  # finetune's rows are no longer where nothing is said


class Rows(NamedTuple):
    """How the rows of an optimizer step are shared out."""

    batch_size: int  # a process's, at a time
    passes: int  # of it, before the optimizer's step
    asked_tokens: int | None  # of a step, by the config; None: it does not say on how many GPUs
    given: dict[str, int]  # what the words of the command say of batch size and passes

    @property
    def per_process(self) -> int:
        """Rows that each process reads for one step."""
        return self.batch_size * self.passes


def check_positive(args: Any) -> None:
    """Raise InputError for a number that is not above 0 or not finite."""
    values = {name: getattr(args, name) for name in POSITIVE}
    values |= {name: args.training.get(name) for name in POSITIVE_IN_TRAINING}
    for name, value in values.items():
        most = 1 if name == "efficiency" else math.inf
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            limit = ", at most 1" if name == "efficiency" else ""
            raise InputError(f"{name}: got {value}, expected above 0{limit}")


def check_countable(args: Any) -> None:
    """Raise InputError for an argument that changes what is planned in a way that is not counted,
    or that the recipe would refuse.
    """
    for values, table in ((args.training, ONLY_WITH), (vars(args), ADAPTERS_ONLY_WITH)):
        for name, harmless in table.items():
            if name in values and values[name] not in harmless:
                raise InputError(
                    f"{name}: got {values[name]!r}, which plan does not count; leave it out, or "
                    "see what the first steps of a run take (memory_peak_bytes in its run.json)"
                )
    optimizer = args.training.get("optim", "adamw_torch_fused")
    if optimizer not in OPTIMIZER_BYTES:
        raise InputError(
            f"optim: got {optimizer!r}; plan knows what {', '.join(OPTIMIZER_BYTES)} keep"
        )
    _check_checkpoint(args)
    _check_adapters(args)


def _check_checkpoint(args: Any) -> None:
    """Raise InputError for what only a checkpoint has, without one, and for a new model's sizes
    beside one.
    """
    given = [name for name in ON_A_CHECKPOINT if getattr(args, name)]
    if args.model is None and given:
        raise InputError(f"{given[0]}: works on a checkpoint; name it with --model")
    sizes = ShapeArguments.__dataclass_fields__
    changed = [name for name, field in sizes.items() if getattr(args, name) != field.default]
    if args.model and changed:
        raise InputError(
            f"{changed[0]}: the checkpoint {args.model} has its own; finetune does not take it"
        )


def _check_adapters(args: Any) -> None:
    """Raise InputError for what works with adapters alone, without them, and for what is not
    counted beside them.
    """
    given = [name for name in WITH_ADAPTERS if getattr(args, name)]
    if args.lora_r is None and given:
        raise InputError(f"{given[0]}: works with --lora_r, which is not given")
    if not 0 <= args.lora_dropout < 1:
        raise InputError(
            f"lora_dropout: got {args.lora_dropout}, expected a number from 0 to below 1"
        )
    if args.add_tokens and (args.lora_r or args.freeze_layers):
        raise InputError("add_tokens: plan counts new tokens only where all weights are trained")


def checked_targets(args: Any, shape: Shape) -> tuple[str, ...]:
    """The layers that get adapters, by the ends of their names; raises InputError for one that ends
    no name, and for blocks to freeze that the model has not.
    """
    if not 0 <= args.freeze_layers <= shape.n_layer - bool(args.lora_r):
        raise InputError(
            f"freeze_layers: got {args.freeze_layers}, the model has {shape.n_layer} blocks"
        )
    layers = [*shape.linear_layers(), *shape.idle_layers()]
    names = [
        f".transformer.h.{block}.{layer}" for block in range(shape.n_layer) for layer in layers
    ]
    for end in args.lora_target_modules or []:
        if not any(name.endswith(f".{end}") for name in names):
            raise InputError(
                f"lora_target_modules: {end} ends the name of no linear layer; these do: "
                f"{', '.join(layers)}"
            )
    return tuple(args.lora_target_modules or ())


def find_max_length(args: Any, shape: Shape) -> int:
    """Tokens of a row; raises InputError: more than the model reads."""
    longest = min(shape.n_positions, FINETUNED_LENGTH) if args.model else shape.n_positions
    max_length = args.max_length or longest
    if max_length > shape.n_positions:
        raise InputError(
            f"max_length {max_length} is beyond the model's n_positions {shape.n_positions}"
        )
    return max_length


def with_new_tokens(args: Any, shape: Shape) -> Shape:
    """The shape with a vocabulary grown by `--add_tokens`: as many as the tokenizer has not, where
    it has no room.
    """
    if not args.add_tokens:
        return shape
    tokenizer = saved_tokenizer(
        args.tokenizer if Path(args.tokenizer or "").is_dir() else args.model
    )
    known = tokenizer.get_vocab() if tokenizer else {}
    words = len(known) or shape.vocab_size
    new = {token for token in args.add_tokens if token not in known}
    return shape._replace(vocab_size=max(shape.vocab_size, words + len(new)))


def precision(training: dict[str, Any], units: set[str], gpu: str) -> str:
    """bf16, fp16 or fp32; default: bf16 where the device has matrix units for it. `units` are the
    types that it has them for. Raises InputError: a type without them, or both.
    """
    asked = [name for name in ("bf16", "fp16") if training.get(name)]
    if len(asked) == 2:
        raise InputError("bf16, fp16: both are given; keep one")
    for name in asked:
        if name not in units:
            raise InputError(f"{name}: {gpu} has no {name} matrix units; add --{name} false")
    if asked:
        return asked[0]
    return "bf16" if "bf16" in units and training.get("bf16") is None else "fp32"


def step_of(args: Any, shape: Shape, rows: Rows, max_length: int, half: bool) -> Step:
    """What one process computes at a time; `half`: in two bytes a value."""
    training = args.training
    return Step(
        rows.batch_size,
        max_length,
        training.get("per_device_eval_batch_size", DEFAULT_BATCH_SIZE),
        bf16=half,
        activation_checkpointing=checkpoints(training),
        accumulates=rows.passes > 1,
        masked=not args.cross_document_attention,
        lora_r=args.lora_r or 0,
        load_in_4bit=args.load_in_4bit,
        target_modules=checked_targets(args, shape),
        freeze_layers=args.freeze_layers,
        lora_dropout=args.lora_dropout,
        optimizer_bytes=OPTIMIZER_BYTES[training.get("optim", "adamw_torch_fused")],
    )


def checkpoints(training: dict[str, Any]) -> bool:
    """Whether blocks are computed a second time, by either of the two names."""
    return bool(training.get("activation_checkpointing") or training.get("gradient_checkpointing"))


def asked_rows(args: Any, argv: list[str], recipe: str, max_length: int) -> Rows:
    """Rows of a step for each of `args.num_gpus` processes, so that all of them together keep the
    tokens of a step: `--tokens_per_step`, else those of the config files on the GPUs that they
    name.

    Where that does not come out even, or the sizes are given on the command line, the tokens
    change.

    Raises InputError: a step with fewer rows than GPUs.
    """
    batch_size, passes = _batch(args.training)
    given = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": passes}
    asked = args.tokens_per_step or _config_tokens(argv, recipe, max_length)
    on_command_line = pick_flags(argv, given)[0]
    if asked is None or (on_command_line and not args.tokens_per_step):
        return Rows(batch_size, passes, asked, given)
    rows = asked // max_length // args.num_gpus
    if rows < 1:
        raise InputError(
            f"tokens_per_step: {asked:,} tokens are fewer than one row of {max_length:,} for each "
            f"of {args.num_gpus} GPUs; take fewer GPUs, or more tokens with --tokens_per_step"
        )
    batch_size = max(size for size in divisors(rows) if size <= batch_size)
    return Rows(batch_size, rows // batch_size, asked, given)


def _batch(values: dict[str, Any]) -> tuple[int, int]:
    """Rows at a time and passes before the optimizer's step, of one process."""
    batch_size = values.get("per_device_train_batch_size", DEFAULT_BATCH_SIZE)
    return batch_size, values.get("gradient_accumulation_steps", 1)


def _config_tokens(argv: list[str], recipe: str, max_length: int) -> int | None:
    """Tokens of a step by the config files alone; None: they do not say on how many GPUs."""
    words, _ = pick_flags(argv, {"config"})
    config = check_recipe_args(Path(recipe), words) if words else {}
    if "num_gpus" not in config:
        return None
    batch_size, passes = _batch(config)
    length = config.get("max_length") or (
        max_length if config.get("model") else config.get("n_positions", max_length)
    )
    return config["num_gpus"] * batch_size * passes * length
