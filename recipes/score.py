"""Score models on a text, on a task or on lm-eval's benchmarks, or saved predictions; several are
compared.

hfscale score --model runs/pretrain-tiny                     (the text that this run held out)
hfscale score --model gpt2 runs/mine --source "books/*.txt" --max_length 1024 --stride 512
hfscale score --model runs/translation --config translation
hfscale score --predictions a.jsonl b.jsonl --metrics bleu chrf
hfscale score --model gpt2 --lm_eval hellaswag,lambada_openai
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hfscale.arguments import RemoteCodeArguments, SourceArguments, TaskArguments
from hfscale.config import parse_args
from hfscale.process import run


@dataclass
class ScoreArguments(TaskArguments, SourceArguments, RemoteCodeArguments):
    model: list[str] = field(
        default_factory=lambda: ["runs/quickstart"],
        metadata={
            "help": "folders of saved models or adapters, or Hub ids; later ones are compared with "
            "the first"
        },
    )
    predictions: list[str] | None = field(
        default=None,
        metadata={
            "help": "instead of models: JSONL files with prediction and reference(s), or one line "
            "per example of a task"
        },
    )
    lm_eval: list[str] | None = field(
        default=None,
        metadata={
            "help": "tasks of lm-eval, or local_multiple_choice, local_perplexity, "
            "local_generation with --lm_eval_data"
        },
    )
    lm_eval_data: str | None = field(
        default=None, metadata={"help": "JSONL file for the local tasks"}
    )
    lm_eval_include: str | None = field(
        default=None, metadata={"help": "folder with lm-eval task files of your own"}
    )
    limit: int | None = field(
        default=None, metadata={"help": "at most this many examples of each lm-eval task", "min": 1}
    )
    validation_examples: int | None = field(
        default=None,
        metadata={
            "help": "at most this many examples of a task, always the same ones; default: all (of "
            "an embedded task 500)",
            "min": 1,
        },
    )
    source: list[str] | None = field(
        default=None,
        metadata={
            "help": "text: embedded:<name>, files, folder, glob, saved data set, Hub id; default: "
            "what the run held out"
        },
    )
    split: str = field(default="train", metadata={"help": "split of a saved or Hub data set"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "folder or Hub id; default: that of the model"}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "tokens read at a time; default: the model's limit, or 1024 if it states none"
        },
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "tokens that each window after the first one scores; default: half the context"
        },
    )
    batch_size: int = field(default=8, metadata={"help": "windows or prompts at a time", "min": 1})
    do_sample: bool = field(
        default=False, metadata={"help": "draw answers; false: the likeliest token each time"}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "of drawn answers", "min": 1e-6, "max": 1e6}
    )
    top_k: int = field(
        default=50, metadata={"help": "draw among this many likeliest tokens; 0: all", "min": 0}
    )
    top_p: float = field(
        default=1.0,
        metadata={
            "help": "draw among the likeliest tokens up to this probability",
            "min": 1e-6,
            "max": 1,
        },
    )
    num_samples: int = field(
        default=1,
        metadata={"help": "answers drawn per example; text metrics take the first", "min": 1},
    )
    pass_at: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "the k of pass@k, up to num_samples"}
    )
    allow_code_execution: bool = field(
        default=False, metadata={"help": "pass_at_k may run what the model wrote"}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "weights"}
    )
    seed: int = field(
        default=0, metadata={"help": "of drawn answers, held-out examples and the bootstrap"}
    )
    output_dir: str = field(
        default="runs/score", metadata={"help": "folder for scores.json and predictions.jsonl"}
    )
    resume: Literal["auto"] | None = field(
        default=None, metadata={"help": "auto: go on where a run was stopped"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the scores in output_dir"})
    dry_run: bool = field(
        default=False, metadata={"help": "show the counts and the first item, then stop"}
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(ScoreArguments, argv, recipe=__file__)

    from hfscale.evaluation.score_args import (
        check_score_args,
    )  # of what follows the only thing that is not heavy

    check_score_args(args)

    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from hfscale.data.tokenizer import load_model_tokenizer
    from hfscale.evaluation.score_data import load_score_data
    from hfscale.evaluation.score_report import preview_scores, show_scores, write_scores
    from hfscale.evaluation.scores import score_file, score_model
    from hfscale.models import check_models, load_model

    names, trusted = [] if args.predictions else args.model, args.trust_remote_code
    check_models(names, trust_remote_code=trusted)
    tokenizers = [
        load_model_tokenizer(name, args.tokenizer, trust_remote_code=trusted) for name in names
    ]
    state = PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available())
    )
    with state.main_process_first():  # the other ranks read its cache
        data = load_score_data(args)
    systems = [score_file(path, data, args) for path in args.predictions or []]
    # All of them first: a model that cannot be loaded shows at once.
    models = [load_model(name, dtype=args.dtype, trust_remote_code=trusted) for name in names]
    if args.dry_run:
        return preview_scores(
            args, data, dict(zip(names, zip(models, tokenizers, strict=True), strict=True))
        )
    for name, model, tokenizer in zip(names, models, tokenizers, strict=True):
        systems.append(score_model(name, model.to(state.device), tokenizer, data, args))
        model.cpu()
    if state.is_main_process:
        record = write_scores(args, argv, data, systems)
        show_scores(record, Path(args.output_dir, "scores.json"))


if __name__ == "__main__":
    run(main)
