"""Train a tokenizer on any text and compare it with others on text it has not seen: bytes per
token, tokens per word.

hfscale train_tokenizer --source "books/*.txt" --vocab_size 8192 --compare gpt2 char --output_dir
runs/tokenizer hfscale pretrain --config tiny_cpu --source "books/*.txt" --tokenizer runs/tokenizer
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from hfscale.arguments import RemoteCodeArguments, SplitArguments
from hfscale.config import parse_args
from hfscale.folders import (
    TOKENIZER_REPORT,
    TRAINED_TOKENIZER_FILES,
    check_output_folder,
    whole_folder,
    write_atomically,
)
from hfscale.process import run


@dataclass
class TrainTokenizerArguments(SplitArguments, RemoteCodeArguments):
    seed: int = field(
        default=42, metadata={"help": "of the split; pretrain's default, so both hold out the same"}
    )
    algorithm: Literal["bpe", "unigram"] = field(
        default="bpe", metadata={"help": "both over bytes"}
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
        metadata={
            "help": "others for the report: train:<vocab size>, unigram:<vocab size>, char, "
            "folders or Hub ids"
        },
    )
    output_dir: str = field(
        default="runs/tokenizer", metadata={"help": "folder of the tokenizer and its report"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the tokenizer in output_dir"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(TrainTokenizerArguments, argv, recipe=__file__)
    check_output_folder(
        args.output_dir,
        overwrite=args.overwrite,
        last_file=TOKENIZER_REPORT,
        written=TRAINED_TOKENIZER_FILES,
    )

    from hfscale.data.sources import load_splits, text_fingerprint
    from hfscale.data.tokenizer import (
        check_vocab_size,
        load_tokenizer,
        measure_tokenizer,
        train_byte_level,
    )
    from hfscale.report.tables import show_table

    check_vocab_size(
        f"vocab_size: got {args.vocab_size}, expected", args.vocab_size, args.extra_special_tokens
    )
    documents = load_splits(args, seed=args.seed)
    others = [
        (spec, load_tokenizer(spec, documents["train"], trust_remote_code=args.trust_remote_code))
        for spec in args.compare
    ]
    tokenizer = train_byte_level(
        documents["train"], args.algorithm, args.vocab_size, args.extra_special_tokens
    )
    rows = [
        {"name": name, **measure_tokenizer(each, documents["validation"])}
        for name, each in [(args.output_dir, tokenizer), *others]
    ]
    report = {
        "schema_version": 1,
        "recipe": "train_tokenizer",
        "config": asdict(args),
        "special_tokens": dict(
            zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        ),
        "fingerprint": {name: text_fingerprint(part) for name, part in documents.items()},
        "tokenizers": rows,
    }
    with whole_folder(
        args.output_dir,
        overwrite=args.overwrite,
        last_file=TOKENIZER_REPORT,
        written=TRAINED_TOKENIZER_FILES,
    ) as folder:
        tokenizer.save_pretrained(folder)
        write_atomically(
            folder / TOKENIZER_REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        )
    show_table(
        ("on held-out text", "tokens", "bytes/token", "tokens/word", "round-trips"),
        [
            (
                row["name"],
                f"{row['vocab_size']:,}",
                f"{row['bytes_per_token']:.3f}",
                f"{row['tokens_per_word']:.3f}",
                f"{row['round_trip_share']:.4%}",
            )
            for row in rows
        ],
    )
    print(f"tokenizer and {TOKENIZER_REPORT}: {args.output_dir}")


if __name__ == "__main__":
    run(main)
