"""Pretrain a causal language model from random weights: text -> tokenizer -> packed rows ->
training -> run folder.

hfscale pretrain --config tiny_cpu
hfscale pretrain --config tiny_cpu --architecture llama --output_dir runs/tiny-llama
hfscale pretrain --config gpt2_small --accelerate ddp --num_processes 8 --output_dir runs/gpt2-small
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from hfscale.arguments import (
    RunArguments,
    ShapeArguments,
    StreamArguments,
    WordArguments,
    shape_of,
)
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.folders import check_output_dir
from hfscale.process import launched_processes, run


@dataclass
class PretrainArguments(ShapeArguments, StreamArguments, WordArguments, RunArguments):
    """Text, model and training."""


def main(argv: list[str] | None = None) -> Run | None:
    args = parse_args(PretrainArguments, argv, recipe=__file__)
    started = time.perf_counter()

    import torch
    from transformers import set_seed

    from hfscale.data.packing import collate_rows
    from hfscale.models import load_saved_model
    from hfscale.new_models import new_model
    from hfscale.training.averaging import average_weights, settle_averaging
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.optimizers import choose_optimizer
    from hfscale.training.preview import preview
    from hfscale.training.record import write_run
    from hfscale.training.running import prepare_output_dir, run_training
    from hfscale.training.steps import draw_samples, show_data, show_run
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.word_checkpoints import save_at_words, word_marks

    # What cannot work is refused before anything is read.
    training_args = check_arguments(args)
    output_dir = str(training_args.output_dir)

    # Data: text -> tokenizer -> rows. One rank prepares it, the others read its cache.
    dropped: dict[str, int] = {}
    with training_args.main_process_first(desc="preparing the data"):
        documents, tokenizer, rows, epochs, words = prepare_data(
            args, training_args, args.max_length, dropped
        )

    settle_averaging(args, training_args, rows["train"])
    marks = word_marks(args.save_words, words, rows["train"], training_args)

    # Model: random weights. One that is only counted takes no memory.
    set_seed(training_args.seed)
    with torch.device("meta") if args.dry_run else nullcontext():
        model = new_model(tokenizer, **shape_of(args))
    if args.dry_run:
        preview(model, tokenizer, rows, training_args, args)
        return None
    show_data(documents, rows)

    # Training, from the start or from the newest whole checkpoint.
    settings = settings_of_run(args, training_args, model, tokenizer, rows)
    checkpoint = newest_checkpoint(training_args, settings) if args.resume else None
    trainer = LMTrainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collate_rows,
        processing_class=tokenizer,
        auto_batch=args.auto_batch,
        optimizer_cls_and_kwargs=choose_optimizer(args, training_args, model),
    )
    average_weights(trainer, args, checkpoint)
    save_at_words(trainer, marks)
    prepare_output_dir(trainer, overwrite=args.overwrite)
    run_training(trainer, checkpoint, settings, documents=documents)

    # Evaluation on the held-out text.
    metrics = trainer.evaluate()

    # What is written: model and tokenizer, then samples, model card and run.json.
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        saved = load_saved_model(output_dir, trust_remote_code=args.trust_remote_code)
        samples = draw_samples(saved, tokenizer)
        trained_epochs = [epoch * trainer.state.epoch for epoch in epochs]
        data = {
            "dropped": None if args.streaming else dropped,
            "epochs": dict(zip(args.source, trained_epochs, strict=False)),
            **({"words": {"train": words}} if args.save_words else {}),
        }
        write_run(
            trainer,
            __file__,
            args,
            argv,
            documents,
            rows,
            metrics,
            samples,
            data,
            seconds=time.perf_counter() - started,
        )
        show_run(output_dir, metrics, samples, saved, tokenizer, documents)
        return load_run(output_dir)
    return None


def check_arguments(args: PretrainArguments):
    """The arguments of the Trainer; sets in `args` what follows from others. Raises InputError for
    what can be told before anything is read.
    """
    from hfscale.data.packing import settle_packing
    from hfscale.data.repacking import check_repacking
    from hfscale.new_models import settle_shape, trial_model
    from hfscale.training.averaging import check_averaging
    from hfscale.training.optimizers import check_optimizer
    from hfscale.training.steps import check_stream, settle_length
    from hfscale.training.training_args import (
        batch_rows_of_like_length,
        training_arguments,
        with_learning_rate,
    )
    from hfscale.training.word_checkpoints import check_save_words

    config = settle_shape(args, in_memory=not args.dry_run)
    args.max_length = settle_length(config, args.max_length)
    width = args.hidden_size or 256
    training = with_learning_rate(args.training, width=width, optimizer=args)
    training_args = training_arguments(training, width=width)
    check_optimizer(args, training_args)
    check_averaging(args, training_args)
    check_repacking(args)
    check_save_words(args.save_words, streaming=args.streaming)
    packing: Any = args.packing or "wrapped"
    model = trial_model(**shape_of(args))
    if model is not None:  # it may let packed documents see each other
        packing = settle_packing(
            model,
            args.packing,
            default="wrapped",
            cross_document_attention=args.cross_document_attention,
        )
    args.packing = packing
    batch_rows_of_like_length(training_args, args)
    check_stream(args, training_args, args.max_length)
    if not args.dry_run:
        output_dir = str(training_args.output_dir)
        check_output_dir(output_dir, resume=args.resume, overwrite=args.overwrite)
    return training_args


def prepare_data(args: PretrainArguments, training_args, max_length: int, dropped: dict[str, int]):
    """Documents, tokenizer, rows of `max_length` tokens, the epochs of each source of a mixture in
    one pass over the training rows, and the words that it reads (0 unless they are asked for). What
    is left out is counted in `dropped`.
    """
    from hfscale.data.mixture import check_shares, join_rows
    from hfscale.data.packing import pack_splits
    from hfscale.data.splits import join_parts, load_parts
    from hfscale.data.tokenizer import load_tokenizer
    from hfscale.training.steps import show_shares
    from hfscale.training.word_checkpoints import count_words

    # A single part, or one for each source of a mixture.
    parts = load_parts(args, seed=training_args.seed, dropped=dropped)
    if args.streaming:
        for part in parts:
            check_shares(part["train"], launched_processes(training_args.world_size))
    documents = join_parts(parts, args)
    tokenizer = load_tokenizer(
        args.tokenizer, documents["train"], trust_remote_code=args.trust_remote_code
    )
    packed = [
        pack_splits(
            part,
            tokenizer,
            max_length,
            args.cross_document_attention,
            packing=args.packing or "wrapped",
            num_proc=args.num_proc,
            repack_seed=training_args.seed if args.repack_each_epoch else None,
        )
        for part in parts
    ]
    rows, epochs = join_rows(packed, args, seed=training_args.seed)
    if epochs:
        show_shares(args.source, packed, epochs, len(rows["train"]))
    words = 0
    if args.save_words:
        shares = zip(parts, epochs or [1.0], strict=True)
        words = round(sum(share * count_words(part["train"]) for part, share in shares))
    return documents, tokenizer, rows, epochs, words


if __name__ == "__main__":
    run(main)
