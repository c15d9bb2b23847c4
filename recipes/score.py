"""Score models on a text, on a task, on minimal pairs or on lm-eval's benchmarks, or saved
predictions; several are compared.

hfscale score --model runs/pretrain-tiny                     (the text that this run held out)
hfscale score --model gpt2 runs/mine --source "books/*.txt" --max_length 1024 --stride 512
hfscale score --model runs/translation --config translation
hfscale score --model runs/mine --minimal_pairs blimp/data
hfscale score --predictions a.jsonl b.jsonl --metrics bleu chrf
hfscale score --model gpt2 --lm_eval hellaswag,lambada_openai
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfscale.arguments import LoadArguments, SourceArguments, TaskArguments, loading
from hfscale.config import parse_args
from hfscale.folders import describe_run
from hfscale.process import InputError, run
from hfscale.stopping import note_when_stopped


@dataclass
class ScoreArguments(TaskArguments, SourceArguments, LoadArguments):
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
    minimal_pairs: list[str] | None = field(
        default=None,
        metadata={
            "help": "files, folders or globs of sentence pairs as BLiMP and BabyLM keep them: "
            "columns sentence_good and sentence_bad, or good and bad (others: --choices)"
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "column that groups minimal pairs; default: UID, or else their file"},
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
    validation_examples: int | None = field(  # type: ignore[assignment]  # None: all of them
        default=None,
        metadata={
            "help": "at most this many examples of a task, or minimal pairs of each group, always "
            "the same ones; default: all (of an embedded task 500)",
            "min": 1,
        },
    )
    source: list[str] | None = field(  # type: ignore[assignment]  # None: what the run held out
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
            "help": "tokens read at a time; default: the model's limit, or 1024 if it states none",
            "min": 1,
        },
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "tokens that each window after the first one scores; default: half the context",
            "min": 1,
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
        default_factory=lambda: [1],
        metadata={"help": "the k of pass@k, up to num_samples", "min": 1},
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


# What may change between a run and its continuation; the model is known by its weights.
MAY_CHANGE = ("model", "output_dir", "resume", "overwrite", "trust_remote_code")


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args = parse_args(ScoreArguments, argv, recipe=__file__)
    started = time.perf_counter()
    path = check_args(args)

    import evaluate
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from hfscale.data.tokenizer import load_model_tokenizer
    from hfscale.evaluation.score_report import preview_scores, show_scores, write_scores
    from hfscale.evaluation.scores import (
        check_examples,
        compare_systems,
        fingerprint,
        score_predictions,
    )
    from hfscale.evaluation.seed_notes import add_seed_noise
    from hfscale.metrics.evaluate_metrics import load_metrics
    from hfscale.models import check_models, load_model

    # Metrics: built-in ones and your own.
    metrics = evaluate.combine(
        load_metrics(
            asked_metrics(args),
            args.metric_options,
            pass_at=args.pass_at,
            trust_remote_code=args.trust_remote_code,
        )
    )

    # Tokenizers. The weights are read last: they take longest.
    names = [] if args.predictions else args.model
    check_models(names, trust_remote_code=args.trust_remote_code)
    tokenizers = [
        load_model_tokenizer(name, args.tokenizer, trust_remote_code=args.trust_remote_code)
        for name in names
    ]

    # Data: text, a task's examples, or what lies with saved predictions.
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available())
    state = PartialState(cpu=use_cpu)
    with state.main_process_first():  # the other ranks read its cache
        data = load_data(args, names)
    if args.task_source:
        check_examples(data.scored_rows, args, metrics, args.allow_code_execution)

    # Saved predictions.
    systems = [
        score_predictions(file, data, metrics, args.metric_options, seed=args.seed)
        for file in args.predictions or []
    ]

    # Models. All are loaded before one is scored: one that cannot be loaded shows at once.
    models = [load_model(name, dtype=args.dtype, **loading(args)) for name in names]
    if args.dry_run:
        preview_scores(data, args, names, models, tokenizers)
        return None
    note_when_stopped("finished batches are kept, --resume auto goes on")
    for name, model, tokenizer in zip(names, models, tokenizers, strict=True):
        systems.append(score_model(args, name, model.to(state.device), tokenizer, data, metrics))
        model.cpu()

    # What is written; the comparisons come first, since they can fail.
    if state.is_main_process:
        comparisons = compare_systems(systems, args.seed)
        add_seed_noise(comparisons, systems, fingerprint(data, args.lm_eval_data))
        seconds = time.perf_counter() - started
        record = write_scores(
            path,
            describe_run(__file__, args, argv, seconds),
            data,
            systems,
            comparisons,
            source=scored_source(args),
            fingerprint=fingerprint(data, args.lm_eval_data),
        )
        show_scores(record, path)
        return record
    return None


def asked_metrics(args: ScoreArguments) -> Sequence[str]:
    """The names of the metrics: of saved predictions all that compare texts, unless some are
    named."""
    from hfscale.metrics.texts import TEXT_METRICS

    if args.minimal_pairs:
        return ["accuracy"]
    if args.predictions and not args.metrics:
        return TEXT_METRICS
    return args.metrics


def scored_source(args: ScoreArguments) -> str | list[str]:
    """What was scored, as it was named."""
    named = (
        args.task_source or args.source or args.minimal_pairs or args.lm_eval or args.predictions
    )
    return named or f"held out by {args.model[0]}"


def check_args(args: ScoreArguments) -> Path:
    """The path of the scores, once it is known that the arguments can work. Nothing is changed."""
    from hfscale.evaluation import score_args
    from hfscale.evaluation.lm_tasks import check_lm_eval, task_names

    path = score_args.check_score_folder(
        args.output_dir, resume=args.resume, overwrite=args.overwrite
    )
    for name in args.model:
        if args.model.count(name) > 1:
            raise InputError(f"model: {name} is named twice; keep one")
    score_args.check_one_kind(
        model=args.model,
        predictions=args.predictions,
        lm_eval=args.lm_eval,
        source=args.source,
        task_source=args.task_source,
        minimal_pairs=args.minimal_pairs,
    )
    if args.minimal_pairs:
        score_args.check_not_given(
            "is not of minimal pairs, which are judged by accuracy",
            metrics=args.metrics or None,
            prompt=args.prompt,
            target=args.target,
            label=args.label,
        )
    else:
        score_args.check_not_given(
            "is of --minimal_pairs, and none are given", group_column=args.group_column
        )
    if args.lm_eval:
        tasks = task_names(args.lm_eval)
        check_lm_eval(tasks, data=args.lm_eval_data, include=args.lm_eval_include)
    else:
        score_args.check_not_given(
            "is of --lm_eval tasks, and none is given",
            lm_eval_data=args.lm_eval_data,
            lm_eval_include=args.lm_eval_include,
            limit=args.limit,
        )
    if args.lm_eval or args.predictions or args.task_source or args.minimal_pairs:
        score_args.check_not_given(
            "is of text that is read in windows", max_length=args.max_length, stride=args.stride
        )
    score_args.check_metrics_fit(
        args.metrics,
        predictions=args.predictions,
        task_source=args.task_source,
        choices=args.choices,
        allow_code_execution=args.allow_code_execution,
    )
    score_args.check_answers(
        pass_at=args.pass_at,
        num_samples=args.num_samples,
        do_sample=args.do_sample,
        stop_strings=args.stop_strings,
    )
    return path


def load_data(args: ScoreArguments, models: list[str]):
    """What the arguments name to be scored, as ScoreData; of a file that one of the models was
    trained on it is what its run held out."""
    from hfscale.evaluation.score_data import (
        ScoreData,
        load_examples,
        load_held_out_text,
        load_pairs,
        load_text,
    )

    if args.lm_eval:
        return ScoreData("example")  # lm-eval reads its own
    if args.task_source:
        return load_examples(args, models=models, limit=args.validation_examples, seed=args.seed)
    if args.minimal_pairs:
        return load_pairs(
            args.minimal_pairs,
            columns=args.choices,
            group_column=args.group_column,
            limit=args.validation_examples,
        )
    if args.predictions:
        return ScoreData("prediction")  # their references lie with them
    if args.source:
        return load_text(args, split=args.split, models=models)
    return load_held_out_text(models, trust_remote_code=args.trust_remote_code)


def score_model(args: ScoreArguments, name: str, model, tokenizer, data, metrics):
    """One model's scores on lm-eval's tasks, on a task or on text, as a System."""
    from hfscale.evaluation.lm_tasks import task_names
    from hfscale.evaluation.pair_scores import score_pairs
    from hfscale.evaluation.scores import (
        DECODING,
        describe_model,
        fingerprint,
        open_journal,
        score_lm_eval,
        score_task,
        score_text,
    )

    system = describe_model(name, model, tokenizer)
    # Finished batches are kept on disk, so that a run that was stopped can go on.
    settings = {key: value for key, value in asdict(args).items() if key not in MAY_CHANGE}
    settings["data"] = fingerprint(data, args.lm_eval_data)
    journal = open_journal(args.output_dir, system, settings, overwrite=args.overwrite)
    if args.lm_eval:
        score_lm_eval(
            system,
            model,
            tokenizer,
            task_names(args.lm_eval),
            data=args.lm_eval_data,
            include=args.lm_eval_include,
            limit=args.limit,
            batch_size=args.batch_size,
            seed=args.seed,
            journal=journal,
        )
    elif args.task_source:
        score_task(
            system,
            model,
            tokenizer,
            data.scored_rows,
            args,
            metrics,
            decoding={key: getattr(args, key) for key in DECODING},
            batch_size=args.batch_size,
            allow_code_execution=args.allow_code_execution,
            journal=journal,
        )
    elif args.minimal_pairs:
        score_pairs(
            system,
            model,
            tokenizer,
            data.scored_rows,
            metrics,
            batch_size=args.batch_size,
            seed=args.seed,
            journal=journal,
        )
    else:
        score_text(
            system,
            model,
            tokenizer,
            data.scored_rows["text"][:],
            max_length=args.max_length,
            stride=args.stride,
            batch_size=args.batch_size,
            seed=args.seed,
            journal=journal,
        )
    return system


if __name__ == "__main__":
    run(main)
