"""Train a tokenizer on any text and compare it with others on text it has not seen: bytes per token, tokens per word.

    hfscale train_tokenizer --source "books/*.txt" --vocab_size 8192 --compare gpt2 char --output_dir runs/tokenizer
    hfscale pretrain --config tiny_cpu --source "books/*.txt" --tokenizer runs/tokenizer
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hfscale.config import InputError, SourceArguments, parse_args, run, write_text

REPORT = "tokenizer_report.json"


@dataclass
class TrainTokenizerArguments(SourceArguments):
    split_by: Literal["document", "position"] = field(default="document", metadata={"help": "as in pretrain"})
    validation_fraction: float = field(default=0.05, metadata={"help": "share of documents, or of characters"})
    validation_source: list[str] | None = field(default=None, metadata={"help": "held-out text of its own"})
    seed: int = field(default=42, metadata={"help": "of the split; pretrain's default, so both hold out the same"})
    algorithm: Literal["bpe", "unigram"] = field(default="bpe", metadata={"help": "both over bytes"})
    vocab_size: int = field(default=8192, metadata={"help": "at most, with 256 bytes and the special tokens"})
    extra_special_tokens: list[str] = field(default_factory=lambda: ["<|im_start|>", "<|im_end|>"], metadata={
        "help": "never split, beside <|endoftext|> and <|pad|>; default: begin and end of a chat turn"})
    compare: list[str] = field(default_factory=list, metadata={
        "help": "others for the report: train:<vocab size>, unigram:<vocab size>, char, folders or Hub ids"})
    output_dir: str = field(default="runs/tokenizer", metadata={"help": "folder of the tokenizer and its report"})
    overwrite: bool = field(default=False, metadata={"help": "replace the tokenizer in output_dir"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(TrainTokenizerArguments, argv, recipe=__file__)
    output_dir = Path(args.output_dir).absolute()
    if output_dir.exists() and not (args.overwrite and (output_dir / REPORT).is_file()):
        raise InputError(f"output_dir {args.output_dir}: exists; name another, or --overwrite one of this recipe")
    above = next(path for path in output_dir.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"output_dir {args.output_dir}: {above} is not a folder that can be written to")

    from rich import print as show
    from rich.table import Column, Table

    from hfscale.data.corpus import load_splits, text_fingerprint
    from hfscale.data.tokenizer import check_vocab_size, load_tokenizer, measure_tokenizer, train_byte_level

    check_vocab_size(f"vocab_size: got {args.vocab_size}, expected", args.vocab_size, args.extra_special_tokens)
    documents = load_splits(args, seed=args.seed)
    others = [(spec, load_tokenizer(spec, documents["train"])) for spec in args.compare]
    tokenizer = train_byte_level(documents["train"], args.algorithm, args.vocab_size, args.extra_special_tokens)
    rows = [{"name": name, **measure_tokenizer(each, documents["validation"])} for name, each in
            [(args.output_dir, tokenizer), *others]]
    report = {"schema_version": 1, "recipe": "train_tokenizer", "config": asdict(args),
              "special_tokens": dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)),
              "fingerprint": {name: text_fingerprint(part) for name, part in documents.items()}, "tokenizers": rows}
    part = output_dir.with_name(f".{output_dir.name}.part")  # renamed at the end: the folder is whole or absent
    try:
        tokenizer.save_pretrained(part)
        write_text(part / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        if output_dir.exists():
            shutil.rmtree(output_dir)
        os.replace(part, output_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    table = Table(Column("on held-out text", overflow="fold"), "tokens", "bytes/token", "tokens/word", "round-trips")
    for row in rows:
        table.add_row(row["name"], f"{row['vocab_size']:,}", f"{row['bytes_per_token']:.3f}",
                      f"{row['tokens_per_word']:.3f}", f"{row['round_trip_share']:.4%}")
    show(table)
    print(f"tokenizer and {REPORT}: {args.output_dir}")


if __name__ == "__main__":
    run(main)
