"""What a training run is about to do, shown before it starts (`--dry_run`)."""

import math
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise

import psutil
import pyarrow.compute
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hfscale.architectures import has_memory_formulas
from hfscale.arguments import AveragingArguments, OptimizerArguments
from hfscale.data.layouts import IGNORED
from hfscale.data.repacking import RepackedRows, table_of
from hfscale.models import context_limit, count_parameters, count_trained
from hfscale.new_models import count_new_parameters
from hfscale.planning.flops import Shape
from hfscale.planning.memory import (
    Sharding,
    Step,
    Weights,
    sharding_of,
    step_memory_bytes,
    weights_of,
)
from hfscale.planning.settings import OPTIMIZER_BYTES
from hfscale.process import is_main_rank, launched_engine, launched_processes, planned_launch
from hfscale.report.tables import show_table
from hfscale.traced_memory import MemoryOf, find_memory, matrices_by_shape

SHOWN_TOKENS = 24  # of each part that is scored, or is not


def preview(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: DatasetDict | dict,
    args: TrainingArguments,
    optimizer: OptimizerArguments | None = None,
) -> None:
    """Print (rank 0) the first text of a packed row with its labels, the counts, and the memory of
    a step with that `optimizer`; None: upstream's alone.
    """
    if not is_main_rank():
        return
    row = next(iter(rows["train"]))
    show_table(
        ("position", "token", "input_ids", "label"),
        _row_table(row, tokenizer),
        title="The first training row begins",
    )
    memory, is_exact = count_memory(model, args, rows["train"], optimizer)
    needed = sum(memory.values())
    # What other machines have is not known here.
    available = None if planned_launch() else device_memory_bytes(args)

    counts: list[tuple[str, str]] = []
    for name, part in rows.items():
        if not isinstance(part, IterableDataset):
            counts += _counts_of(name, part, is_packed="position_ids" in row)
    # Of a stream the number of rows is not known, but max_steps is given.
    num_rows = 0 if isinstance(rows["train"], IterableDataset) else len(rows["train"])
    counts.append(("steps", f"{count_steps(num_rows, args):,}"))
    counts.append(("learning_rate", f"{args.learning_rate:g}"))
    for name, value in count_parameters(model).items():
        counts.append((name.replace("_", " "), f"{value:,}"))
    for name, size in memory.items():
        counts.append((f"memory: {name}", _mebibytes(size)))
    counts.append(("memory: all, per process, without libraries", _mebibytes(needed)))
    shown = "not known here" if available is None else _mebibytes(available)
    counts.append(("memory: there is, per process", shown))
    show_table(("what", "value"), counts, title="The run", show_header=False)
    if not is_exact:
        print(
            "memory of activations and logits is that of a GPT-2 of these sizes; what this "
            f"{model.config.model_type} takes is not counted"
        )

    if available is not None and needed > available:
        print(
            "this does not fit: lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps), or add --activation_checkpointing; hfscale plan shows "
            "what fits where"
        )
    print("dry run: nothing was trained or written")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _counts_of(
    name: str, part: Dataset | RepackedRows, *, is_packed: bool
) -> list[tuple[str, str]]:
    """What of a split is read, and what of that is scored."""
    scored = sum(table_of(part)["num_tokens"])
    places, longest = _places(part)
    up_to = "" if is_packed else "up to "
    return [
        (f"{name} rows x tokens", f"{len(part):,} x {up_to}{longest:,}"),
        (f"{name} tokens scored", f"{scored:,}"),
        # The first place of a row is never predicted.
        (f"{name} places not scored", f"{1 - scored / (places - len(part)):.2%}"),
    ]


def _row_table(row: dict, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, ...]]:
    """The first text of the row up to its last scored token, the middle of long parts left out."""
    table: list[tuple[str, ...]] = []
    for part in _parts(row):
        half = SHOWN_TOKENS // 2
        if len(part) <= SHOWN_TOKENS:
            table += _tokens_of(row, part, tokenizer)
            continue
        table += _tokens_of(row, part[:half], tokenizer)
        table.append(("...", f"{len(part) - 2 * half:,} more", "", ""))
        table += _tokens_of(row, part[-half:], tokenizer)
    return table


