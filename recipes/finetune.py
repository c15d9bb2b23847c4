"""Fine-tune any causal language model on plain text: all weights, the upper layers, or a small
adapter (LoRA and kin).

hfscale finetune --config tiny_cpu
hfscale finetune --model gpt2 --source "speeches/*.txt" --lora_r 16 --output_dir runs/speeches
"""

import sys
from dataclasses import dataclass, field, fields, replace

from hfscale.arguments import AdapterArguments, DataArguments, RunArguments
from hfscale.config import parse_args
from hfscale.process import InputError, run


@dataclass
class FinetuneArguments(AdapterArguments, DataArguments, RunArguments):
    tokenizer: str | None = field(
        default=None, metadata={"help": "folder or Hub id; default: the checkpoint's own"}
    )
    forget_source: list[str] | None = field(
        default=None,
        metadata={
            "help": "old domain: the loss on its held-out part before and after shows what was "
            "forgotten"
        },
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(FinetuneArguments, argv, recipe=__file__)

    from transformers import set_seed

    from hfscale.adapters import load_for_training, merge_saved_adapter
    from hfscale.data.packing import collate_rows, pack_splits, settle_packing
    from hfscale.data.sources import load_splits, text_fingerprint
    from hfscale.data.tokenizer import load_model_tokenizer
    from hfscale.folders import check_output_dir, clear_output_dir
    from hfscale.generation.terminal import ready_command, show_samples
    from hfscale.generation.texts import beginning_of, generate_texts
    from hfscale.models import context_limit, load_saved_model
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.preview import preview
    from hfscale.training.record import write_run
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import batch_rows_of_like_length, training_arguments

    adapts = args.lora_r or args.peft_type
    defaults = {
        "output_dir": "runs/finetune",
        "learning_rate": 5e-4 if adapts else 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "eval_on_start": True,
    }
    training_args = training_arguments(defaults | args.training, width=256)
    if not args.dry_run:
        check_output_dir(training_args.output_dir, resume=args.resume, overwrite=args.overwrite)

    set_seed(training_args.seed)
    tokenizer = load_model_tokenizer(
        args.model, args.tokenizer, trust_remote_code=args.trust_remote_code
    )
    model = load_for_training(args, tokenizer)
    args.packing = settle_packing(
        model,
        args.packing,
        default="wrapped",
        cross_document_attention=args.cross_document_attention,
    )
    batch_rows_of_like_length(training_args, args)
    max_length = (
        min(context_limit(model) or 1024, 1024) if args.max_length is None else args.max_length
    )
    with training_args.main_process_first(
        desc="preparing the data"
    ):  # the other ranks read its cache
        documents = load_splits(args, seed=training_args.seed)
        if args.forget_source:  # split as the source is, so that it is what pretraining held out
            old = replace(args, source=args.forget_source, validation_source=None)
            documents["forget"] = load_splits(old, seed=training_args.seed)["validation"]
        # Rows with labels, so that padding need not be masked and EOS stays learnable.
        rows = pack_splits(
            documents, tokenizer, max_length, args.cross_document_attention, model, args.packing
        )
    if args.dry_run:
        return preview(model, tokenizer, rows, training_args)
    fixed_settings = {
        f.name: getattr(args, f.name) for f in (*fields(AdapterArguments), *fields(DataArguments))
    }
    fixed_settings |= {
        "source": text_fingerprint(documents["train"]),
        "validation_source": None,
    }  # wherever it lies by now
    checkpoint = newest_checkpoint(training_args, fixed_settings) if args.resume else None

    held_out = {name: part for name, part in rows.items() if name != "train"}
    trainer = LMTrainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=held_out,
        data_collator=collate_rows,
        processing_class=tokenizer,
        fixed_settings=fixed_settings,
        auto_batch=args.auto_batch,
    )
    clear_output_dir(training_args.output_dir, args.overwrite)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate() | trainer.metrics_before()
    trainer.save_model()
    trainer.save_state()

    if trainer.is_world_process_zero():
        if args.merge:
            merge_saved_adapter(training_args.output_dir, trust_remote_code=args.trust_remote_code)
        saved = load_saved_model(training_args.output_dir, trust_remote_code=args.trust_remote_code)
        try:
            texts = generate_texts(
                saved, tokenizer, [""], num_return_sequences=3, max_new_tokens=100
            )[0]
        except InputError as error:  # the run is done all the same
            print(f"no samples: {error}", file=sys.stderr)
            texts = []
        write_run(trainer, __file__, args, argv, documents, rows, metrics, texts)
        for name in (
            f"eval_{part}loss" for part in ("", "forget_") if f"eval_{part}loss" in metrics
        ):
            before = metrics.get(f"before_{name}")
            print(
                f"{name}: {f'{before:.4f} before' if before else 'not measured before'}, "
                f"{metrics[name]:.4f} after"
            )
        show_samples(texts)
        print(f"model, tokenizer and run.json: {training_args.output_dir}")
        beginning = beginning_of(next(iter(documents["validation"]))["text"], saved, tokenizer)
        print("next:", ready_command("generate", training_args.output_dir, [beginning]))


if __name__ == "__main__":
    run(main)
