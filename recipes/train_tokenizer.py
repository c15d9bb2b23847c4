"""Train a tokenizer on any text and compare it with others on text it has not seen: bytes per
token, tokens per word.

    hfscale train_tokenizer --source "books/*.txt" --vocab_size 8192 --output_dir runs/tokenizer
    hfscale train_tokenizer --source "books/*.txt" --compare gpt2 char --output_dir runs/compared
    hfscale pretrain --config tiny_cpu --source "books/*.txt" --tokenizer runs/tokenizer
"""

import time
from dataclasses import dataclass, field
from typing import Any

from hfscale.arguments import RemoteCodeArguments, SplitArguments
from hfscale.config import parse_args
from hfscale.folders import (
    TOKENIZER_REPORT,
    TRAINED_TOKENIZER_FILES,
    check_output_folder,
    describe_run,
    write_json,
)
from hfscale.process import run
from hfscale.whole_folder import whole_folder


@dataclass
class TrainTokenizerArguments(SplitArguments, RemoteCodeArguments):
    seed: int = field(
        default=42, metadata={"help": "of the split; pretrain's default, so both hold out the same"}
    )
    vocab_size: int = field(
        default=8192, metadata={"help": "at most, with 256 bytes and the special tokens"}
    )
    extra_special_tokens: list[str] = field(
        default_factory=lambda: ["<|im_start|>", "<|im_end|>"],
        metadata={
            "help": "never split, beside <|endoftext|> and <|pad|>; default: begin and end of a "
            "chat turn"
        },
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "others for the report: train:<vocab size>, char, folders or Hub ids"},
    )
    output_dir: str = field(
        default="runs/tokenizer", metadata={"help": "folder of the tokenizer and its report"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the tokenizer in output_dir"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(TrainTokenizerArguments, argv, recipe=__file__)
    started = time.perf_counter()
    check_output_folder(
        args.output_dir,
        overwrite=args.overwrite,
        last_file=TOKENIZER_REPORT,
        written=TRAINED_TOKENIZER_FILES,
    )

    from hfscale.data.fingerprints import text_fingerprint
    from hfscale.data.splits import load_splits
    from hfscale.data.tokenizer import (
        check_vocab_size,
        load_tokenizer,
        measure_tokenizer,
        train_bpe,
    )

    # Data: trained on one part, compared on the other.
    check_vocab_size(
        f"vocab_size: got {args.vocab_size}, expected", args.vocab_size, args.extra_special_tokens
    )
    documents = load_splits(args, seed=args.seed)

    # Tokenizers: the others first, so that one that cannot be loaded shows before the training.
    others = {
        name: load_tokenizer(name, documents["train"], trust_remote_code=args.trust_remote_code)
        for name in args.compare
    }
    tokenizer = train_bpe(documents["train"], args.vocab_size, args.extra_special_tokens)

    # Evaluation.
    measures = [
        {"name": name, **measure_tokenizer(compared, documents["validation"])}
        for name, compared in [(args.output_dir, tokenizer), *others.items()]
    ]

    # What is written: the tokenizer as transformers saves it, and the report.
    with whole_folder(
        args.output_dir,
        overwrite=args.overwrite,
        last_file=TOKENIZER_REPORT,
        written=TRAINED_TOKENIZER_FILES,
    ) as folder:
        tokenizer.save_pretrained(folder)
        special_tokens = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        report = describe_run(__file__, args, argv, time.perf_counter() - started) | {
            "special_tokens": dict(special_tokens),
            "fingerprint": {name: text_fingerprint(part) for name, part in documents.items()},
            "tokenizers": measures,
        }
        write_json(folder / TOKENIZER_REPORT, report)
    show_tokenizers(measures)
    print(f"tokenizer and {TOKENIZER_REPORT}: {args.output_dir}")
    return report


def show_tokenizers(measures: list[dict]) -> None:
    """Print a table of `measure_tokenizer`, each with its `name`."""
    from hfscale.report.tables import show_table

    rows = [
        (
            row["name"],
            f"{row['vocab_size']:,}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['tokens_per_word']:.3f}",
            f"{row['round_trip_share']:.4%}",
        )
        for row in measures
    ]
    show_table(("on held-out text", "tokens", "bytes/token", "tokens/word", "round-trips"), rows)


if __name__ == "__main__":
    run(main)