def _tokens_of(
    row: dict, places: range, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, ...]]:
    for i in places:
        token = row["input_ids"][i]
        label = "not scored"
        if _is_scored(row, i):
            label = repr(tokenizer.decode([row["labels"][i]]))
        position = str(_positions(row)[i])
        yield position, repr(tokenizer.decode([token])), str(token), label


def _positions(row: dict) -> Sequence[int]:
    """A row of one document has no position ids: the model counts by itself."""
    return row.get("position_ids", range(len(row["input_ids"])))


def _is_scored(row: dict, i: int) -> bool:
    return i > 0 and row["labels"][i] != IGNORED


def _parts(row: dict) -> list[range]:
    """Runs of places that are scored or are not, in turn, of the first text: positions begin anew
    with the next.
    """
    positions = _positions(row)
    end = next((i for i in range(1, len(positions)) if positions[i] == 0), len(positions))
    bounds = [0, *(i for i in range(1, end) if _is_scored(row, i) != _is_scored(row, i - 1)), end]
    parts = [range(*pair) for pair in pairwise(bounds)]
    if len(parts) > 1 and not _is_scored(row, parts[-1][0]):
        return parts[:-1]
    return parts


def _places(part: Dataset | RepackedRows) -> tuple[int, int]:
    """Tokens of all rows, and of the longest."""
    if isinstance(part, RepackedRows):
        max_length = part.settings.max_length
        return len(part) * max_length, max_length
    column = part.select_columns("input_ids").with_format("arrow")[:].column("input_ids")
    lengths = pyarrow.compute.list_value_length(column)
    return pyarrow.compute.sum(lengths).as_py(), pyarrow.compute.max(lengths).as_py()


def memory_at_hand(
    model: PreTrainedModel,
    args: TrainingArguments,
    rows: Dataset | IterableDataset | RepackedRows,
    optimizer: OptimizerArguments | None = None,
) -> dict[str, int]:
    """Bytes by part that a process of this launch will take. `optimizer` None: upstream's alone."""
    return count_memory(model, args, rows, optimizer)[0]


def count_memory(
    model: PreTrainedModel,
    args: TrainingArguments,
    rows: Dataset | IterableDataset | RepackedRows,
    optimizer: OptimizerArguments | None = None,
) -> tuple[dict[str, int], bool]:
    """As `memory_at_hand`, and whether all of them are this model's: of one that is neither a GPT-2
    nor dense, or that is not trained as a whole, what lasts from step to step is, and the rest is
    that of a GPT-2 of its sizes.
    """
    step = _step_at_hand(model, args, rows, optimizer)
    sharding = launched_sharding(args.world_size)
    shape = _shape_of(model, step.max_length)
    if has_memory_formulas(model.config.model_type):
        return step_memory_bytes(shape, step, sharding), True
    memory = _traced_memory(model, step, sharding)
    if memory:
        return memory(step, sharding), True
    return step_memory_bytes(shape, step, sharding, _weights_of(model, shape, step)), False


def _weights_of(model: PreTrainedModel, shape: Shape, step: Step) -> Weights:
    """Counts of a model's own weights; `shape`: its sizes."""
    counts = count_parameters(model)
    in_blocks = counts["parameters_without_embeddings"]
    return weights_of(shape, step)._replace(
        parameters=counts["parameters"],
        present=counts["parameters"],
        trained=count_trained(model),
        embeddings=counts["parameters"] - in_blocks,
        block=in_blocks // shape.n_layer,
        **_muon_numbers(model, step),
    )


def _muon_numbers(model: PreTrainedModel, step: Step) -> dict[str, int]:
    if not step.muon:
        return {"matrices": 0, "largest_matrices": 0}
    by_shape = matrices_by_shape(model)
    return {"matrices": sum(by_shape), "largest_matrices": max(by_shape, default=0)}


