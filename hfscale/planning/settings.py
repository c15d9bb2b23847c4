"""What a training configuration asks for, in the terms of a plan, or one line about what of it
cannot be counted.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.architectures import has_memory_formulas
from hfscale.arguments import AdapterArguments, AveragingArguments, ShapeArguments, shape_of
from hfscale.config import arguments_class, shipped
from hfscale.planning.flops import Shape
from hfscale.planning.memory import Step
from hfscale.planning.plan import Device, Model, divisors
from hfscale.planning.shapes import find_shape, saved_tokenizer, stated_architecture
from hfscale.process import InputError

# Bytes that each optimizer keeps per trained parameter, beside the weights and their gradients.
OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adagrad": 4, "rmsprop": 4, "sgd": 0}
# The next step where something is not counted.
MEASURE_INSTEAD = "see what the first steps of a run take (memory_peak_bytes in its run.json)"
DEFAULT_OPTIMIZER = "adamw_torch_fused"  # TrainingArguments'
# Arguments of training that change memory or time in a way that is not counted, but for these
# values.
ONLY_WITH: dict[str, tuple] = {
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
# Arguments of the recipes, alike.
RECIPES_ONLY_WITH: dict[str, tuple] = {
    "peft_type": (None,),
    "peft_kwargs": (None, {}),
    "use_dora": (False,),
}
# What works on a checkpoint alone, and what with LoRA alone.
ON_A_CHECKPOINT = ("lora_r", "freeze_layers", "load_in_4bit", "merge")
WITH_ADAPTERS = ("lora_target_modules", "load_in_4bit", "lora_dropout", "use_rslora", "merge")
DEFAULT_BATCH_SIZE = 8  # TrainingArguments', for training and evaluation
POSITIVE_IN_TRAINING = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
)
FINETUNED_LENGTH = 1024  # rows of finetune and finetune_task are no longer where nothing is said
NEW_TASK_TOKENIZER = "train:1024"  # what finetune_task trains where nothing is said


@dataclass
class Planned(ShapeArguments, AdapterArguments, AveragingArguments):
    """What a plan reads of a training recipe's arguments, in their names; see there."""

    recipe: str = ""
    model: str | None = None  # type: ignore[assignment]  # None: a new model
    tokenizer: str | None = None  # None: the checkpoint's own
    max_length: int | None = None
    cross_document_attention: bool = False
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_values(cls, recipe: str, values: dict[str, Any]) -> "Planned":
        """From the values that were given to a training recipe; its defaults stand for the
        others.
        """
        recipe_class = arguments_class(shipped("recipes", "*.py")[recipe])
        own_names = {item.name for item in fields(recipe_class)} - {"training"}
        own_values = {name: value for name, value in values.items() if name in own_names}
        training = {name: value for name, value in values.items() if name not in own_names}
        arguments = recipe_class(**own_values, training=training)
        shared = {item.name for item in fields(cls)} & {item.name for item in fields(recipe_class)}
        planned = cls(recipe=recipe, **{name: getattr(arguments, name) for name in shared})
        if recipe == "finetune_task" and planned.model == "new":
            planned.model = None
            planned.tokenizer = planned.tokenizer or NEW_TASK_TOKENIZER
        return planned


class Rows(NamedTuple):
    """How the rows of an optimizer step are shared out."""

    batch_size: int  # a process's, at a time
    passes: int  # of it, before the optimizer's step
    asked_tokens: int | None  # of a step on all processes; None: what the batch size makes
    given: dict[str, int]  # what the words of the command say of batch size and passes

    @property
    def per_process(self) -> int:
        """Rows that each process reads for one step."""
        return self.batch_size * self.passes


def check_countable(planned: Planned) -> None:
    """Raise InputError for an argument that changes what is planned in a way that is not counted,
    or that the recipe would refuse.
    """
    _check_positive(planned)
    for values, table in ((planned.training, ONLY_WITH), (vars(planned), RECIPES_ONLY_WITH)):
        for name, harmless in table.items():
            if name in values and values[name] not in harmless:
                raise InputError(
                    f"{name}: got {values[name]!r}, which plan does not count; leave it out, or "
                    f"{MEASURE_INSTEAD}"
                )
    optimizer = planned.training.get("optim", DEFAULT_OPTIMIZER)
    if optimizer not in OPTIMIZER_BYTES:
        raise InputError(
            f"optim: got {optimizer!r}; plan knows what {', '.join(OPTIMIZER_BYTES)} keep"
        )
    _check_checkpoint(planned)
    _check_adapters(planned)


def _check_positive(planned: Planned) -> None:
    """Raise InputError for a size below 1 that no argument's own limits refuse."""
    sizes = {name: planned.training.get(name) for name in POSITIVE_IN_TRAINING}
    sizes["max_length"] = planned.max_length
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")


def _check_checkpoint(planned: Planned) -> None:
    """Raise InputError for what works on a checkpoint alone, without one."""
    needs_checkpoint = [name for name in ON_A_CHECKPOINT if getattr(planned, name)]
    if planned.model is None and needs_checkpoint:
        raise InputError(f"{needs_checkpoint[0]}: works on a checkpoint; name it with --model")


def _check_adapters(planned: Planned) -> None:
    """Raise InputError for what works with adapters alone, without them, and for what is not
    counted beside them.
    """
    needs_adapters = [name for name in WITH_ADAPTERS if getattr(planned, name)]
    if planned.lora_r is None and needs_adapters:
        raise InputError(f"{needs_adapters[0]}: works with --lora_r, which is not given")
    if planned.add_tokens and (planned.lora_r or planned.freeze_layers):
        raise InputError("add_tokens: plan counts new tokens only where all weights are trained")


