"""The tutorial's example, made right: from text to a model that generates, in one page.

    python recipes/quickstart.py                  # a small model from random weights, on text that is already here
    python recipes/quickstart.py --model gpt2     # fine-tune the Hub's checkpoint on the same text
"""

from dataclasses import dataclass, field

from hfscale.config import RunArguments, parse_args, run


@dataclass
class QuickstartArguments(RunArguments):
    model: str = field(default="new", metadata={"help": "new (random weights), a folder, or a Hub id such as gpt2"})
    source: str = field(default="embedded:python-docs", metadata={"help": "any text: a file, folder or Hub id"})
    max_length: int = field(default=256, metadata={"help": "tokens per row"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(QuickstartArguments, argv, recipe=__file__)

    from transformers import pipeline, set_seed

    from hfscale.data.corpus import load_documents, split_documents
    from hfscale.data.packing import collate_rows, pack_splits
    from hfscale.data.tokenizer import load_tokenizer
    from hfscale.models import load_model, new_model
    from hfscale.run_folder import check_output_dir, clear_output_dir
    from hfscale.training import LMTrainer, training_arguments

    defaults = {"output_dir": "runs/quickstart", "max_steps": 700, "per_device_train_batch_size": 4,
                "learning_rate": 1e-3 if args.model == "new" else 5e-5, "warmup_steps": 0.1, "logging_steps": 10,
                "lr_scheduler_type": "cosine", "save_strategy": "no", "weight_decay": 0.1}
    training_args = training_arguments(defaults | args.training, width=256)
    check_output_dir(training_args.output_dir, resume=args.resume, overwrite=args.overwrite)
    set_seed(training_args.seed)

    documents = split_documents(load_documents(args.source), split_by="document", validation_fraction=0.05, seed=0)
    tokenizer = load_tokenizer("train:4096" if args.model == "new" else args.model, documents["train"])
    rows = pack_splits(documents, tokenizer, args.max_length)
    model = (new_model(tokenizer, n_layer=4, n_head=8, n_embd=256, n_positions=args.max_length,
                       activation_function="gelu_pytorch_tanh") if args.model == "new" else load_model(args.model))
    clear_output_dir(training_args.output_dir, args.overwrite)

    trainer = LMTrainer(model=model, args=training_args, train_dataset=rows["train"],
                        eval_dataset=rows["validation"], data_collator=collate_rows, processing_class=tokenizer)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model()

    generator = pipeline("text-generation", model=training_args.output_dir)  # the folder that was really saved
    for sample in generator("The", max_new_tokens=args.max_length // 4, num_return_sequences=3, do_sample=True):
        print("\n--- sample\n" + sample["generated_text"])
    for name, unit in (("eval_perplexity", "per token"), ("eval_bits_per_byte", "bits per byte")):
        print(f"held-out text: {name[5:]} {before[name]:,.2f} before training, {after[name]:,.2f} after ({unit})")
    print(f"model and tokenizer: {training_args.output_dir}")


if __name__ == "__main__":
    run(main)
