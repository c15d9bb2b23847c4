"""What a trained model knows by heart: copies of training text in its samples, planted canaries,
the loss gap.

hfscale memorization --model runs/pretrain-tiny
hfscale memorization --model runs/a --canaries "my code is 4711" --canary_pattern "my code is ####"
"""

import time
from dataclasses import dataclass, field
from typing import Any

from hfscale.arguments import LoadArguments, loading
from hfscale.config import parse_args
from hfscale.folders import check_output_file, describe_run, write_json
from hfscale.process import InputError, run


@dataclass
class MemorizationArguments(LoadArguments):
    model: str = field(
        default="runs/quickstart", metadata={"help": "run folder; its run.json names its text"}
    )
    num_samples: int = field(
        default=20,
        metadata={
            "help": "texts to generate and look for in the training text",
            "min": 1,
            "max": 100_000,
        },
    )
    max_new_tokens: int = field(default=128, metadata={"help": "length of each", "min": 1})
    documents: int = field(
        default=100,
        metadata={"help": "training and held-out documents to compare the loss on", "min": 1},
    )
    canaries: list[str] = field(
        default_factory=list, metadata={"help": "texts that were planted in training text"}
    )
    canary_pattern: str | None = field(
        default=None, metadata={"help": "their form, # for each random digit"}
    )
    candidates: int = field(
        default=1000, metadata={"help": "other texts of that form to rank a canary among", "min": 1}
    )
    batch_size: int = field(
        default=8, metadata={"help": "texts at a time; changes the speed only", "min": 1}
    )
    seed: int = field(default=0, metadata={"help": "of samples, candidates and bootstrap"})
    output_dir: str = field(
        default="runs/memorization", metadata={"help": "folder for memorization.json"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace a memorization.json that exists"}
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(MemorizationArguments, argv, recipe=__file__)
    started = time.perf_counter()
    output_file = check_output_file(args.output_dir, "memorization.json", overwrite=args.overwrite)
    if args.canaries and not args.canary_pattern:
        raise InputError(
            "canary_pattern: missing; give the canaries' form, such as 'my code is ####'"
        )

    from datasets import Dataset

    from hfscale.data.splits import load_run_splits
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.texts import generate_texts
    from hfscale.metrics.perplexity import score_documents
    from hfscale.models import check_models, load_model
    from hfscale.probes.memorization import (
        check_canary,
        copy_records,
        exposure_bits,
        loss_gap,
        show_memorization,
    )

    # The model, and the text that it was trained on.
    for canary in args.canaries:
        check_canary(canary, args.canary_pattern)
    check_models([args.model], trust_remote_code=args.trust_remote_code)
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    splits = load_run_splits(args.model, trust_remote_code=args.trust_remote_code)
    if not isinstance(splits["train"], Dataset):
        raise InputError(
            f"model {args.model}: was trained on a stream, whose text cannot be searched"
        )
    model = load_model(args.model, dtype="float32", **loading(args))

    # Copies of training text in samples, and in unseen text of the same length: phrases that
    # everybody writes are shared by chance.
    samples = generate_texts(
        model,
        tokenizer,
        [""],
        num_return_sequences=args.num_samples,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        progress=True,
    )[0]
    unseen = [
        text[: len(sample)]
        for text, sample in zip(splits["validation"]["text"], samples, strict=False)
    ]
    training_text = "\0".join(splits["train"]["text"])
    copies = copy_records({"samples": samples, "held-out text": unseen}, training_text)

    # The loss on training documents, and on documents that were held out.
    sums = {}
    for name in ("train", "validation"):
        shuffled = splits[name].shuffle(seed=args.seed, keep_in_memory=True)
        texts = shuffled.take(min(args.documents, len(shuffled)))["text"][:]
        scores = score_documents(model, tokenizer, texts, batch_size=args.batch_size, progress=True)
        sums[name] = scores.sums

    # How much likelier planted texts are than others of their form.
    exposures = {
        canary: exposure_bits(
            model,
            tokenizer,
            canary,
            args.canary_pattern,
            seed=args.seed,
            candidates=args.candidates,
        )
        for canary in args.canaries
    }

    # The record.
    record = {
        **describe_run(__file__, args, argv, time.perf_counter() - started),
        "loss": loss_gap(sums["train"], sums["validation"], seed=args.seed),
        **copies,
        "canaries": exposures,
    }
    output_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(output_file, record)
    show_memorization(record)
    print(f"\nall numbers: {output_file}")
    return record


if __name__ == "__main__":
    run(main)
