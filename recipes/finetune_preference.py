"""Tune a model on pairs of a better and a worse answer, or on answers that are good or bad: DPO and
its kin, KTO, ORPO, SimPO; all weights or a LoRA adapter.

    hfscale finetune_preference --config tiny_cpu
    hfscale finetune_preference --model runs/task-dialogue --source "pairs/*.jsonl" \\
        --lora_r 16 --beta 0.1
    hfscale finetune_preference --config tiny_cpu --loss_type simpo --beta 2 --simpo_gamma 1
"""

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from hfscale.arguments import AdapterArguments
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.process import InputError, run

# What a loss has beside beta, and no other takes, with TRL's defaults.
OWN_SETTINGS = {
    "kto": {"desirable_weight": 1.0, "undesirable_weight": 1.0},
    "simpo": {"simpo_gamma": 0.5},
}
WITHOUT_REFERENCE = ("orpo", "simpo")


@dataclass
class FinetunePreferenceArguments(AdapterArguments):
    source: str = field(
        default="embedded:preferences",
        metadata={
            "help": "embedded:preferences, or .jsonl files with the columns prompt, chosen, "
            "rejected; of kto also prompt, completion, label"
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
            "help": "above 0; smaller: further from the model at the start; of orpo the weight of "
            "the odds, of simpo that of the difference per token (its authors take 2 to 2.5)",
            "min": 1e-6,  # at 0 no pair teaches anything
            "max": 1e6,
        },
    )
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "kto", "orpo", "simpo"] = field(
        default="sigmoid",
        metadata={
            "help": "sigmoid: DPO itself; ipo, hinge, robust: as in trl.DPOConfig; kto: each "
            "answer is good or bad; orpo, simpo: without the model at the start"
        },
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "of loss_type robust: the share of pairs that are taken to be the wrong way "
            "round, below 0.5"
        },
    )
    desirable_weight: float | None = field(
        default=None,
        metadata={"help": "of loss_type kto: weight of good answers; default: 1", "min": 0},
    )
    undesirable_weight: float | None = field(
        default=None,
        metadata={"help": "of loss_type kto: weight of bad answers; default: 1", "min": 0},
    )
    simpo_gamma: float | None = field(
        default=None,
        metadata={
            "help": "of loss_type simpo: by how much the rewards should differ; default: 0.5",
            "min": 0,
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
    settle_loss(args)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made

    from transformers import set_seed

    from hfscale.adapters import load_for_training, merge_saved_adapter
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.folders import check_output_dir
    from hfscale.models import load_model, load_saved_model
    from hfscale.tasks.preferences import load_preferences
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.record import write_run
    from hfscale.training.running import prepare_output_dir, run_training

    # What can be checked before data and model are loaded.
    training_args = dpo_config(args)
    output_dir = str(training_args.output_dir)
    check_output_dir(output_dir, resume=args.resume, overwrite=args.overwrite)
    set_seed(training_args.seed)

    # Model: the policy to train, and how to load the one that it starts from, to compare with.
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    model = load_for_training(args, tokenizer)
    # Verified, if asked, when it was loaded to train.
    load_reference = partial(
        load_model, args.model, dtype="float32", trust_remote_code=args.trust_remote_code
    )

    # Data: prompts with a better and a worse answer, or with an answer that is good or bad.
    pairs, num_dropped = load_preferences(
        args.source,
        tokenizer,
        seed=training_args.seed,
        max_length=longest_pair(args, model),
        validation_fraction=args.validation_fraction,
        loss_type=args.loss_type,
    )
    print(
        f"{len(pairs['train'])} {'pairs' if 'chosen' in pairs['train'].features else 'answers'} "
        f"to train on, {len(pairs['validation'])} held out, {num_dropped} too long"
    )
    rows = rows_of_loss(args, pairs, tokenizer)

    # Training, from the start or from the newest whole checkpoint.
    settings = settings_of_run(args, training_args, model, tokenizer, rows)
    checkpoint = newest_checkpoint(training_args, settings) if args.resume else None
    at_start = measured_at_start(args, model, rows["validation"], training_args.device)
    trainer = make_trainer(args, training_args, model, load_reference, tokenizer, pairs, rows)
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
    metrics |= at_start | measured_at_end(
        args, saved, load_reference, tokenizer, pairs["validation"], trainer.eval_dataset
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


def settle_loss(args: FinetunePreferenceArguments) -> None:
    """Set what was left open of the loss, so that the record and a continuation see it.

    Raises InputError: an argument of another loss.
    """
    for loss_type, defaults in OWN_SETTINGS.items():
        for name, default in defaults.items():
            if args.loss_type == loss_type and getattr(args, name) is None:
                setattr(args, name, default)
            if args.loss_type != loss_type and getattr(args, name) is not None:
                raise InputError(
                    f"{name}: belongs to loss_type {loss_type}; {args.loss_type} goes without it"
                )


def rows_of_loss(args: FinetunePreferenceArguments, pairs: Any, tokenizer: Any) -> Any:
    """The tokens of each split: a row for each pair, of kto one for each answer. TRL's trainers
    would take what some tokenizers put behind a text.
    """
    from datasets import DatasetDict

    from hfscale.tasks.preferences import kto_rows, pair_ids

    if args.loss_type != "kto":
        return pairs.map(partial(pair_ids, tokenizer=tokenizer))
    return DatasetDict({name: kto_rows(split, tokenizer) for name, split in pairs.items()})


def measured_at_start(
    args: FinetunePreferenceArguments, model: Any, held_out: Any, device: Any
) -> dict[str, Any]:
    """What the model makes of the held-out pairs before it is trained; nothing where there is a
    reference, which tells it at the end.
    """
    from hfscale.tasks.preference_metrics import preference_metrics

    if args.loss_type not in WITHOUT_REFERENCE:
        return {}
    if not args.load_in_4bit:  # whose weights are there already
        model.to(device)
    metrics = preference_metrics(model, None, held_out, beta=args.beta)
    return {f"before_{name}": metrics[name] for name in metrics if "pair_accuracy" in name}


def measured_at_end(
    args: FinetunePreferenceArguments,
    model: Any,
    load_reference: Callable[[], Any],
    tokenizer: Any,
    held_out: Any,
    rows: Any,
) -> dict[str, Any]:
    """What the training made of the held-out pairs, or answers, whose tokens are `rows`."""
    from hfscale.tasks.preference_metrics import label_metrics, preference_metrics
    from hfscale.tasks.preferences import pair_ids

    if "label" in held_out.column_names:
        return label_metrics(model, rows, beta=args.beta)
    # Loaded anew: the trainer may have spread the first over ranks.
    has_reference = args.loss_type not in WITHOUT_REFERENCE
    reference = load_reference().to(model.device) if has_reference else None
    ids = held_out.map(partial(pair_ids, tokenizer=tokenizer))
    return preference_metrics(model, reference, ids, beta=args.beta)


def make_trainer(
    args: FinetunePreferenceArguments,
    training_args: Any,
    model: Any,
    load_reference: Callable[[], Any],
    tokenizer: Any,
    pairs: Any,
    rows: Any,
) -> Any:
    """TRL's of DPO, or that of the losses for which its trainers are not exact.

    Args:
        pairs: the text of each split.
        rows: the same in tokens.
    """
    import torch

    from hfscale.tasks.preference_losses import LOSSES, PreferenceTrainer
    from hfscale.tasks.preference_metrics import with_reference

    if args.loss_type not in LOSSES:
        from trl import DPOTrainer

        trainer = DPOTrainer(
            model=model,
            ref_model=load_reference(),
            args=training_args,
            train_dataset=pairs["train"],
            eval_dataset=pairs["validation"],
            processing_class=tokenizer,
        )
        trainer.train_dataset = rows["train"]
        trainer.eval_dataset = rows["validation"]
        return trainer
    if args.loss_type == "kto":
        device = training_args.device
        # Once for all steps. In the precision of the training, or rounding would look like a gain.
        with torch.autocast(device.type, torch.bfloat16, enabled=training_args.bf16):
            rows = with_reference(rows, load_reference().to(device))
    settings = {name: getattr(args, name) for name in OWN_SETTINGS.get(args.loss_type, ())}
    return PreferenceTrainer(
        model=model,
        args=training_args,
        loss_type=args.loss_type,
        settings={"beta": args.beta, **settings},
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
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
    """Print what the held-out answers tell, and what their intervals cannot show."""
    from hfscale.metrics.intervals import by_note, interval_notes
    from hfscale.report.tables import cell
    from hfscale.training.steps import show_place

    if "eval_pair_accuracy" in metrics:
        before = cell(metrics, "before_eval_pair_accuracy")
        print(f"held-out pair accuracy: {before} before, {cell(metrics, 'eval_pair_accuracy')}")
    for name in ("accuracy", "margin"):
        if f"eval_reward_{name}" in metrics:
            print(f"held-out reward {name}: {cell(metrics, f'eval_reward_{name}')}")
    for note, about in by_note(interval_notes(metrics)).items():
        print(f"{about}: {note}")
    show_place(output_dir)


if __name__ == "__main__":
    run(main)