def checked_targets(planned: Planned, shape: Shape) -> tuple[str, ...]:
    """The layers that get adapters, by the ends of their names; raises InputError for one that ends
    no name, and for blocks to freeze that the model has not.
    """
    most_frozen = shape.n_layer - 1 if planned.lora_r else shape.n_layer
    if not 0 <= planned.freeze_layers <= most_frozen:
        raise InputError(
            f"freeze_layers: got {planned.freeze_layers}, the model has {shape.n_layer} blocks"
        )
    layers = [*shape.linear_layers(), *shape.idle_layers()]
    names = [
        f".transformer.h.{block}.{layer}" for block in range(shape.n_layer) for layer in layers
    ]
    for end in planned.lora_target_modules or []:
        if not any(name.endswith(f".{end}") for name in names):
            raise InputError(
                f"lora_target_modules: {end} ends the name of no linear layer; these do: "
                f"{', '.join(layers)}"
            )
    return tuple(planned.lora_target_modules or ())


def find_max_length(planned: Planned, context: int) -> int:
    """Tokens of a row; raises InputError: more than the model's `context`."""
    longest = context
    if planned.recipe != "pretrain":
        longest = min(longest, FINETUNED_LENGTH)
    max_length = planned.max_length or longest
    if max_length > context:
        raise InputError(
            f"max_length {max_length} is beyond the model's max_position_embeddings {context}"
        )
    return max_length


def is_counted_by_formulas(planned: Planned) -> bool:
    """Whether no model is made to count it. Without files only GPT-2's sizes are known, by name."""
    if planned.model is None:
        return has_memory_formulas(planned.architecture)
    stated = stated_architecture(planned.model)
    return stated is None or has_memory_formulas(stated)


def planned_shape(planned: Planned, vocab_size: int | None) -> Shape:
    """The model's sizes, its vocabulary grown by `--add_tokens`; `vocab_size` where the tokenizer
    does not tell it. Raises InputError as `find_shape`.
    """
    shape = find_shape(planned.model, shape_of(planned), planned.tokenizer or "", vocab_size)
    if not planned.add_tokens:
        return shape
    tokenizer = None
    for folder in (planned.tokenizer, planned.model):
        if tokenizer is None and folder and Path(folder).is_dir():
            tokenizer = saved_tokenizer(folder)
    known = tokenizer.get_vocab() if tokenizer else {}
    words = len(known) or shape.vocab_size
    new = {token for token in planned.add_tokens if token not in known}
    return shape._replace(vocab_size=max(shape.vocab_size, words + len(new)))


def pick_precision(training: dict[str, Any], device: Device, gpu: str) -> str:
    """bf16, fp16 or fp32; default: bf16 where the device has matrix units for it.

    Raises InputError: a type for which the device has no matrix units, or both.
    """
    asked = [name for name in ("bf16", "fp16") if training.get(name)]
    if len(asked) == 2:
        raise InputError("bf16, fp16: both are given; keep one")
    for name in asked:
        if not device.tflops(name):
            raise InputError(f"{name}: {gpu} has no {name} matrix units; add --{name} false")
    if asked:
        return asked[0]
    return "bf16" if device.tflops("bf16") and training.get("bf16") is None else "fp32"


def step_of(planned: Planned, model: Model, rows: Rows, max_length: int, precision: str) -> Step:
    """What one process computes at a time; `precision`: bf16, fp16 or fp32."""
    training = planned.training
    return Step(
        rows.batch_size,
        max_length,
        training.get("per_device_eval_batch_size", DEFAULT_BATCH_SIZE),
        bf16=precision != "fp32",
        activation_checkpointing=checkpoints(training),
        accumulates=rows.passes > 1,
        masked=not planned.cross_document_attention,
        lora_r=planned.lora_r or 0,
        load_in_4bit=planned.load_in_4bit,
        target_modules=model.target_modules,
        freeze_layers=planned.freeze_layers,
        lora_dropout=planned.lora_dropout,
        optimizer_bytes=OPTIMIZER_BYTES[training.get("optim", DEFAULT_OPTIMIZER)],
        muon=planned.optimizer == "muon",
        averages_weights=planned.weight_averaging is not None,
    )


def checkpoints(training: dict[str, Any]) -> bool:
    """Whether blocks are computed a second time, by either of the two names."""
    return bool(training.get("activation_checkpointing") or training.get("gradient_checkpointing"))


def share_rows(
    planned: Planned, num_gpus: int, tokens_per_step: int | None, max_length: int
) -> Rows:
    """Rows of a step for each of the processes: as many as the configuration says, or so that all
    of them together read `tokens_per_step`. Where that does not come out even, the tokens change.

    Raises InputError: a step with fewer rows than GPUs.
    """
    batch_size = planned.training.get("per_device_train_batch_size", DEFAULT_BATCH_SIZE)
    passes = planned.training.get("gradient_accumulation_steps", 1)
    given = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": passes}
    if tokens_per_step is None:
        return Rows(batch_size, passes, None, given)
    rows = tokens_per_step // max_length // num_gpus
    if rows < 1:
        raise InputError(
            f"tokens_per_step: {tokens_per_step:,} tokens are fewer than one row of "
            f"{max_length:,} for each of {num_gpus} GPUs; take fewer GPUs, or more tokens with "
            "--tokens_per_step"
        )
    batch_size = max(size for size in divisors(rows) if size <= batch_size)
    return Rows(batch_size, rows // batch_size, tokens_per_step, given)
