"""Tune a model on pairs of a better and a worse answer (DPO, over TRL's trainer): all weights or a
LoRA adapter.

hfscale finetune_preference --config tiny_cpu hfscale finetune_preference --model runs/task-dialogue
--source "pairs/*.jsonl" --lora_r 16 --beta 0.1
"""

import importlib.util
import math
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

from hfscale.arguments import AdapterArguments
from hfscale.config import parse_args
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
            "context, up to 1024"
        },
    )
    beta: float = field(
        default=0.1, metadata={"help": "above 0; smaller: further from the model at the start"}
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


def check_loss(args: FinetunePreferenceArguments) -> None:
    """Raise InputError for what the loss would take and then learn nothing, or something else,
    from.
    """
    if not 0 < args.beta < math.inf:
        raise InputError(
            f"beta: got {args.beta}, expected a number above 0; at 0 no pair teaches anything"
        )
    if args.loss_type != "robust" and args.label_smoothing:
        raise InputError(
            f"label_smoothing: belongs to loss_type robust; {args.loss_type} goes without it"
        )
    if args.loss_type == "robust" and not 0 < args.label_smoothing < 0.5:
        raise InputError(
            f"label_smoothing: got {args.label_smoothing}, expected above 0 and below 0.5 with "
            "loss_type robust (at 0 it is sigmoid)"
        )
    if "label_smoothing_factor" in args.training:
        raise InputError(
            "label_smoothing_factor: pairs have no labels to smooth; take loss_type robust with "
            "label_smoothing"
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(FinetunePreferenceArguments, argv, recipe=__file__)
    if importlib.util.find_spec("trl") is None:
        raise InputError('finetune_preference: TRL is not installed: pip install "hfscale[trl]"')
    check_loss(args)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made

    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    from hfscale.adapters import load_for_training, merge_saved_adapter
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.folders import check_output_dir, clear_output_dir
    from hfscale.generation.texts import generate_texts
    from hfscale.metrics.intervals import by_note, interval_notes
    from hfscale.models import context_limit, load_model, load_saved_model
    from hfscale.report.tables import cell
    from hfscale.tasks.preference_metrics import preference_metrics
    from hfscale.tasks.preferences import load_preferences, pair_ids
    from hfscale.training.checkpoints import CheckpointManifest, StopOnSignal, newest_checkpoint
    from hfscale.training.record import write_run
    from hfscale.training.training_args import training_arguments

    # TRL's own defaults are others: a tenth of these rates, recomputed activations, bf16 where it
    # is slow.
    defaults = {
        "output_dir": "runs/finetune-preference",
        "learning_rate": 1e-4 if args.lora_r else 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": False,
    }
    training_args = training_arguments(
        defaults | args.training,
        width=256,
        cls=DPOConfig,
        beta=args.beta,
        loss_type=[args.loss_type],
        max_length=None,
        label_smoothing=args.label_smoothing,
    )
    check_output_dir(training_args.output_dir, resume=args.resume, overwrite=args.overwrite)
    if args.add_tokens:
        raise InputError(
            "add_tokens: the model to compare with would not know them; add them with finetune "
            "first"
        )

    set_seed(training_args.seed)
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    model = load_for_training(args, tokenizer)
    reference = load_model(args.model, dtype="float32", trust_remote_code=args.trust_remote_code)
    limit = context_limit(model) or 1024
    max_length = min(limit, 1024) if args.max_length is None else args.max_length
    if not 2 <= max_length <= limit:
        raise InputError(
            f"max_length: got {max_length}, expected 2 to the model's context of {limit}"
        )
    pairs, dropped = load_preferences(
        args.source,
        tokenizer,
        seed=training_args.seed,
        max_length=max_length,
        validation_fraction=args.validation_fraction,
    )
    print(
        f"{len(pairs['train'])} pairs to train on, {len(pairs['validation'])} held out, {dropped} "
        "too long"
    )

    may_change = ("training", "resume", "overwrite", "merge")
    fixed_settings = {name: value for name, value in asdict(args).items() if name not in may_change}
    checkpoint = newest_checkpoint(training_args, fixed_settings) if args.resume else None
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=training_args,
        train_dataset=pairs["train"],
        eval_dataset=pairs["validation"],
        processing_class=tokenizer,
        callbacks=[CheckpointManifest(fixed_settings), StopOnSignal()],
    )
    encode = partial(pair_ids, tokenizer=tokenizer)
    trainer.train_dataset, trainer.eval_dataset = (
        pairs["train"].map(encode),
        pairs["validation"].map(encode),
    )
    clear_output_dir(training_args.output_dir, args.overwrite)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {
        name: value for name, value in trainer.evaluate().items() if "/" not in name
    }  # exact ones follow
    trainer.save_model(_internal_call=True)  # pushed, if asked, with its record
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    saved = load_saved_model(training_args.output_dir, trust_remote_code=args.trust_remote_code)
    reference = load_model(args.model, dtype="float32", trust_remote_code=args.trust_remote_code)
    metrics |= preference_metrics(
        saved.to(training_args.device),
        reference.to(training_args.device),
        trainer.eval_dataset,
        beta=args.beta,
    )

    if trainer.is_world_process_zero():
        if args.merge:
            merge_saved_adapter(training_args.output_dir, trust_remote_code=args.trust_remote_code)
        prompts = pairs["validation"]["prompt"][:3]
        texts = generate_texts(saved, tokenizer, prompts, do_sample=False, max_new_tokens=40)
        write_run(
            trainer,
            __file__,
            args,
            argv,
            pairs,
            pairs,
            metrics,
            [prompt + answer for prompt, (answer,) in zip(prompts, texts, strict=True)],
            {"source": [args.source], "dropped": {"too long": dropped}},
        )
        for name in ("accuracy", "margin"):
            print(f"held-out reward {name}: {cell(metrics, f'eval_reward_{name}')}")
        for note, about in by_note(interval_notes(metrics)).items():
            print(f"{about}: {note}")
        print(f"model, tokenizer and run.json: {training_args.output_dir}")


if __name__ == "__main__":
    run(main)
