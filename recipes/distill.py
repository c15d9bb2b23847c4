"""Distil a small student from a larger teacher: new or loaded weights learn the text and, by the
logits, what the teacher expects of it.

    hfscale distill --config tiny_cpu
    hfscale distill --teacher_model_name_or_path runs/books --source "books/*.txt" \\
        --num_hidden_layers 2 --num_attention_heads 2 --hidden_size 64 \\
        --max_position_embeddings 256 --output_dir runs/small
"""

import time
from dataclasses import dataclass, field
from typing import Any

from hfscale.arguments import (
    DataArguments,
    LoadArguments,
    RunArguments,
    ShapeArguments,
    check_no_shape,
    loading,
    shape_of,
)
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.folders import check_output_dir
from hfscale.process import InputError, run


@dataclass
class DistillArguments(LoadArguments, ShapeArguments, DataArguments, RunArguments):
    teacher_model_name_or_path: str = field(
        default="runs/quickstart",
        metadata={"help": "folder of a saved model, or a Hub id, with the student's vocabulary"},
    )
    teacher_model_init_kwargs: dict = field(
        default_factory=dict,
        metadata={"help": "of the teacher's from_pretrained, such as dtype=bfloat16"},
    )
    model: str = field(
        default="new",
        metadata={"help": "the student: new, of the sizes below, or a folder or Hub id"},
    )
    tokenizer: str | None = field(  # type: ignore[assignment]  # a new model has to be told one
        default=None, metadata={"help": "folder or Hub id; default: the teacher's"}
    )
    beta: float = field(
        default=0.0,
        metadata={
            "help": "the divergence: 0 forward KL, 1 reverse KL, between them the generalised "
            "Jensen-Shannon divergence",
            "min": 0,
            "max": 1,
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "divides both models' logits; above 1 unlikely tokens count more",
            "min": 1e-3,
            "max": 1e3,
        },
    )
    kd_ratio: float = field(
        default=0.9,
        metadata={
            "help": "the teacher's share of the loss; the rest is the text's cross-entropy",
            "min": 0,
            "max": 1,
        },
    )


def main(argv: list[str] | None = None) -> Run | None:
    args = parse_args(DistillArguments, argv, recipe=__file__)
    started = time.perf_counter()

    from transformers import set_seed

    from hfscale.data.packing import collate_rows
    from hfscale.models import load_model, load_saved_model, weights_fingerprint
    from hfscale.shown import show_text
    from hfscale.training.averaging import average_weights, settle_averaging
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.distillation import DistillationTrainer, describe_teacher
    from hfscale.training.optimizers import choose_optimizer
    from hfscale.training.preview import preview
    from hfscale.training.record import write_run
    from hfscale.training.running import prepare_output_dir, run_training
    from hfscale.training.steps import draw_samples, show_data, show_run

    # What cannot work is refused before anything is read.
    training_args = check_arguments(args)
    output_dir = str(training_args.output_dir)

    # Models: the student's weights are those that pretrain would draw with this seed.
    tokenizer = load_tokenizers(args)
    set_seed(training_args.seed)
    model = make_student(args, tokenizer)
    teacher = load_model(
        args.teacher_model_name_or_path, **loading(args), **args.teacher_model_init_kwargs
    )

    # Data: text -> rows that both models read. One rank prepares it, the others read its cache.
    max_length = settle_rows(args, training_args, model, teacher)
    with training_args.main_process_first(desc="preparing the data"):
        documents, rows = prepare_data(args, training_args, model, tokenizer, max_length)
    settle_averaging(args, training_args, rows["train"])
    if args.dry_run:
        show_text(describe_teacher(teacher))
        preview(model, tokenizer, rows, training_args, args)
        return None
    show_data(documents, rows)

    # Training, from the start or from the newest whole checkpoint.
    settings = settings_of_run(args, training_args, model, tokenizer, rows)
    checkpoint = newest_checkpoint(training_args, settings) if args.resume else None
    trainer = DistillationTrainer(
        model=model,
        args=training_args,
        teacher=teacher,
        beta=args.beta,
        temperature=args.temperature,
        kd_ratio=args.kd_ratio,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collate_rows,
        processing_class=tokenizer,
        auto_batch=args.auto_batch,
        optimizer_cls_and_kwargs=choose_optimizer(args, training_args, model),
    )
    average_weights(trainer, args, checkpoint)
    prepare_output_dir(trainer, overwrite=args.overwrite)
    run_training(trainer, checkpoint, settings, documents=documents)

    # Evaluation on the held-out text: of the student, and of the teacher beside it.
    metrics = trainer.evaluate() | trainer.metrics_before() | trainer.evaluate_teacher()

    # What is written: model and tokenizer, then samples, model card and run.json.
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        saved = load_saved_model(output_dir, trust_remote_code=args.trust_remote_code)
        samples = draw_samples(saved, tokenizer)
        data = {"teacher_fingerprint": weights_fingerprint(args.teacher_model_name_or_path)}
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


