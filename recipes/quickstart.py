"""The tutorial's example, made right: from text to a model that generates, in one page.

python recipes/quickstart.py                  # a small model, on text that is already here
python recipes/quickstart.py --model gpt2     # fine-tune the Hub's checkpoint on the same text
"""

import time
from dataclasses import dataclass, field
from typing import Any

from hfscale.arguments import (
    DataArguments,
    LoadArguments,
    OptimizerArguments,
    ShapeArguments,
    check_no_shape,
    loading,
    shape_of,
)
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.folders import check_output_dir
from hfscale.process import run


@dataclass
class QuickstartArguments(DataArguments, ShapeArguments, LoadArguments, OptimizerArguments):
    model: str = field(
        default="new", metadata={"help": "new (random weights), a folder, or a Hub id such as gpt2"}
    )
    source: list[str] = field(
        default_factory=lambda: ["embedded:python-prose"],
        metadata={"help": "embedded:python-prose, -docs or -code, a file, folder, glob, or Hub id"},
    )
    tokenizer: str = field(
        default="train:4096", metadata={"help": "for a new model: train:<vocab size> or char"}
    )
    num_hidden_layers: int = field(
        default=4, metadata={"help": "transformer blocks", "min": 1, "max": 1000}
    )
    num_attention_heads: int = field(
        default=8, metadata={"help": "attention heads per block", "min": 1, "max": 10_000}
    )
    hidden_size: int = field(default=256, metadata={"help": "width", "min": 1, "max": 1_000_000})
    max_length: int = field(default=256, metadata={"help": "tokens per row", "min": 2})
    muon_momentum: float = field(
        default=0.85,  # better than Muon's 0.95 in so few steps
        metadata={
            "help": "what the hidden matrices' averaged gradient keeps of itself at each step",
            "min": 0,
            "max": 0.999_999,
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "delete an earlier run in output_dir first"}
    )
    # Every argument of transformers.TrainingArguments that is given.
    training: dict = field(default_factory=dict)


def main(argv: list[str] | None = None) -> Run:
    args = parse_args(QuickstartArguments, argv, recipe=__file__)
    started = time.perf_counter()

    import torch
    from transformers import PreTrainedModel, pipeline, set_seed

    from hfscale.data.packing import collate_rows, pack_splits, settle_packing
    from hfscale.data.splits import load_splits
    from hfscale.data.tokenizer import load_pretrained_tokenizer, load_tokenizer
    from hfscale.models import load_model
    from hfscale.new_models import new_model
    from hfscale.training.optimizers import choose_optimizer
    from hfscale.training.record import write_run
    from hfscale.training.running import prepare_output_dir, run_training
    from hfscale.training.steps import draw_samples, show_data, show_run
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import batch_rows_of_like_length, training_arguments

    # Settings: those that fit a small model and a few minutes; what the user says goes before.
    is_new = args.model == "new"
    check_request(args)
    if is_new and "optim" not in args.training:
        args.optimizer = args.optimizer or "muon"
    training_args = training_arguments(
        training_values(args), width=args.hidden_size if is_new else 256
    )
    output_dir = str(training_args.output_dir)
    check_output_dir(output_dir, resume=None, overwrite=args.overwrite, can_resume=False)

    # Data and model.
    set_seed(training_args.seed)
    documents = load_splits(args, seed=training_args.seed)
    trust = {"trust_remote_code": args.trust_remote_code}
    model: PreTrainedModel
    if is_new:
        tokenizer = load_tokenizer(args.tokenizer, documents["train"], **trust)
        model = new_model(tokenizer, **shape_of(args))
    else:
        model = load_model(args.model, dtype=torch.float32, **loading(args))
        tokenizer = load_pretrained_tokenizer(args.model, **trust)

    # Rows with labels, so that padding need not be masked and EOS stays learnable.
    args.packing = settle_packing(
        model,
        args.packing,
        default="wrapped",
        cross_document_attention=args.cross_document_attention,
    )
    batch_rows_of_like_length(training_args, args)
    rows = pack_splits(
        documents,
        tokenizer,
        args.max_length,
        args.cross_document_attention,
        model,
        args.packing,
        num_proc=args.num_proc,
        repack_seed=training_args.seed if args.repack_each_epoch else None,
    )
    show_data(documents, rows)

    # Training, and the loss on held-out text before and after.
    trainer = LMTrainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collate_rows,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=choose_optimizer(args, training_args, model),
    )
    prepare_output_dir(trainer, overwrite=args.overwrite)
    run_training(trainer, None, documents=documents, can_resume=False)
    metrics = trainer.evaluate() | trainer.metrics_before()

    # What is written: model and tokenizer, then samples, model card and run.json.
    trainer.save_model()
    trainer.save_state()
    # The folder that was really saved, as any tool loads it.
    saved = pipeline("text-generation", output_dir, **trust)
    samples = draw_samples(saved.model, tokenizer, max_new_tokens=64)
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
    show_run(output_dir, metrics, samples, saved.model, tokenizer, documents)
    return load_run(output_dir)


def check_request(args: QuickstartArguments) -> None:
    """Raise InputError for a new model that cannot be made, a shape for one that is there, or rows
    that cannot be packed anew; sets in `args` what follows from others.
    """
    from hfscale.data.repacking import check_repacking
    from hfscale.new_models import settle_shape, trial_model
    from hfscale.training.steps import settle_length

    check_repacking(args)
    if args.model != "new":
        check_no_shape(args)
        return
    args.max_position_embeddings = args.max_position_embeddings or args.max_length
    settle_length(settle_shape(args), args.max_length)
    trial_model(**shape_of(args))


def training_values(args: QuickstartArguments) -> dict[str, Any]:
    """Values of TrainingArguments: what the user said, and below it what suits a few minutes."""
    from hfscale.training.training_args import with_learning_rate

    defaults = {
        "output_dir": "runs/quickstart",
        "max_steps": 550,
        "learning_rate": 5e-5,  # of a checkpoint
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "weight_decay": 0.1,
        "logging_steps": 50,
        "save_strategy": "no",
        "eval_on_start": True,
    }
    given = args.training
    if args.model == "new":
        given = with_learning_rate(given, width=args.hidden_size, optimizer=args)
    return defaults | given


if __name__ == "__main__":
    run(main)
