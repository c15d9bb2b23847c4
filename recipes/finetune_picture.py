"""Teach a model to say what is in a picture: an encoder of pictures (a ViT) and a GPT-2 that looks
at what it sees, from random weights or saved ones.

    hfscale finetune_picture --config tiny_cpu
    hfscale finetune_picture --source photos --encoder google/vit-base-patch16-224 --model gpt2 \\
        --tokenizer null --output_dir runs/photos
"""

import time
from dataclasses import dataclass

from hfscale.arguments import LoadArguments, RunArguments, ShapeArguments, loading, shape_of
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.pictures.arguments import PictureArguments
from hfscale.process import UNSHARDED, InputError, launched_engine, run


@dataclass
class FinetunePictureArguments(PictureArguments, LoadArguments, ShapeArguments, RunArguments):
    pass


def main(argv: list[str] | None = None) -> Run | None:
    args = parse_args(FinetunePictureArguments, argv, recipe=__file__)
    started = time.perf_counter()

    from transformers import set_seed

    from hfscale.models import context_limit
    from hfscale.pictures.attention import draw_captions
    from hfscale.pictures.examples import load_examples
    from hfscale.pictures.measures import sample_texts, show_captions
    from hfscale.pictures.model import picture_model
    from hfscale.pictures.preview import preview
    from hfscale.pictures.rows import PictureCollator, picture_rows
    from hfscale.training.averaging import settle_averaging
    from hfscale.training.record import write_run

    # What can be checked before data and model are loaded.
    training_args = check_arguments(args)
    output_dir = str(training_args.output_dir)
    set_seed(training_args.seed)

    # What sees: the encoder, and the image processor that makes its numbers of a picture.
    encoder, processor = make_encoder(args)

    # Data: pictures in the encoder's size, and captions. Other ranks read the cache of the first.
    with training_args.main_process_first(desc="preparing the pictures"):
        examples = load_examples(args, processor, training_args.seed)

    # What writes: a GPT-2 with cross-attention. Both are one model.
    decoder, tokenizer = make_decoder(args, examples["train"])
    model = picture_model(encoder, decoder, tokenizer, max_new_tokens=args.max_new_tokens)

    # Rows: a picture, and the tokens of its caption.
    rows = picture_rows(examples, tokenizer, context_limit(decoder) or 1024)
    collate = PictureCollator(processor, tokenizer.eos_token_id)
    settle_averaging(args, training_args, rows["train"])
    if args.dry_run:
        preview(model, tokenizer, examples, rows, training_args)
        return None

    # Training, and captions of all held-out pictures: before, after, and with a wrong picture.
    trainer, metrics, captions = train(
        args, training_args, model, tokenizer, examples, rows, collate
    )

    # What is written: model, tokenizer, image processor, where it looked, model card and run.json.
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        processor.save_pretrained(output_dir)
        draw_captions(output_dir, tokenizer, collate, examples["validation"], captions)
        samples = sample_texts(examples["validation"], captions)
        data = {"source": [args.source]}
        write_run(
            trainer,
            __file__,
            args,
            argv,
            examples,
            rows,
            metrics,
            samples,
            data,
            seconds=time.perf_counter() - started,
        )
        show_captions(output_dir, metrics, samples)
        return load_run(output_dir)
    return None


def check_arguments(args: FinetunePictureArguments):
    """The arguments of the Trainer. Raises InputError for what can be told before data and model
    are loaded.
    """
    from hfscale.arguments import check_no_shape
    from hfscale.folders import check_output_dir
    from hfscale.new_models import settle_shape
    from hfscale.training.averaging import check_averaging
    from hfscale.training.optimizers import check_optimizer
    from hfscale.training.training_args import training_arguments, with_learning_rate

    training = {"output_dir": "runs/finetune-picture"} | args.training
    width = 256  # of a checkpoint it is not known yet
    if args.model == "new":
        settle_shape(args)
        width = args.hidden_size or width
        training = with_learning_rate(training, width=width, optimizer=args)
    else:
        check_no_shape(args)
    if args.auto_batch:
        raise InputError("auto_batch: sizes are not tried out with pictures; leave it out")
    if args.optimizer == "muon":
        raise InputError("optimizer muon: knows the matrices of text models alone; leave it out")
    if launched_engine() != UNSHARDED:
        raise InputError(
            f"the launch config asks for {launched_engine()}: a model that reads pictures is whole "
            "on each process; use --accelerate ddp, or cpu_2proc here"
        )
    training_args = training_arguments(training, width=width)
    training_args.remove_unused_columns = False  # the collator reads the pictures
    check_optimizer(args, training_args)
    check_averaging(args, training_args)
    if not args.dry_run:
        check_output_dir(
            str(training_args.output_dir), resume=args.resume, overwrite=args.overwrite
        )
    return training_args


def make_encoder(args: FinetunePictureArguments):
    """A saved encoder, or random weights, and the image processor."""
    from hfscale.pictures.model import load_encoder, new_encoder

    if args.encoder != "new":
        return load_encoder(args.encoder, **loading(args))
    return new_encoder(
        image_size=args.image_size,
        patch_size=args.patch_size,
        num_hidden_layers=args.encoder_layers,
        hidden_size=args.hidden_size or 768,
        num_attention_heads=args.num_attention_heads or 12,
    )


def make_decoder(args: FinetunePictureArguments, captions):
    """A saved GPT-2 with its tokenizer, or random weights and a tokenizer trained on captions."""
    from hfscale.data.tokenizer import load_model_tokenizer, load_tokenizer
    from hfscale.pictures.model import load_decoder, new_decoder

    if args.model != "new":
        tokenizer = load_model_tokenizer(
            args.model, args.tokenizer, trust_remote_code=args.trust_remote_code
        )
        return load_decoder(args.model, **loading(args)), tokenizer
    name = args.tokenizer or "train:300"
    tokenizer = load_tokenizer(name, captions, trust_remote_code=args.trust_remote_code)
    return new_decoder(tokenizer, **shape_of(args)), tokenizer


def train(args: FinetunePictureArguments, training_args, model, tokenizer, examples, rows, collate):
    """The trainer, the metrics, and the captions of the held-out pictures after training."""
    from hfscale.pictures.measures import CaptionMetrics, measure_captions, picture_effect
    from hfscale.pictures.trainer import PictureTrainer
    from hfscale.training.averaging import average_weights
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.optimizers import choose_optimizer
    from hfscale.training.running import prepare_output_dir, run_training

    settings = settings_of_run(args, training_args, model, tokenizer, rows)
    checkpoint = newest_checkpoint(training_args, settings) if args.resume else None
    trainer = PictureTrainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collate,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=choose_optimizer(args, training_args, model),
    )
    average_weights(trainer, args, checkpoint)
    prepare_output_dir(trainer, overwrite=args.overwrite)
    judge = CaptionMetrics(examples, args.attributes)
    before, _, _ = measure_captions(trainer, judge, args, "before_eval")
    run_training(trainer, checkpoint, settings, documents=examples)
    after, seen, captions = measure_captions(trainer, judge, args, "eval")
    baseline, unseen, _ = measure_captions(trainer, judge, args, "baseline")
    metrics = trainer.evaluate() | after | before | baseline | picture_effect(unseen, seen)
    return trainer, metrics, captions


if __name__ == "__main__":
    run(main)