def check_arguments(args: DistillArguments):
    """The arguments of the Trainer; sets in `args` what follows from others. Raises InputError for
    what can be told before anything is read.
    """
    from hfscale.data.repacking import check_repacking
    from hfscale.new_models import settle_shape
    from hfscale.training.averaging import check_averaging
    from hfscale.training.distillation import check_distillation
    from hfscale.training.optimizers import check_optimizer
    from hfscale.training.steps import settle_length
    from hfscale.training.training_args import training_arguments, with_learning_rate

    training = {"output_dir": "runs/distill"} | args.training
    width = 256  # of a checkpoint it is not known yet
    if args.model == "new":
        config = settle_shape(args, in_memory=not args.dry_run)
        args.max_length = settle_length(config, args.max_length)
        width = args.hidden_size or width
        training = with_learning_rate(training, width=width, optimizer=args)
    else:
        check_no_shape(args)
    training_args = training_arguments(training, width=width)
    check_distillation(training_args)
    check_optimizer(args, training_args)
    check_averaging(args, training_args)
    check_repacking(args)
    if not args.dry_run:
        output_dir = str(training_args.output_dir)
        check_output_dir(output_dir, resume=args.resume, overwrite=args.overwrite)
    return training_args


def load_tokenizers(args: DistillArguments):
    """The student's tokenizer; raises InputError: the teacher has another vocabulary."""
    from hfscale.data.tokenizer import load_model_tokenizer, load_pretrained_tokenizer
    from hfscale.training.distillation import check_same_vocabulary

    trust: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    teacher = args.teacher_model_name_or_path
    of_teacher = load_pretrained_tokenizer(teacher, **trust)
    if args.model == "new":
        tokenizer = load_pretrained_tokenizer(args.tokenizer or teacher, **trust)
    else:
        tokenizer = load_model_tokenizer(args.model, args.tokenizer, **trust)
    check_same_vocabulary(tokenizer, of_teacher, teacher)
    return tokenizer


def make_student(args: DistillArguments, tokenizer):
    """A model with random weights, or the checkpoint to go on from, in float32."""
    import torch

    from hfscale.models import is_adapter, load_model
    from hfscale.new_models import new_model

    if args.model != "new":
        if is_adapter(args.model):
            raise InputError(
                f"model {args.model}: is an adapter; make a plain model of it first (its run with "
                "--merge)"
            )
        return load_model(args.model, **loading(args), dtype=torch.float32)
    return new_model(tokenizer, **shape_of(args))


def settle_rows(args: DistillArguments, training_args, model, teacher) -> int:
    """Tokens of a row; sets in `args` the packing with which neither model sees two documents of
    one.
    """
    from hfscale.data.packing import settle_packing
    from hfscale.training.distillation import check_teacher_reads
    from hfscale.training.steps import row_length
    from hfscale.training.training_args import batch_rows_of_like_length

    max_length = row_length(model, args.max_length)
    check_teacher_reads(teacher, args.teacher_model_name_or_path, max_length)
    packing: Any = "wrapped"
    for reader in (model, teacher):
        packing = settle_packing(
            reader,
            args.packing,
            default=packing,
            cross_document_attention=args.cross_document_attention,
        )
    args.packing = packing
    batch_rows_of_like_length(training_args, args)
    return max_length


def prepare_data(args: DistillArguments, training_args, model, tokenizer, max_length: int):
    """Documents and rows of each split."""
    from hfscale.data.packing import pack_splits
    from hfscale.data.splits import load_splits

    documents = load_splits(args, seed=training_args.seed)
    rows = pack_splits(
        documents,
        tokenizer,
        max_length,
        args.cross_document_attention,
        model,
        args.packing or "wrapped",
        num_proc=args.num_proc,
        repack_seed=training_args.seed if args.repack_each_epoch else None,
    )
    return documents, rows


if __name__ == "__main__":
    run(main)
