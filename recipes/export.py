"""Take a model anywhere: adapters merged, as safetensors, GGUF or ONNX, read back, proven equal.

hfscale export --model runs/pretrain-tiny --to gguf --outtype q8_0 --output_dir exports/tiny
hfscale export --model runs/pretrain-tiny --to onnx --outtype int8 --output_dir exports/tiny-onnx
hfscale export --model runs/speeches --to safetensors          (an adapter becomes a plain model)
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfscale.arguments import LoadArguments, SourceArguments, loading
from hfscale.config import parse_args
from hfscale.folders import (
    EXPORT_FILES,
    EXPORT_RECORD,
    check_output_folder,
    describe_run,
    write_json,
)
from hfscale.process import InputError, is_main_rank, run
from hfscale.whole_folder import whole_folder


@dataclass
class ExportArguments(SourceArguments, LoadArguments):
    model: str = field(
        default="runs/quickstart",
        metadata={"help": "folder of a saved model or adapter, or Hub id"},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "folder or Hub id; default: that of the model"}
    )
    to: Literal["safetensors", "gguf", "onnx", "torchao", "html"] = field(
        default="safetensors",
        metadata={
            "help": "safetensors: for transformers, vLLM; gguf: for llama.cpp, Ollama; onnx: for "
            "onnxruntime, optimum, transformers.js; torchao: for transformers, with weights of 8 "
            "bits; html: a page that writes text in a browser"
        },
    )
    outtype: Literal["f32", "f16", "q8_0", "int8"] = field(
        default="f32",
        metadata={"help": "numbers of the matrices; q8_0 is GGUF's, int8 ONNX's and torchao's"},
    )
    tolerance: float | None = field(
        default=None,
        metadata={
            "help": "largest difference between two logits of the original and the export, above "
            "which nothing is kept; default: 1e-4 of f32, 1e-2 of f16, any of q8_0 and int8",
            "min": 0,
        },
    )
    perplexity_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "largest change of the perplexity as a share of it, above which nothing is "
            "kept; default: 0.01 of q8_0, 0.02 of int8, any of f32 and f16",
            "min": 0,
        },
    )
    source: list[str] | None = field(  # type: ignore[assignment]  # None: what the run held out
        default=None,
        metadata={
            "help": "text to compare on: embedded:<name>, files, folder, glob, saved data set, Hub "
            "id; default: what the run held out"
        },
    )
    documents: int = field(
        default=1000, metadata={"help": "documents whose tokens are compared", "min": 1}
    )
    scored_documents: int = field(
        default=20, metadata={"help": "documents of which both models read the beginning", "min": 1}
    )
    max_new_tokens: int = field(
        default=32, metadata={"help": "length of each greedy continuation", "min": 1}
    )
    output_dir: str = field(
        default="runs/export", metadata={"help": "folder for the export and export.json"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace an export that lies in output_dir"}
    )


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args = parse_args(ExportArguments, argv, recipe=__file__)
    started = time.perf_counter()
    if not is_main_rank():  # one file: nothing to share out
        return None
    place = {"overwrite": args.overwrite, "last_file": EXPORT_RECORD, "written": EXPORT_FILES}
    check_output_folder(args.output_dir, **place)

    import torch

    from hfscale.adapters import merge_adapter
    from hfscale.data.tokenizer import load_model_tokenizer
    from hfscale.export.card import write_export_card
    from hfscale.export.certificate import (
        certify,
        check_certificate,
        chosen_tolerance,
        show_certificate,
    )
    from hfscale.export.formats import check_format, copy_task
    from hfscale.export.runners import UNLIMITED_CONTEXT, TorchRunner
    from hfscale.models import check_models, context_limit, count_parameters, load_model

    # The model, an adapter merged into it, and the text to compare on.
    chosen = check_format(args.to, args.outtype)
    check_models([args.model], trust_remote_code=args.trust_remote_code)
    tokenizer = load_model_tokenizer(
        args.model, args.tokenizer, trust_remote_code=args.trust_remote_code
    )
    model = merge_adapter(load_model(args.model, dtype=torch.float32, **loading(args)))
    context = context_limit(model) or UNLIMITED_CONTEXT
    texts = texts_to_compare(args, tokenizer, context)
    chosen.check(model, tokenizer, args.outtype)
    tolerance = chosen_tolerance(args.outtype, args.tolerance, args.perplexity_tolerance)

    # Written, read back and compared; the folder is gone again if it is another model.
    with whole_folder(args.output_dir, **place) as folder:
        copy_task(args.model, folder)
        chosen.write(folder, model, tokenizer, args.outtype, Path(args.model).name)
        certificate = certify(
            (TorchRunner(model), tokenizer),
            chosen.read(folder, args.outtype),
            texts,
            context=context,
            scored_documents=args.scored_documents,
            max_new_tokens=args.max_new_tokens,
        )
        check_certificate(certificate, tolerance)
        record = {
            **describe_run(__file__, args, argv, time.perf_counter() - started),
            "model": {
                "name": args.model,
                "architecture": type(model).__name__,
                **count_parameters(model),
            },
            "to": args.to,
            "outtype": args.outtype,
            "tolerance": tolerance._asdict(),
            **certificate,
        }
        write_json(folder / EXPORT_RECORD, record)
        use = chosen.use.format(name=Path(args.output_dir).name, outtype=args.outtype)
        write_export_card(folder, record, use)
    show_certificate(record)
    print(f"\nexport and all numbers: {args.output_dir}")
    return record


def texts_to_compare(args: ExportArguments, tokenizer: Any, max_length: int) -> list[str]:
    """Documents of the source, or what the model's run held out. Raises InputError: none."""
    from hfscale.data.sources import read_source
    from hfscale.export.held_out import held_out_texts

    if args.source:
        texts = read_source(args, args.source)["text"]
    else:
        texts = held_out_texts(
            args.model,
            tokenizer,
            max_length=max_length,
            trust_remote_code=args.trust_remote_code,
        )
    if not len(texts):
        raise InputError(f"source {args.source}: holds no document to compare on; give other text")
    return texts[: args.documents]


if __name__ == "__main__":
    run(main)
