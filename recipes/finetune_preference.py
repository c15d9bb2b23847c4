"""Tune a model on pairs of a better and a worse answer (DPO, over TRL's trainer): all weights or a
LoRA adapter.

    hfscale finetune_preference --config tiny_cpu
    hfscale finetune_preference --model runs/task-dialogue --source "pairs/*.jsonl" \\
        --lora_r 16 --beta 0.1
"""

import importlib.util
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from hfscale.arguments import AdapterArguments
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.process import InputError, run


@dataclass
class FinetunePreferenceArguments(AdapterArguments):
    source: str = field(
        default="embedded:preferences",
        metadata={
            "help": "embedded:preferences, or .jsonl files with the columns prompt, chosen, "
            "rejected"
        },
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "share of pairs held out"})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "longest prompt and answer in tokens, longer pairs are left out; default: the "
            "context, up to 1024",
            "min": 2,
        },
    )
    beta: float = field(
        default=0.1,
        metadata={
            "help": "above 0; smaller: further from the model at the start",
            "min": 1e-6,  # at 0 no pair teaches anything
            "max": 1e6,
        },
    )
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = field(
        default="sigmoid", metadata={"help": "sigmoid: DPO itself; the others as in trl.DPOConfig"}
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "of loss_type robust: the share of pairs that are taken to be the wrong way "
            "round, below 0.5"
        },
    )
    resume: Literal["auto"] | None = field(
        default=None, metadata={"help": "auto: go on from the newest checkpoint"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "delete an earlier run in output_dir first"}
    )
    training: dict = field(default_factory=dict)


def main(argv: list[str] | None = None) -> Run | None:
    args = parse_args(FinetunePreferenceArguments, argv, recipe=__file__)
    started = time.perf_counter()
    check_settings(args)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made

    from transformers import set_seed
    from trl import DPOTrainer

    from hfscale.adapters import load_for_training, merge_saved_adapter
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.folders import check_output_dir
    from hfscale.models import load_model, load_saved_model
    from hfscale.tasks.preference_metrics import preference_metrics
    from hfscale.tasks.preferences import load_preferences, pair_ids
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.record import write_run
    from hfscale.training.running import prepare_output_dir, run_training

    # What can be checked before data and model are loaded.
    training_args = dpo_config(args)
    output_dir = str(training_args.output_dir)
    check_output_dir(output_dir, resume=args.resume, overwrite=args.overwrite)
    set_seed(training_args.seed)

    # Model: the policy to train, and the model that it starts from, to compare with.
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    model = load_for_training(args, tokenizer)
    # Verified, if asked, when it was loaded to train.
    load = partial(
        load_model, args.model, dtype="float32", trust_remote_code=args.trust_remote_code
    )
    reference = load()

    # Data: prompts with a better and a worse answer.
    pairs, num_dropped = load_preferences(
        args.source,
        tokenizer,
        seed=training_args.seed,
        max_length=longest_pair(args, reference),
        validation_fraction=args.validation_fraction,
    )
    print(
        f"{len(pairs['train'])} pairs to train on, {len(pairs['validation'])} held out, "
        f"{num_dropped} too long"
    )

    # The trainer's own tokens would hold what some tokenizers put behind a text.
    rows = pairs.map(partial(pair_ids, tokenizer=tokenizer))

    # Training, from the start or from the newest whole checkpoint.
    settings = settings_of_run(args, training_args, model, tokenizer, rows)
    checkpoint = newest_checkpoint(training_args, settings) if args.resume else None
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=training_args,
        train_dataset=pairs["train"],
        eval_dataset=pairs["validation"],
        processing_class=tokenizer,
    )
    trainer.train_dataset = rows["train"]
    trainer.eval_dataset = rows["validation"]
    prepare_output_dir(trainer, overwrite=args.overwrite)
    run_training(trainer, checkpoint, settings, documents=pairs)

    # Evaluation: TRL averages rewards over batches; exact ones, with intervals, take their place.
    metrics: dict[str, Any] = {
        name: value for name, value in trainer.evaluate().items() if "/" not in name
    }
    trainer.save_model(_internal_call=True)  # pushed, if asked, with its record
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    saved = load_saved_model(output_dir, trust_remote_code=args.trust_remote_code)
    saved.to(training_args.device)
    # Loaded anew: the trainer may have spread the first over ranks.
    metrics |= preference_metrics(
        saved, load().to(training_args.device), trainer.eval_dataset, beta=args.beta
    )

    # What is written: model card and run.json, beside the model.
    if trainer.is_world_process_zero():
        if args.merge:
            merge_saved_adapter(output_dir, trust_remote_code=args.trust_remote_code)
        samples = answered_prompts(saved, tokenizer, pairs["validation"]["prompt"][:3])
        data = {"source": [args.source], "dropped": {"too long": num_dropped}}
        write_run(
            trainer,
            __file__,
            args,
            argv,
            pairs,
            pairs,
            metrics,
            samples,
            data,
            seconds=time.perf_counter() - started,
        )
        show_results(metrics, output_dir)
        return load_run(output_dir)
    return None


