"""Teach a causal language model a task, prompt -> target: translation, summarization, questions,
dialogue, code.

    hfscale finetune_task --config translation
    hfscale finetune_task --config code --model gpt2 --tokenizer null --lora_r 16 \\
        --max_length 512 --output_dir runs/code-gpt2
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Literal

from hfscale.arguments import (
    AdapterArguments,
    RunArguments,
    ShapeArguments,
    TaskArguments,
    check_no_shape,
    shape_of,
)
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.process import InputError, run
from hfscale.shown import show_text


@dataclass
class FinetuneTaskArguments(TaskArguments, AdapterArguments, ShapeArguments, RunArguments):
    model: str = field(
        default="new",
        metadata={"help": "folder of a saved model, a Hub id, or new: random weights"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "train:<vocab size>, char, a folder or a Hub id; default: the checkpoint's own"
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "tokens per row; default: the context, up to 1024", "min": 2},
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


def main(argv: list[str] | None = None) -> Run | None:
    args = parse_args(FinetuneTaskArguments, argv, recipe=__file__)
    started = time.perf_counter()

    from transformers import set_seed

    from hfscale.adapters import merge_saved_adapter
    from hfscale.data.packing import settle_packing
    from hfscale.generation.task_prompt import save_task_prompt
    from hfscale.models import context_limit
    from hfscale.tasks.examples import count_dropped, example_texts, load_task, task_prompt
    from hfscale.tasks.fitting import fit_examples
    from hfscale.tasks.measures import (
        load_answer_metrics,
        sample_texts,
        show_examples,
    )
    from hfscale.tasks.rows import supervised_rows
    from hfscale.training.averaging import settle_averaging
    from hfscale.training.preview import preview
    from hfscale.training.record import write_run
    from hfscale.training.training_args import batch_rows_of_like_length

    # What can be checked before data and model are loaded.
    training_args = check_arguments(args)
    output_dir = str(training_args.output_dir)
    task_metrics = load_answer_metrics(args, trust_remote_code=args.trust_remote_code)
    set_seed(training_args.seed)

    # Data: prompts, targets and references. The other ranks read the cache of the first.
    counts: dict[str, Counter] = {}
    with training_args.main_process_first(desc="preparing the data"):
        examples = load_task(args, seed=training_args.seed, counts=counts)
        texts = example_texts(examples)
    task = task_prompt(args, examples)

    # Model: a checkpoint, or random weights and a tokenizer trained on the task's texts.
    make_model = make_new_model if args.model == "new" else load_checkpoint
    model, tokenizer = make_model(args, texts["train"], is_chat=task.prompt is None)

    # Rows in which only targets carry loss.
    args.packing = settle_packing(model, args.packing, default="bfd")
    batch_rows_of_like_length(training_args, args)
    max_length = args.max_length or min(context_limit(model) or 1024, 1024)
    examples, shortened = fit_examples(examples, tokenizer, args, max_length, counts=counts)
    rows = supervised_rows(examples, tokenizer, max_length, args.packing)
    settle_averaging(args, training_args, rows["train"])
    if args.dry_run:
        show_examples(counts)
        preview(model, tokenizer, rows, training_args, args)
        return None

    # Training, and the answers to all held-out examples: before, after, and of the baseline.
    trainer, metrics, answers = train(
        args, training_args, model, tokenizer, examples, texts, rows, task_metrics
    )

    # What is written: model and tokenizer, how the task is asked, model card and run.json.
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        if args.merge:
            merge_saved_adapter(output_dir, trust_remote_code=args.trust_remote_code)
        save_task_prompt(output_dir, **asdict(task))
        samples = sample_texts(examples["validation"], answers)
        data = {"dropped": count_dropped(counts), "shortened": shortened, "examples": counts}
        write_run(
            trainer,
            __file__,
            args,
            argv,
            texts,
            rows,
            metrics,
            samples,
            data,
            seconds=time.perf_counter() - started,
        )
        show_results(args, output_dir, task, examples["validation"], counts, metrics, samples)
        return load_run(output_dir)
    return None


def check_arguments(args: FinetuneTaskArguments):
    """The arguments of the Trainer. Raises InputError for what can be told before data and model
    are loaded.
    """
    from hfscale.folders import check_output_dir
    from hfscale.training.averaging import check_averaging
    from hfscale.training.optimizers import check_optimizer
    from hfscale.training.training_args import training_arguments, with_learning_rate

    is_new = args.model == "new"
    if is_new:
        check_new_model(args)
    else:
        check_no_shape(args)
        check_own_tokenizer(args)
    # Of a checkpoint it is not known yet.
    width = args.hidden_size if is_new and args.hidden_size else 256
    training = args.training
    if is_new:
        training = with_learning_rate(training, width=width, optimizer=args)
    training_args = training_arguments(training, width=width)
    check_optimizer(args, training_args)
    check_averaging(args, training_args)
    if not args.dry_run:
        output_dir = str(training_args.output_dir)
        check_output_dir(output_dir, resume=args.resume, overwrite=args.overwrite)
    return training_args


def check_own_tokenizer(args: FinetuneTaskArguments) -> None:
    """Raise InputError for a checkpoint with a tokenizer that is to be trained, as the shipped
    configs train one for a new model.
    """
    if args.tokenizer == "char" or str(args.tokenizer).startswith("train:"):
        raise InputError(
            f"tokenizer {args.tokenizer}: model {args.model} has learned the tokens of one that is "
            "there; give --tokenizer null, for its own"
        )


def check_new_model(args: FinetuneTaskArguments) -> None:
    """Raise InputError for a model that cannot be made, or settings that need a checkpoint."""
    from hfscale.new_models import settle_shape, trial_model

    settle_shape(args, in_memory=not args.dry_run)
    trial_model(**shape_of(args))
    if args.lora_r is not None or args.peft_type or args.freeze_layers:
        raise InputError(
            "model new: random weights are trained whole; leave out adapters and freeze_layers"
        )


def make_new_model(args: FinetuneTaskArguments, texts, *, is_chat: bool):
    """Random weights, and a tokenizer trained on the texts unless another one is named."""
    from hfscale.adapters import extend_tokenizer
    from hfscale.data.tokenizer import load_tokenizer
    from hfscale.new_models import new_model
    from hfscale.tasks.chat_templates import add_template_characters, set_chat_template

    name = args.tokenizer or "train:1024"
    tokenizer = load_tokenizer(name, texts, trust_remote_code=args.trust_remote_code)
    extend_tokenizer(tokenizer, args.add_tokens)
    if is_chat:
        set_chat_template(tokenizer, args.chat_template)
        add_template_characters(tokenizer)
    return new_model(tokenizer, **shape_of(args)), tokenizer


def load_checkpoint(args: FinetuneTaskArguments, texts, *, is_chat: bool):
    """The checkpoint to go on from, with an adapter or frozen layers as `args` say."""
    from hfscale.adapters import load_for_training
    from hfscale.data.tokenizer import load_model_tokenizer
    from hfscale.tasks.chat_templates import set_chat_template

    tokenizer = load_model_tokenizer(
        args.model, args.tokenizer, trust_remote_code=args.trust_remote_code
    )
    model = load_for_training(args, tokenizer)
    if is_chat:
        set_chat_template(tokenizer, args.chat_template)
    return model, tokenizer


def train(
    args: FinetuneTaskArguments,
    training_args,
    model,
    tokenizer,
    examples,
    texts,
    rows,
    task_metrics,
):
    """The trainer, the metrics, and the answers to the held-out examples after training."""
    from hfscale.data.packing import collate_rows
    from hfscale.tasks.examples import baseline_answers
    from hfscale.tasks.measures import GenerationMetrics, measure_answers
    from hfscale.training.averaging import average_weights
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.optimizers import choose_optimizer
    from hfscale.training.running import prepare_output_dir, run_training
    from hfscale.training.trainer import LMTrainer

    settings = settings_of_run(args, training_args, model, tokenizer, rows)
    checkpoint = newest_checkpoint(training_args, settings) if args.resume else None
    held_out = examples["validation"]
    simple_answers = baseline_answers(args.baseline, examples)
    baseline, _ = measure_answers(simple_answers, held_out, args, task_metrics, "baseline")
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
    # At each evaluation it answers a sample of the held-out examples.
    trainer.add_callback(GenerationMetrics(trainer, held_out, args, task_metrics))
    prepare_output_dir(trainer, overwrite=args.overwrite)
    before, _ = measure_answers(trainer, held_out, args, task_metrics, "before_eval")
    run_training(trainer, checkpoint, settings, documents=texts)
    after, answers = measure_answers(trainer, held_out, args, task_metrics, "eval")
    metrics = trainer.evaluate() | after | before | baseline
    return trainer, metrics, answers


def show_results(
    args: FinetuneTaskArguments, output_dir: str, task, held_out, counts, metrics, samples
) -> None:
    """Print what became of the examples, the metrics, some answers, and what comes next."""
    from hfscale.metrics.text_notes import text_notes
    from hfscale.tasks.measures import asking_command, not_measured, show_answers, show_examples
    from hfscale.training.steps import show_place

    show_examples(counts)
    notes = text_notes(held_out["references"], args.metrics, args.metric_options)
    show_answers(metrics, args.baseline, samples, notes)
    print()
    show_place(output_dir)
    left_to_score = not_measured(args)
    if left_to_score:
        print(f"not measured here, but by score --model {output_dir}: {', '.join(left_to_score)}")
    show_text(f"next: {asking_command(output_dir, task, held_out)}")


if __name__ == "__main__":
    run(main)
