"""Teach a causal language model a task, prompt -> target: translation, summarization, questions,
dialogue, code.

hfscale finetune_task --config translation hfscale finetune_task --config code --model gpt2
--lora_r 16 --max_length 512 --output_dir runs/code-gpt2
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

from hfscale.arguments import (
    AdapterArguments,
    RunArguments,
    ShapeArguments,
    TaskArguments,
    shape_of,
)
from hfscale.config import parse_args
from hfscale.process import InputError, is_main_rank, run


@dataclass
class FinetuneTaskArguments(TaskArguments, AdapterArguments, ShapeArguments, RunArguments):
    model: str = field(
        default="new",
        metadata={"help": "folder of a saved model, a Hub id, or new: random weights"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "train:<vocab size>, unigram:<vocab size>, char, a folder or a Hub id; "
            "default: the checkpoint's own"
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "tokens per row; default: the context, up to 1024"}
    )
    packing: Literal["bfd", "none"] | None = field(
        default=None,
        metadata={
            "help": "bfd: several examples in a row, apart from each other; none: one, "
            "padded, rows of similar length together; default: bfd, or none for a model that "
            "lets packed examples see each other",
            "renamed": {"best_fit": "bfd"},
        },
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(FinetuneTaskArguments, argv, recipe=__file__)

    from transformers import set_seed

    from hfscale.adapters import merge_saved_adapter
    from hfscale.data.packing import collate_rows, settle_packing
    from hfscale.folders import check_output_dir, clear_output_dir
    from hfscale.metrics.text_notes import text_notes
    from hfscale.models import check_architecture, context_limit
    from hfscale.tasks.examples import (
        baseline_answers,
        count_dropped,
        example_texts,
        load_task,
        task_prompt,
    )
    from hfscale.tasks.measures import (
        GenerationMetrics,
        asking_command,
        load_answer_metrics,
        measure_answers,
        not_measured,
        sample_texts,
        show_answers,
        show_examples,
    )
    from hfscale.tasks.prompt import save_task_prompt
    from hfscale.tasks.rows import fit_examples, supervised_rows
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.preview import preview
    from hfscale.training.record import write_run
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import batch_rows_of_like_length, training_arguments

    is_new = args.model == "new"
    if is_new:
        check_architecture(shape_of(args), in_memory=not args.dry_run)
    training_args = training_arguments(args.training, width=args.n_embd if is_new else 256)
    left_to_score = not_measured(args, trust_remote_code=args.trust_remote_code)
    task_metrics = load_answer_metrics(args, trust_remote_code=args.trust_remote_code)
    if not args.dry_run:
        check_output_dir(training_args.output_dir, resume=args.resume, overwrite=args.overwrite)

    set_seed(training_args.seed)
    counts: dict = {}
    with training_args.main_process_first(
        desc="preparing the data"
    ):  # the other ranks read its cache
        examples = load_task(args, seed=training_args.seed, counts=counts)
        texts = example_texts(examples)
    task = task_prompt(args, examples)
    model, tokenizer = make_model(args, texts["train"], is_chat=task.prompt is None)
    args.packing = settle_packing(model, args.packing, default="bfd")
    batch_rows_of_like_length(training_args, args)
    max_length = (
        min(context_limit(model) or 1024, 1024) if args.max_length is None else args.max_length
    )
    examples, cut = fit_examples(examples, tokenizer, args, max_length, counts=counts)
    rows = supervised_rows(examples, tokenizer, max_length, args.packing)
    if args.dry_run:
        if is_main_rank():
            show_examples(counts)
        return preview(model, tokenizer, rows, training_args)
    checkpoint = newest_checkpoint(training_args) if args.resume else None
    baseline, _ = measure_answers(
        baseline_answers(args.baseline, examples),
        examples["validation"],
        args,
        task_metrics,
        "baseline",
    )

    trainer = LMTrainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collate_rows,
        processing_class=tokenizer,
        auto_batch=args.auto_batch,
    )
    trainer.add_callback(GenerationMetrics(trainer, examples["validation"], args, task_metrics))
    clear_output_dir(training_args.output_dir, args.overwrite)
    before, _ = measure_answers(
        trainer, examples["validation"], args, task_metrics, "before_eval"
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics, answers = measure_answers(
        trainer, examples["validation"], args, task_metrics, "eval"
    )
    metrics = trainer.evaluate() | metrics | before | baseline
    trainer.save_model()
    trainer.save_state()

    if trainer.is_world_process_zero():
        folder = training_args.output_dir
        if args.merge:
            merge_saved_adapter(folder, trust_remote_code=args.trust_remote_code)
        save_task_prompt(folder, **asdict(task))
        samples = sample_texts(examples["validation"], answers)
        write_run(
            trainer,
            __file__,
            args,
            argv,
            texts,
            rows,
            metrics,
            samples,
            {"dropped": count_dropped(counts), "shortened": cut, "examples": counts},
        )
        show_examples(counts)
        notes = text_notes(examples["validation"]["references"], args.metrics, args.metric_options)
        show_answers(metrics, args.baseline, samples, notes)
        print(f"\nmodel, tokenizer and run.json: {folder}")
        if left_to_score:
            print(f"not measured here, but by score --model {folder}: {', '.join(left_to_score)}")
        print(f"next: {asking_command(folder, task, examples['validation'])}")


def make_model(args: FinetuneTaskArguments, texts, *, is_chat: bool):
    """Model and tokenizer: the checkpoint to go on from, or random weights and a tokenizer made
    from the texts.
    """
    from hfscale.adapters import extend_tokenizer, load_for_training
    from hfscale.data.tokenizer import load_model_tokenizer, load_tokenizer
    from hfscale.models import new_model
    from hfscale.tasks.rows import add_template_characters, set_chat_template

    if args.model != "new":
        tokenizer = load_model_tokenizer(
            args.model, args.tokenizer, trust_remote_code=args.trust_remote_code
        )
        model = load_for_training(args, tokenizer)
        if is_chat:
            set_chat_template(tokenizer, args.chat_template)
        return model, tokenizer
    if args.lora_r is not None or args.peft_type or args.freeze_layers:
        raise InputError(
            "model new: random weights are trained whole; leave out adapters and freeze_layers"
        )
    tokenizer = load_tokenizer(
        args.tokenizer or "train:1024", texts, trust_remote_code=args.trust_remote_code
    )
    extend_tokenizer(tokenizer, args.add_tokens)
    if is_chat:
        set_chat_template(tokenizer, args.chat_template)
        add_template_characters(tokenizer)
    return new_model(tokenizer, **shape_of(args)), tokenizer


if __name__ == "__main__":
    run(main)