def check_settings(args: FinetunePreferenceArguments) -> None:
    """Raise InputError without TRL, and for what the loss would take and then learn nothing, or
    something else, from.
    """
    if importlib.util.find_spec("trl") is None:
        raise InputError('finetune_preference: TRL is not installed: pip install "hfscale[trl]"')
    if args.loss_type != "robust" and args.label_smoothing:
        raise InputError(
            f"label_smoothing: belongs to loss_type robust; {args.loss_type} goes without it"
        )
    if args.loss_type == "robust" and not 0 < args.label_smoothing < 0.5:
        raise InputError(
            f"label_smoothing: got {args.label_smoothing}, expected above 0 and below 0.5 with "
            "loss_type robust (at 0 it is sigmoid)"
        )
    if args.add_tokens:
        raise InputError(
            "add_tokens: the model to compare with would not know them; add them with finetune "
            "first"
        )
    if args.training.get("label_smoothing_factor"):
        raise InputError(
            "label_smoothing_factor: pairs have no labels to smooth; take loss_type robust with "
            "label_smoothing"
        )


def dpo_config(args: FinetunePreferenceArguments):
    """TRL's configuration of the training.

    Its own defaults are others: a tenth of these rates, recomputed activations, bf16 where it is
    slow.
    """
    from trl import DPOConfig

    from hfscale.training.training_args import training_arguments

    defaults = {
        "output_dir": "runs/finetune-preference",
        "learning_rate": 1e-4 if args.lora_r else 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": False,
    }
    return training_arguments(
        defaults | args.training,
        width=256,
        cls=DPOConfig,
        beta=args.beta,
        loss_type=[args.loss_type],
        max_length=None,  # pairs that are too long are left out, not cut
        label_smoothing=args.label_smoothing,
    )


def longest_pair(args: FinetunePreferenceArguments, model) -> int:
    """The tokens that prompt and answer may have. Raises InputError: more than the context."""
    from hfscale.models import context_limit

    limit = context_limit(model) or 1024
    max_length = args.max_length or min(limit, 1024)
    if max_length > limit:
        raise InputError(
            f"max_length: got {max_length}, expected 2 to the model's context of {limit}"
        )
    return max_length


def answered_prompts(model, tokenizer, prompts: list[str]) -> list[str]:
    """Each prompt with the likeliest answer behind it."""
    from hfscale.generation.texts import generate_texts

    answers = generate_texts(model, tokenizer, prompts, do_sample=False, max_new_tokens=40)
    return [prompt + answer for prompt, [answer] in zip(prompts, answers, strict=True)]


def show_results(metrics: dict, output_dir: str) -> None:
    """Print the rewards of the held-out pairs, and what their intervals cannot show."""
    from hfscale.metrics.intervals import by_note, interval_notes
    from hfscale.report.tables import cell
    from hfscale.training.steps import show_place

    for name in ("accuracy", "margin"):
        print(f"held-out reward {name}: {cell(metrics, f'eval_reward_{name}')}")
    for note, about in by_note(interval_notes(metrics)).items():
        print(f"{about}: {note}")
    show_place(output_dir)


if __name__ == "__main__":
    run(main)