def _traced_memory(model: PreTrainedModel, step: Step, sharding: Sharding) -> MemoryOf | None:
    """None: not known of this model (`find_memory`), or of one that is not trained as a whole."""
    is_whole = not step.lora_r and all(weight.requires_grad for weight in model.parameters())
    # Under ZeRO-3 upstream shares out each new model, one without values, too.
    is_shared_out = (sharding.engine, sharding.stage) == ("deepspeed", 3) and not planned_launch()
    if not is_whole or is_shared_out:
        return None
    parameters = count_new_parameters(model.config)
    return find_memory(model.config, parameters, step)


def _step_at_hand(
    model: PreTrainedModel,
    args: TrainingArguments,
    rows: Dataset | IterableDataset | RepackedRows,
    optimizer: OptimizerArguments | None,
) -> Step:
    optimizer = optimizer or OptimizerArguments()
    row = next(iter(rows))
    is_stream = isinstance(rows, IterableDataset)
    max_length = len(row["input_ids"]) if is_stream else _places(rows)[1]
    adapters = getattr(model, "peft_config", None) or {}
    adapter = next(iter(adapters.values()), None)
    step = Step(
        args.per_device_train_batch_size,
        max_length,
        args.per_device_eval_batch_size,
        bf16=args.bf16 or args.fp16,
        activation_checkpointing=bool(args.gradient_checkpointing or args.activation_checkpointing),
        accumulates=args.gradient_accumulation_steps > 1,
        masked=0 in row.get("position_ids", [])[1:],
        lora_r=getattr(adapter, "r", 0),
        load_in_4bit=getattr(model, "is_loaded_in_4bit", False),
        lora_dropout=getattr(adapter, "lora_dropout", 0.0),
        optimizer_bytes=OPTIMIZER_BYTES.get(args.optim, 8),
        muon=optimizer.optimizer == "muon",
        averages_weights=isinstance(optimizer, AveragingArguments)
        and optimizer.weight_averaging is not None,
        on_cpu=args.device.type == "cpu" and not planned_launch(),
    )
    if has_memory_formulas(model.config.model_type):
        targets = tuple(getattr(adapter, "target_modules", None) or ())
        step = step._replace(target_modules=targets, freeze_layers=_frozen_blocks(model))
    return step


def _shape_of(model: PreTrainedModel, max_length: int) -> Shape:
    config = model.config.get_text_config()
    if has_memory_formulas(config.model_type):
        return Shape(**{name: getattr(config, name) for name in Shape._fields})
    return Shape(
        config.num_hidden_layers,
        getattr(config, "num_attention_heads", 1),  # none in a model without attention
        config.hidden_size,
        context_limit(model) or max_length,
        config.vocab_size,
    )


def _frozen_blocks(model: PreTrainedModel) -> int:
    """How many first blocks of a GPT-2 have nothing that is trained."""
    trained_blocks = []
    for name, parameter in model.named_parameters():
        _, is_block, below = name.partition(".h.")  # transformer.h.0.attn.c_attn.weight
        if parameter.requires_grad and is_block:
            trained_blocks.append(int(below.partition(".")[0]))
    return min(trained_blocks, default=model.config.n_layer)


def launched_sharding(processes: int) -> Sharding:
    """What accelerate's launcher told this process, or what other machines are planned to be
    told.
    """
    if planned := planned_launch():
        return sharding_of(*planned)
    engine, _, stage = launched_engine().partition("-")
    if engine == "ZeRO":
        return Sharding(
            "deepspeed",
            int(stage),
            processes,
            os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        )
    return sharding_of({"distributed_type": engine}, processes)


def device_memory_bytes(args: TrainingArguments) -> int:
    """Of the GPU, or this process's share of the machine's."""
    if args.device.type == "cuda":
        return torch.cuda.get_device_properties(args.device).total_memory
    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def count_steps(num_rows: int, args: TrainingArguments) -> int:
    """Optimizer steps of the whole run, as Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(steps_of_epoch(num_rows, args) * args.num_train_epochs)


def steps_of_epoch(num_rows: int, args: TrainingArguments) -> int:
    """Optimizer steps of one pass over the rows, as Trainer counts them."""
    per_rank = math.ceil(num_rows / launched_processes(args.world_size))
    rounded = math.floor if args.dataloader_drop_last else math.ceil
    batches = rounded(per_rank / args.per_device_train_batch_size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
