"""Perplexity, bits per byte and per-word perplexity of any causal language model on any text, with intervals.

    hfscale score --model runs/pretrain-tiny                     (the text that this run held out)
    hfscale score --model gpt2 --source "books/*.txt" --context 1024 --stride 512 --output_dir runs/score-gpt2
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hfscale.config import InputError, SourceArguments, parse_args, run, write_text


@dataclass
class ScoreArguments(SourceArguments):
    model: str = field(default="runs/quickstart", metadata={"help": "folder of a saved model, or a Hub id"})
    source: list[str] | None = field(default=None, metadata={
        "help": "embedded:<name>, file, folder, glob, saved data set, Hub id; default: what the run --model held out"})
    split: str = field(default="train", metadata={"help": "split of a saved or Hub data set"})
    context: int | None = field(default=None, metadata={"help": "tokens read at a time; default: the model's limit"})
    stride: int | None = field(default=None, metadata={
        "help": "tokens that each window after the first one scores; default: half the context"})
    batch_size: int = field(default=8, metadata={"help": "windows at a time; changes the speed, not the numbers"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "weights"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap"})
    output_dir: str = field(default="runs/score", metadata={"help": "folder for scores.json"})
    overwrite: bool = field(default=False, metadata={"help": "replace a scores.json that exists"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(ScoreArguments, argv, recipe=__file__)
    output_file = Path(args.output_dir, "scores.json")
    if output_file.parent.is_file():
        raise InputError(f"--output_dir {args.output_dir}: is a file; name a folder")
    if output_file.exists() and not args.overwrite:
        raise InputError(f"--output_dir {args.output_dir}: holds scores.json; name another or pass --overwrite")

    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from hfscale.data.corpus import load_documents, load_held_out, text_fingerprint
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.evaluation.perplexity import perplexity_metrics, score_documents
    from hfscale.models import count_parameters, load_model
    from hfscale.run_record import versions

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available()))
    model = load_model(args.model, dtype=args.dtype).to(state.device)
    tokenizer = load_pretrained_tokenizer(args.model)
    how = {name: getattr(args, name) for name in ("text_column", "sample_by", "split", "dataset_config_name")}
    documents = load_documents(args.source, **how) if args.source else load_held_out(args.model)
    scores = score_documents(model, tokenizer, documents["text"][:], context=args.context, stride=args.stride,
                             batch_size=args.batch_size, progress=True)
    if state.is_main_process:
        metrics, notes = perplexity_metrics(scores, seed=args.seed)
        settings = {"context": scores.context, "stride": scores.stride, "prefix_token": scores.prefix_token,
                    "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens"}
        record = {"schema_version": 1, "recipe": "score", "config": asdict(args) | settings,
                  "data": {"source": args.source or f"held out by {args.model}",
                           "fingerprint": text_fingerprint(documents)},
                  "model": {"name": args.model, "architecture": type(model).__name__, **count_parameters(model)},
                  "versions": versions(), "metrics": metrics, "notes": notes}
        output_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(output_file, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        show(metrics, settings | {"model": args.model, "written to": output_file} | notes)


def show(metrics: dict, settings: dict) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("metric", Column("value", overflow="fold"), "95 % interval")
    for name in ("perplexity", "bits_per_byte", "word_perplexity"):
        values = [metrics[name] and [metrics[name]], metrics[f"{name}_ci95"]]
        table.add_row(name, *(" to ".join(f"{v:.6g}" for v in value) if value else "none" for value in values))
    counts = {name: f"{metrics[name]:,}" for name in ("tokens", "bytes", "documents")}
    for name, value in (counts | settings).items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    run(main)
