"""Take a model anywhere: adapters merged, as safetensors, GGUF or ONNX, read back, proven equal.

hfscale export --model runs/pretrain-tiny --to gguf --outtype q8_0 --output_dir exports/tiny
hfscale export --model runs/pretrain-tiny --to onnx --outtype int8 --output_dir exports/tiny-onnx
hfscale export --model runs/speeches --to safetensors          (an adapter becomes a plain model)
hfscale export --merge runs/small/checkpoint-350 runs/small/checkpoint-400       (their mean)
"""

import math
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
    model: str | None = field(
        default=None,
        metadata={
            "help": "folder of a saved model or adapter, or Hub id; default: runs/quickstart"
        },
    )
    merge: list[str] | None = field(
        default=None,
        metadata={
            "help": "in place of --model: folders of two or more models alike, whose weights are "
            "averaged, or of LoRA adapters on one base model"
        },
    )
    weights: list[float] | None = field(
        default=None,
        metadata={"help": "of each folder to merge; divided by their sum; default: all alike"},
    )
    combination_type: (
        Literal[
            "cat",
            "svd",
            "linear",
            "ties",
            "ties_svd",
            "dare_linear",
            "dare_ties",
            "dare_linear_svd",
            "dare_ties_svd",
            "magnitude_prune",
            "magnitude_prune_svd",
        ]
        | None
    ) = field(
        default=None,
        metadata={
            "help": "how adapters are merged, by peft's name; default: cat, the exact mean of what "
            "they add"
        },
    )
    density: float | None = field(
        default=None,
        metadata={
            "help": "of ties, dare and magnitude_prune: the share of an adapter's values that is "
            "kept",
            "min": 0,
            "max": 1,
        },
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
    name = settle_model(args)
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
    from hfscale.export.merging import load_merged
    from hfscale.export.runners import UNLIMITED_CONTEXT, TorchRunner
    from hfscale.models import check_models, context_limit, count_parameters, load_model

    # The model, an adapter merged into it, and the text to compare on.
    chosen = check_format(args.to, args.outtype)
    check_models(args.merge or [name], trust_remote_code=args.trust_remote_code)
    tokenizer = load_model_tokenizer(name, args.tokenizer, trust_remote_code=args.trust_remote_code)
    if args.merge:
        model = load_merged(
            args.merge, args.weights, args.combination_type, args.density, **loading(args)
        )
    else:
        model = load_model(name, dtype=torch.float32, **loading(args))
    model = merge_adapter(model)
    context = context_limit(model) or UNLIMITED_CONTEXT
    texts = texts_to_compare(args, name, tokenizer, context)
    chosen.check(model, tokenizer, args.outtype)
    tolerance = chosen_tolerance(args.outtype, args.tolerance, args.perplexity_tolerance)

    # Written, read back and compared; the folder is gone again if it is another model.
    with whole_folder(args.output_dir, **place) as folder:
        copy_task(name, folder)
        chosen.write(folder, model, tokenizer, args.outtype, Path(name).name)
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
                "name": name,
                "merged_from": [*zip(args.merge or (), args.weights or (), strict=True)],
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


def settle_model(args: ExportArguments) -> str:
    """The folder that tokenizer and text are of: the model's, or the first that is merged. Sets
    what was left open of the merge.

    Raises InputError: arguments that do not belong together.
    """
    if not args.merge:
        for name in ("weights", "combination_type", "density"):
            if getattr(args, name) is not None:
                raise InputError(f"{name}: belongs to --merge, which is not given")
        args.model = args.model or "runs/quickstart"
        return args.model
    if args.model is not None:
        raise InputError(f"model {args.model}: --merge names all folders; give it there")
    if len(args.merge) < 2:
        raise InputError(f"merge {args.merge[0]}: one folder has nothing to merge with; give more")
    for folder in args.merge:
        if not Path(folder).is_dir():
            raise InputError(f"merge {folder}: no such folder; give those of saved models")
    args.weights = settled_weights(args.merge, args.weights)
    are_adapters = [Path(folder, "adapter_config.json").is_file() for folder in args.merge]
    if len(set(are_adapters)) > 1:
        raise InputError(
            f"merge {args.merge[are_adapters.index(True)]}: is an adapter, and "
            f"{args.merge[are_adapters.index(False)]} is not; export it to safetensors first"
        )
    settle_combination(args, are_adapters[0])
    return args.merge[0]


def settled_weights(folders: list[str], weights: list[float] | None) -> list[float]:
    """Weights with the sum 1."""
    weights = weights or [1.0] * len(folders)
    total = math.fsum(weights)
    if len(weights) != len(folders):
        raise InputError(f"weights: got {len(weights)}, expected one for each of {len(folders)}")
    if not math.isfinite(total) or abs(total) < 1e-9:
        raise InputError(f"weights: their sum is {total:g}, and a mean divides by it; give others")
    return [weight / total for weight in weights]


def settle_combination(args: ExportArguments, are_adapters: bool) -> None:
    """Of adapters how they are merged; raises InputError for what does not belong to it."""
    if not are_adapters:
        for name in ("combination_type", "density"):
            if getattr(args, name) is not None:
                raise InputError(f"{name}: is of adapters; of models, the weights are averaged")
        return
    args.combination_type = args.combination_type or "cat"
    drops = args.combination_type.startswith(("ties", "dare", "magnitude"))
    if drops and not args.density:
        raise InputError(
            f"density: combination_type {args.combination_type} needs one above 0, up to 1"
        )
    if not drops and args.density is not None:
        raise InputError(f"density: combination_type {args.combination_type} goes without it")


def texts_to_compare(
    args: ExportArguments, name: str, tokenizer: Any, max_length: int
) -> list[str]:
    """Documents of the source, or what the model's run held out. Raises InputError: none."""
    from hfscale.data.sources import read_source
    from hfscale.export.held_out import held_out_texts

    if args.source:
        texts = read_source(args, args.source)["text"]
    else:
        folder = Path(name)
        if not (folder / "run.json").is_file() and (folder.parent / "run.json").is_file():
            folder = folder.parent  # the run of a checkpoint
        texts = held_out_texts(
            str(folder),
            tokenizer,
            max_length=max_length,
            trust_remote_code=args.trust_remote_code,
        )
    if not len(texts):
        raise InputError(f"source {args.source}: holds no document to compare on; give other text")
    return texts[: args.documents]


if __name__ == "__main__":
    run(main)
