"""Fine-tune any causal language model on plain text: all weights, the upper layers, or a small
adapter (LoRA and kin).

hfscale finetune --config tiny_cpu
hfscale finetune --model gpt2 --source "speeches/*.txt" --lora_r 16 --output_dir runs/speeches
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hfscale.arguments import AdapterArguments, DataArguments, RunArguments, WordArguments
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.folders import check_output_dir
from hfscale.process import run


@dataclass
class FinetuneArguments(AdapterArguments, DataArguments, WordArguments, RunArguments):
    tokenizer: str | None = field(  # type: ignore[assignment]  # a new model has to be told one
        default=None, metadata={"help": "folder or Hub id; default: the checkpoint's own"}
    )
    forget_source: list[str] | None = field(
        default=None,
        metadata={
            "help": "old domain: the loss on its held-out part before and after shows what was "
            "forgotten"
        },
    )
    max_position_embeddings: int | None = field(
        default=None,
        metadata={
            "help": "a longer context for a model with rotary positions, in tokens; default: the "
            "checkpoint's own",
            "min": 1,
        },
    )
    rope_scaling: Literal["yarn", "linear", "default"] = field(
        default="yarn",
        metadata={
            "help": "transformers' rope_type with max_position_embeddings: yarn and linear move "
            "positions closer together, default leaves them"
        },
    )


def main(argv: list[str] | None = None) -> Run | None:
    args = parse_args(FinetuneArguments, argv, recipe=__file__)
    started = time.perf_counter()

    from transformers import set_seed

    from hfscale.adapters import load_for_training, merge_saved_adapter
    from hfscale.data.packing import collate_rows, settle_packing
    from hfscale.data.tokenizer import load_model_tokenizer
    from hfscale.models import load_saved_model
    from hfscale.training.averaging import average_weights, settle_averaging
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.optimizers import choose_optimizer
    from hfscale.training.preview import preview
    from hfscale.training.record import write_run
    from hfscale.training.running import prepare_output_dir, run_training
    from hfscale.training.steps import draw_samples, show_data, show_run
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import batch_rows_of_like_length
    from hfscale.training.word_checkpoints import save_at_words

    # What cannot work is refused before anything is read.
    training_args = check_arguments(args)
    output_dir = str(training_args.output_dir)

    # Model: a checkpoint, whole or with an adapter on it.
    set_seed(training_args.seed)
    tokenizer = load_model_tokenizer(
        args.model, args.tokenizer, trust_remote_code=args.trust_remote_code
    )
    model = load_for_training(args, tokenizer, longer_config(args))
    args.packing = settle_packing(
        model,
        args.packing,
        default="wrapped",
        cross_document_attention=args.cross_document_attention,
    )
    batch_rows_of_like_length(training_args, args)

    # Data: text -> rows with labels, so that padding need not be masked and EOS stays learnable.
    # One rank prepares it, the others read its cache.
    with training_args.main_process_first(desc="preparing the data"):
        documents, rows, marks = prepare_data(args, training_args, model, tokenizer)
    settle_averaging(args, training_args, rows["train"])
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
        eval_dataset={name: part for name, part in rows.items() if name != "train"},
        data_collator=collate_rows,
        processing_class=tokenizer,
        auto_batch=args.auto_batch,
        optimizer_cls_and_kwargs=choose_optimizer(args, training_args, model),
    )
    average_weights(trainer, args, checkpoint)
    save_at_words(trainer, marks)
    prepare_output_dir(trainer, overwrite=args.overwrite)
    run_training(trainer, checkpoint, settings, documents=documents)

    # Evaluation on the held-out text, and of the old domain where one is given.
    metrics = trainer.evaluate() | trainer.metrics_before()

    # What is written: model or adapter and tokenizer, then samples, model card and run.json.
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        if args.merge:
            merge_saved_adapter(output_dir, trust_remote_code=args.trust_remote_code)
        saved = load_saved_model(output_dir, trust_remote_code=args.trust_remote_code)
        samples = draw_samples(saved, tokenizer)
        show_longer_context(args, training_args, saved, rows["validation"])
        write_run(
            trainer,
            __file__,
            args,
            argv,
            documents,
            rows,
            metrics,
            samples,
            seconds=time.perf_counter() - started,
        )
        show_run(output_dir, metrics, samples, saved, tokenizer, documents)
        return load_run(output_dir)
    return None


def check_arguments(args: FinetuneArguments):
    """The arguments of the Trainer. Raises InputError for what can be told before anything is
    read.
    """
    from hfscale.data.repacking import check_repacking
    from hfscale.training.averaging import check_averaging
    from hfscale.training.optimizers import check_optimizer
    from hfscale.training.training_args import training_arguments
    from hfscale.training.word_checkpoints import check_save_words

    training_args = training_arguments(training_defaults(args) | args.training, width=256)
    check_optimizer(args, training_args)
    check_averaging(args, training_args)
    check_repacking(args)
    check_save_words(args.save_words)
    if not args.dry_run:
        output_dir = str(training_args.output_dir)
        check_output_dir(output_dir, resume=args.resume, overwrite=args.overwrite)
    return training_args


def prepare_data(args: FinetuneArguments, training_args, model, tokenizer):
    """Documents and rows: of the source, and of the old domain where one is given; and what is to
    be saved after so many words.
    """
    from hfscale.data.packing import pack_splits
    from hfscale.data.splits import load_splits
    from hfscale.training.context import check_reaches
    from hfscale.training.steps import row_length
    from hfscale.training.word_checkpoints import count_words, word_marks

    documents = load_splits(args, seed=training_args.seed)
    if args.forget_source:  # split as the source is, so that it is what pretraining held out
        old = replace(args, source=args.forget_source, validation_source=None)
        documents["forget"] = load_splits(old, seed=training_args.seed)["validation"]
    rows = pack_splits(
        documents,
        tokenizer,
        row_length(model, args.max_length or args.max_position_embeddings),
        args.cross_document_attention,
        model,
        args.packing or "wrapped",
        num_proc=args.num_proc,
        repack_seed=training_args.seed if args.repack_each_epoch else None,
    )
    if args.max_position_embeddings:
        check_reaches(rows, args.model)
    words = count_words(documents["train"]) if args.save_words else 0
    marks = word_marks(args.save_words, words, rows["train"], training_args)
    return documents, rows, marks


def longer_config(args: FinetuneArguments):
    """The configuration with the context asked for; None: the checkpoint's own."""
    if args.max_position_embeddings is None:
        return None
    from hfscale.training.context import longer_context

    return longer_context(
        args.model,
        args.max_position_embeddings,
        args.rope_scaling,
        trust_remote_code=args.trust_remote_code,
    )


def show_longer_context(args: FinetuneArguments, training_args, saved, rows) -> None:
    """Where the context was made longer, the perplexity along it."""
    from hfscale.models import load_model
    from hfscale.training.context import report_by_position

    if args.max_position_embeddings is None:
        return
    before = load_model(args.model, trust_remote_code=args.trust_remote_code)
    models = {"before": before, "after": saved}
    batch_size = training_args.per_device_eval_batch_size
    report_by_position(str(training_args.output_dir), models, rows, batch_size)


def training_defaults(args: FinetuneArguments) -> dict[str, Any]:
    """What upstream's arguments are here unless the user says otherwise."""
    has_adapter = args.lora_r or args.peft_type
    return {
        "output_dir": "runs/finetune",
        "learning_rate": 5e-4 if has_adapter else 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "eval_on_start": True,
    }


if __name__ == "__main__":
    run(main)
