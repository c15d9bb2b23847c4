"""Pretrain a GPT-2-style model from random weights: text -> tokenizer -> packed rows -> training ->
run folder.

hfscale pretrain --config tiny_cpu
hfscale pretrain --config gpt2_small --accelerate ddp --num_processes 8 --output_dir runs/gpt2-small
"""

from contextlib import nullcontext
from dataclasses import dataclass, fields

from hfscale.arguments import RunArguments, ShapeArguments, StreamArguments, shape_of
from hfscale.config import parse_args
from hfscale.process import InputError, is_main_rank, run


@dataclass
class PretrainArguments(ShapeArguments, StreamArguments, RunArguments):
    """Text, model and training."""


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PretrainArguments, argv, recipe=__file__)

    import torch
    from transformers import set_seed

    from hfscale.data.mixture import check_shares, join_rows
    from hfscale.data.packing import collate_rows, pack_splits
    from hfscale.data.sources import join_parts, load_parts, text_fingerprint
    from hfscale.data.tokenizer import load_tokenizer
    from hfscale.folders import check_output_dir, clear_output_dir
    from hfscale.generation.terminal import ready_command, show_samples
    from hfscale.generation.texts import beginning_of, generate_texts
    from hfscale.models import check_architecture, load_saved_model, new_model
    from hfscale.process import launched_processes
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.preview import preview
    from hfscale.training.record import write_run
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import batch_rows_of_like_length, training_arguments

    check_architecture(shape_of(args), in_memory=not args.dry_run)
    args.packing = args.packing or "wrapped"  # a GPT-2 keeps packed documents apart
    max_length = args.n_positions if args.max_length is None else args.max_length
    if max_length > args.n_positions:
        raise InputError(
            f"max_length {max_length} is beyond the model's n_positions {args.n_positions}"
        )
    training_args = training_arguments(args.training, width=args.n_embd)
    processes = launched_processes(training_args.world_size)
    batch_rows_of_like_length(training_args, args)
    if args.streaming and training_args.max_steps < 1:
        rows = (
            training_args.train_batch_size * training_args.gradient_accumulation_steps * processes
        )
        raise InputError(
            "--streaming: a stream does not say how long it is; set --max_steps to the tokens to "
            f"train on divided by {rows * max_length:,}, the tokens of a step"
        )
    if not args.dry_run:
        check_output_dir(training_args.output_dir, resume=args.resume, overwrite=args.overwrite)

    dropped: dict[str, int] = {}
    with training_args.main_process_first(
        desc="preparing the data"
    ):  # the other ranks read its cache
        parts = load_parts(
            args, seed=training_args.seed, dropped=dropped
        )  # one, or one for each source of a mixture
        for part in parts if args.streaming else ():
            check_shares(part["train"], processes)
        documents = join_parts(parts, args)
        tokenizer = load_tokenizer(
            args.tokenizer, documents["train"], trust_remote_code=args.trust_remote_code
        )
        packed = [
            pack_splits(
                part, tokenizer, max_length, args.cross_document_attention, packing=args.packing
            )
            for part in parts
        ]
        rows, epochs = join_rows(packed, args, seed=training_args.seed)
    for source, part, epoch in (
        zip(args.source, packed, epochs, strict=False) if is_main_rank() else ()
    ):
        share = epoch * len(part["train"]) / len(rows["train"])
        print(
            f"{source}: {share:.1%} of the training rows, {epoch:.2f} epochs in each pass over them"
        )

    set_seed(training_args.seed)
    with (
        torch.device("meta") if args.dry_run else nullcontext()
    ):  # a model that is only counted takes no memory
        model = new_model(tokenizer, **shape_of(args))
    if args.dry_run:
        return preview(model, tokenizer, rows, training_args)
    fixed_settings = {f.name: getattr(args, f.name) for f in fields(StreamArguments)} | {
        "max_length": max_length
    }
    if args.streaming:  # whose order also depends on who reads
        how = ("world_size", "dataloader_num_workers", "per_device_train_batch_size")
        fixed_settings |= {name: getattr(training_args, name) for name in how}
    else:  # the same text may lie elsewhere by now
        fixed_settings |= {
            "source": text_fingerprint(documents["train"]),
            "validation_source": None,
        }
    checkpoint = newest_checkpoint(training_args, fixed_settings) if args.resume else None

    trainer = LMTrainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        fixed_settings=fixed_settings,
        eval_dataset=rows["validation"],
        data_collator=collate_rows,
        processing_class=tokenizer,
        auto_batch=args.auto_batch,
    )
    clear_output_dir(training_args.output_dir, args.overwrite)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    if trainer.is_world_process_zero():
        saved = load_saved_model(training_args.output_dir, trust_remote_code=args.trust_remote_code)
        texts = generate_texts(saved, tokenizer, [""], num_return_sequences=3, max_new_tokens=100)[
            0
        ]
        epochs = [epoch * trainer.state.epoch for epoch in epochs]
        data = {
            "dropped": None if args.streaming else dropped,
            "epochs": dict(zip(args.source, epochs, strict=False)),
        }
        write_run(trainer, __file__, args, argv, documents, rows, metrics, texts, data)
        show_samples(texts)
        print(f"model, tokenizer and run.json: {training_args.output_dir}")
        beginning = beginning_of(next(iter(documents["validation"]))["text"], saved, tokenizer)
        print("next:", ready_command("generate", training_args.output_dir, [beginning]))


if __name__ == "__main__":
    run(main)
