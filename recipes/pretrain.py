"""Pretrain a GPT-2-style model from random weights: text -> tokenizer -> packed rows -> training -> run folder.

    hfscale pretrain --config tiny_cpu
    hfscale pretrain --config gpt2_small --accelerate ddp --num_processes 8 --output_dir runs/gpt2-small
"""

from dataclasses import dataclass, field, fields

from hfscale.config import DataArguments, InputError, RunArguments, parse_args, run


@dataclass
class ShapeArguments:
    """The model, in the names of GPT2Config."""

    n_layer: int = field(default=12, metadata={"help": "transformer blocks"})
    n_head: int = field(default=12, metadata={"help": "attention heads per block"})
    n_embd: int = field(default=768, metadata={"help": "width"})
    n_positions: int = field(default=1024, metadata={"help": "context in tokens"})
    resid_pdrop: float = field(default=0.0, metadata={"help": "dropout of the residual branches"})
    embd_pdrop: float = field(default=0.0, metadata={"help": "dropout of the embeddings"})
    attn_pdrop: float = field(default=0.0, metadata={"help": "dropout of the attention weights"})


@dataclass
class PretrainArguments(ShapeArguments, DataArguments, RunArguments):
    """Text, model and training."""


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PretrainArguments, argv, recipe=__file__)

    from transformers import set_seed

    from hfscale.data.corpus import load_splits
    from hfscale.data.packing import collate_rows, pack_splits
    from hfscale.data.tokenizer import load_tokenizer
    from hfscale.generation import generate_texts
    from hfscale.models import load_saved_model, new_model
    from hfscale.preview import preview
    from hfscale.run_folder import check_output_dir, clear_output_dir, newest_checkpoint
    from hfscale.run_record import write_run
    from hfscale.training import LMTrainer, training_arguments

    max_length = args.n_positions if args.max_length is None else args.max_length
    if max_length > args.n_positions:
        raise InputError(f"max_length {max_length} is beyond the model's n_positions {args.n_positions}")
    training_args = training_arguments(args.training, width=args.n_embd)
    if not args.dry_run:
        check_output_dir(training_args.output_dir, resume=args.resume, overwrite=args.overwrite)

    with training_args.main_process_first(desc="preparing the data"):  # the other ranks read its cache
        documents = load_splits(args, seed=training_args.seed)
        tokenizer = load_tokenizer(args.tokenizer, documents["train"])
        rows = pack_splits(documents, tokenizer, max_length, args.cross_document_attention, packing=args.packing)

    set_seed(training_args.seed)
    model = new_model(tokenizer, **{f.name: getattr(args, f.name) for f in fields(ShapeArguments)})
    if args.dry_run:
        return preview(model, tokenizer, rows, training_args)
    checkpoint = newest_checkpoint(training_args) if args.resume else None

    trainer = LMTrainer(model=model, args=training_args, train_dataset=rows["train"],
                        eval_dataset=rows["validation"], data_collator=collate_rows, processing_class=tokenizer)
    clear_output_dir(training_args.output_dir, args.overwrite)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    if trainer.is_world_process_zero():
        saved = load_saved_model(training_args.output_dir)
        texts = generate_texts(saved, tokenizer, [""], num_return_sequences=3, max_new_tokens=100)[0]
        write_run(trainer, __file__, args, argv, documents, rows, metrics, texts)
        print(f"model, tokenizer and run.json: {training_args.output_dir}")


if __name__ == "__main__":
    run(main)
