"""What a training run is about to do, shown before it starts (`--dry_run`)."""

import math

from datasets import Dataset, DatasetDict
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hfscale.config import is_main_rank
from hfscale.data.packing import IGNORED
from hfscale.models import count_parameters
from hfscale.scaling.memory import training_memory_bytes

SHOWN_TOKENS = 12


def preview(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: DatasetDict | dict,
            args: TrainingArguments) -> None:
    """Print (rank 0) the beginning of a packed row with its labels, the counts, and the memory of a step."""
    if not is_main_rank():
        return
    console, row = Console(), next(iter(rows["train"]))
    table = Table("position", "token", "input_ids", "label", title="The first training row begins")
    for i in range(min(SHOWN_TOKENS, len(row["input_ids"]))):
        label = row["labels"][i]
        scored = "not scored" if i == 0 or label == IGNORED else repr(tokenizer.decode([label]))
        table.add_row(str(row["position_ids"][i]), repr(tokenizer.decode([row["input_ids"][i]])),
                      str(row["input_ids"][i]), scored)
    console.print(table)
    max_length = len(row["input_ids"])
    counts = Table("what", "value", title="The run", show_header=False)
    for name, part in ((name, part) for name, part in rows.items() if isinstance(part, Dataset)):
        counts.add_row(f"{name} rows x tokens", f"{len(part):,} x {max_length:,}")
        scored = sum(part["num_tokens"])
        counts.add_row(f"{name} tokens scored", f"{scored:,}")
        counts.add_row(f"{name} places not scored", f"{1 - scored / len(part) / (max_length - 1):.2%}")
    num_rows = len(rows["train"]) if isinstance(rows["train"], Dataset) else 0  # a stream: max_steps is given
    counts.add_row("steps", f"{count_steps(num_rows, args):,}")
    for name, value in count_parameters(model).items():
        counts.add_row(name.replace("_", " "), f"{value:,}")
    config = model.config
    memory = training_memory_bytes(
        parameters=count_parameters(model)["parameters"], n_layer=config.num_hidden_layers, n_embd=config.hidden_size,
        vocab_size=config.vocab_size, batch_size=args.per_device_train_batch_size, max_length=max_length,
        bf16=args.bf16, activation_checkpointing=bool(args.gradient_checkpointing or args.activation_checkpointing))
    for part, size in memory.items():
        counts.add_row(f"memory: {part}", f"{size / 2**20:,.0f} MiB")
    counts.add_row("memory: all (estimate, per process, nothing sharded)", f"{sum(memory.values()) / 2**20:,.0f} MiB")
    console.print(counts)
    print("dry run: nothing was trained or written")


def count_steps(num_rows: int, args: TrainingArguments) -> int:
    """Optimizer steps of the whole run, as Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    per_rank = math.ceil(num_rows / args.world_size)
    batches = (math.floor if args.dataloader_drop_last else math.ceil)(per_rank / args.per_device_train_batch_size)
    return math.ceil(max(1, math.ceil(batches / args.gradient_accumulation_steps)) * args.num_train_epochs)
