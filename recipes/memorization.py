"""What a trained model knows by heart: copies of training text in its samples, planted canaries,
the loss gap.

hfscale memorization --model runs/pretrain-tiny
hfscale memorization --model runs/a --canaries "my code is 4711" --canary_pattern "my code is ####"
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hfscale.arguments import RemoteCodeArguments
from hfscale.config import parse_args
from hfscale.folders import check_writable, write_atomically
from hfscale.process import InputError, run


@dataclass
class MemorizationArguments(RemoteCodeArguments):
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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(MemorizationArguments, argv, recipe=__file__)
    output_file = Path(args.output_dir, "memorization.json")
    check_writable(f"output_dir {args.output_dir}", output_file.parent, output_file.name)
    if output_file.exists() and not args.overwrite:
        raise InputError(
            f"output_dir {args.output_dir}: holds {output_file.name}; name another or pass "
            "--overwrite"
        )
    check_writable(f"output_dir {args.output_dir}", output_file.parent)
    if args.canaries and not args.canary_pattern:
        raise InputError(
            "canary_pattern: missing; give the canaries' form, such as 'my code is ####'"
        )

    from datasets import Dataset

    from hfscale.data.splits import load_run_splits
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.texts import generate_texts
    from hfscale.metrics.intervals import by_note, interval_notes
    from hfscale.metrics.perplexity import score_documents
    from hfscale.models import check_models, load_model
    from hfscale.probes.memorization import (
        check_canary,
        count_words,
        exposure_bits,
        longest_copy,
        loss_gap,
    )
    from hfscale.report.tables import cell, show_table

    for canary in args.canaries:
        check_canary(canary, args.canary_pattern)
    check_models([args.model], trust_remote_code=args.trust_remote_code)
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    documents = load_run_splits(args.model, trust_remote_code=args.trust_remote_code)
    if not isinstance(documents["train"], Dataset):
        raise InputError(
            f"model {args.model}: was trained on a stream, whose text cannot be searched"
        )
    model = load_model(args.model, dtype="float32", trust_remote_code=args.trust_remote_code)
    training_text = "\0".join(documents["train"]["text"])
    samples = generate_texts(
        model,
        tokenizer,
        [""],
        num_return_sequences=args.num_samples,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        progress=True,
    )[0]
    # What unseen text of the same length shares with the training text by chance: phrases that
    # everybody writes.
    unseen = [
        text[: len(sample)]
        for text, sample in zip(documents["validation"]["text"], samples, strict=False)
    ]
    copies = {
        name: [longest_copy(text, training_text) for text in texts]
        for name, texts in (("samples", samples), ("held-out text", unseen))
    }
    parts = [
        part.shuffle(seed=args.seed).take(min(args.documents, len(part)))["text"][:]
        for part in (documents["train"], documents["validation"])
    ]
    sums = [
        score_documents(model, tokenizer, texts, batch_size=args.batch_size, progress=True).sums
        for texts in parts
    ]
    record = {
        "schema_version": 1,
        "recipe": "memorization",
        "config": asdict(args),
        "loss": loss_gap(*sums, seed=args.seed),
        "longest_copy_words": {
            name: list(map(count_words, found)) for name, found in copies.items()
        },
        "longest_copy": {name: max(found, key=count_words) for name, found in copies.items()},
        "canaries": {
            canary: exposure_bits(
                model,
                tokenizer,
                canary,
                args.canary_pattern,
                seed=args.seed,
                candidates=args.candidates,
            )
            for canary in args.canaries
        },
    }
    output_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output_file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    loss = record["loss"]
    show_table(
        ("what", "value"),
        [
            *(
                (f"longest copy in {name}", f"{count_words(copy)} words: {copy[:300]}")
                for name, copy in record["longest_copy"].items()
            ),
            *((name, cell(loss, name)) for name in ("train_loss", "validation_loss", "gap")),
            *(
                (
                    canary,
                    f"exposure {found['exposure_bits']:.1f} of at most "
                    f"{found['exposure_limit_bits']:.1f} bits, rank {found['rank']:,} of "
                    f"{found['candidates']:,}",
                )
                for canary, found in record["canaries"].items()
            ),
            ("written to", str(output_file)),
        ],
    )
    for note, about in by_note(interval_notes(loss)).items():
        print(f"{about}: {note}")


if __name__ == "__main__":
    run(main)
