"""Steps that the training recipes share."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict, IterableDataset
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from hfscale.arguments import StreamArguments
from hfscale.data.repacking import table_of
from hfscale.full_disk import pass_over_log_errors
from hfscale.generation.terminal import command_line, ready_command, show_samples
from hfscale.generation.texts import beginning_of, generate_texts
from hfscale.models import context_limit, stated_limit
from hfscale.process import InputError, is_main_rank, launched_processes
from hfscale.report.page import PAGE
from hfscale.shown import show_text

# Rows of a loaded model are no longer than this unless the user says so: attention over tens of
# thousands of tokens, as newer models have them, takes more memory than tuning on text is worth.
MOST_TOKENS_BY_DEFAULT = 1024
# By what Trainer puts before the names of their metrics.
HELD_OUT_TEXTS = {
    "eval": "held-out",
    "eval_forget": "old domain's held-out",
    "teacher": "the teacher's held-out",
}


def row_length(model: PreTrainedModel, max_length: int | None) -> int:
    """Tokens per row: as the user said, else the model's context, up to 1024."""
    if max_length is not None:
        return max_length
    limit = context_limit(model) or MOST_TOKENS_BY_DEFAULT
    return min(limit, MOST_TOKENS_BY_DEFAULT)


def settle_length(config: PreTrainedConfig, max_length: int | None) -> int:
    """Tokens per row of a new model: as the user said, else its context.

    Raises InputError: more than the context.
    """
    limit = stated_limit(config)
    if max_length is None:
        return limit or MOST_TOKENS_BY_DEFAULT
    if limit is not None and max_length > limit:
        raise InputError(
            f"max_length {max_length} is beyond the model's max_position_embeddings {limit}"
        )
    return max_length


def check_stream(args: StreamArguments, training_args: TrainingArguments, max_length: int) -> None:
    """Raise InputError for a stream that is to be packed beforehand, or has no stated length.

    Args:
        max_length: tokens per row.
    """
    if not args.streaming:
        return
    if args.num_proc is not None:
        raise InputError(
            "--num_proc: a stream is packed while it is read, by as many processes as "
            "--dataloader_num_workers says; leave --num_proc out"
        )
    if training_args.max_steps > 0:
        return
    processes = launched_processes(training_args.world_size)
    rows = training_args.train_batch_size * training_args.gradient_accumulation_steps * processes
    raise InputError(
        "--streaming: a stream does not say how long it is; set --max_steps to the tokens to "
        f"train on divided by {rows * max_length:,}, the tokens of a step"
    )


def show_shares(
    sources: Sequence[str], parts: Sequence[DatasetDict], epochs: Sequence[float], num_rows: int
) -> None:
    """Print (rank 0) how much of the training rows each source of a mixture gives.

    Args:
        parts: the rows of each source.
        epochs: of each source in one pass over all training rows; none for a single source.
        num_rows: training rows of the mixture.
    """
    if not is_main_rank():
        return
    for source, part, epoch in zip(sources, parts, epochs, strict=False):
        share = epoch * len(part["train"]) / num_rows
        show_text(
            f"{source}: {share:.1%} of the training rows, {epoch:.2f} epochs in each pass over them"
        )


def show_data(documents: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Print (rank 0) how much text each split holds; of a stream nobody knows before its end."""
    if not is_main_rank():
        return
    pass_over_log_errors("stdout")  # a log ends no training
    for name, part in rows.items():
        if not isinstance(part, IterableDataset):
            num_documents = len(documents[name])
            num_tokens = sum(table_of(part)["num_tokens"])
            show_text(
                f"{name} text: {num_documents:,} document{'s' if num_documents != 1 else ''}, "
                f"{num_tokens:,} tokens in {len(part):,} rows"
            )


def draw_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int = 100
) -> list[str]:
    """Three new texts of a model that was just trained; none, with a line on stderr, of one that
    cannot begin a text: its run is done all the same.
    """
    try:
        [texts] = generate_texts(
            model, tokenizer, [""], num_return_sequences=3, max_new_tokens=max_new_tokens
        )
    except InputError as error:
        show_text(f"no samples: {error}", file=sys.stderr)
        return []
    return texts


def show_results(metrics: Mapping[str, float]) -> None:
    """Print the perplexity and the bits per byte of each held-out text before and after the
    training, and what they mean.
    """
    for prefix, text in HELD_OUT_TEXTS.items():
        perplexity = metrics.get(f"{prefix}_perplexity")
        if perplexity is not None:
            show_text(
                f"{text} perplexity: {_before_and_after(metrics, f'{prefix}_perplexity')}: "
                f"as unsure as among {perplexity:,.0f} tokens"
            )
        bits = metrics.get(f"{prefix}_bits_per_byte")
        if bits is not None:
            show_text(
                f"{text} bits per byte: {_before_and_after(metrics, f'{prefix}_bits_per_byte')}: "
                f"{bits / 8:.0%} of the text's size"
            )


def _before_and_after(metrics: Mapping[str, float], name: str) -> str:
    after = f"{metrics[name]:,.2f}"
    before = metrics.get(f"before_{name}")  # not of a run that went on from a checkpoint
    return f"{after} ({before:,.2f} before training)" if before is not None else after


def show_run(
    output_dir: str,
    metrics: Mapping[str, float],
    samples: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: DatasetDict,
) -> None:
    """Print what a finished run's model writes, how good it is, what the run left, and commands:
    one that asks its model to continue held-out text, and those that serve it and bring it
    elsewhere.

    Args:
        metrics: as Trainer names them, those of before the training with `before_` in front.
        model: as it was saved.
        documents: with the split `validation`.
    """
    show_samples(samples)
    show_results(metrics)
    show_place(output_dir)
    text = next(iter(documents["validation"]))["text"]
    beginning = beginning_of(text, model, tokenizer)
    show_text("next:", ready_command("generate", output_dir, [beginning]))
    show_text("also:", command_line("serve", "--model", output_dir))
    show_text("     ", command_line("export", "--model", output_dir, "--to", "gguf"))


def show_place(output_dir: str) -> None:
    """Print where the model of a finished run is, and the page, where one could be written."""
    show_text(f"model, tokenizer and run.json: {output_dir}")
    page = Path(output_dir, PAGE)
    if page.is_file():
        show_text(f"page with curves and settings: {page}")
