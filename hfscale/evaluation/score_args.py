"""What the score recipe's arguments must be, known before any text or model is read."""

import os
from pathlib import Path
from typing import Any

from hfscale.evaluation.lm_tasks import check_lm_eval, task_names
from hfscale.folders import check_writable
from hfscale.metrics.options import check_options
from hfscale.metrics.texts import TEXT_METRICS
from hfscale.process import InputError

LM_EVAL_ONLY = ("lm_eval_data", "lm_eval_include", "limit")
TEXT_ONLY = ("max_length", "stride")


def check_score_args(args: Any) -> None:
    """Raise InputError for what cannot work, has no effect, or an output folder that holds scores.
    Nothing is changed."""
    _check_output(args)
    _check_kind(args)
    if args.lm_eval:
        tasks = task_names(args.lm_eval)
        check_lm_eval(tasks, data=args.lm_eval_data, include=args.lm_eval_include)
    _check_metrics(args)
    _check_decoding(args)


def _check_output(args: Any) -> None:
    folder = Path(args.output_dir)
    place = f"--output_dir {folder}"
    if next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p)).is_file():
        raise InputError(f"{place}: is a file; name a folder")
    check_writable(place, folder)
    if args.resume and args.overwrite:
        raise InputError(
            "--resume auto continues a run and --overwrite replaces it; give one of the two"
        )
    if (folder / "scores.json").exists() and not args.overwrite:
        raise InputError(f"{place}: holds scores.json; name another or pass --overwrite")
    if (folder / "unfinished").exists() and not args.resume and not args.overwrite:
        raise InputError(
            f"{place}: holds an unfinished run; --resume auto goes on, --overwrite starts anew"
        )


def _check_kind(args: Any) -> None:
    """One kind of thing is scored, and no argument belongs to another kind."""
    if not args.model and not args.predictions:
        raise InputError("model: missing; give folders of saved models, or Hub ids")
    if args.lm_eval and (args.predictions or args.task_source or args.source):
        raise InputError("lm_eval, predictions, source, task_source: give one of them")
    if args.source and (args.task_source or args.predictions):
        raise InputError(
            "source, task_source, predictions: text and answers are not scored at once; give one "
            "of them"
        )
    given = [name for name in LM_EVAL_ONLY if getattr(args, name) is not None]
    if given and not args.lm_eval:
        raise InputError(f"{given[0]}: is of --lm_eval tasks, and none is given; leave it out")
    is_text = not (args.lm_eval or args.predictions or args.task_source)
    given = [name for name in TEXT_ONLY if getattr(args, name) is not None]
    if given and not is_text:
        raise InputError(f"{given[0]}: is of text that is read in windows; leave it out")


def _check_metrics(args: Any) -> None:
    answers = args.task_source or args.predictions
    if not answers and args.metrics:
        raise InputError(
            f"metrics: {', '.join(args.metrics)} judge answers; give --task_source or "
            "--predictions (text has perplexity and its kin without being asked)"
        )
    if args.task_source and not args.predictions and not args.metrics:
        raise InputError(
            f"metrics: missing; a task is judged by {', '.join(TEXT_METRICS)}, accuracy or "
            "pass_at_k"
        )
    others = [metric for metric in args.metrics if metric not in TEXT_METRICS]
    if args.predictions and others:
        raise InputError(
            f"metrics: {others[0]} does not judge saved texts; expected {', '.join(TEXT_METRICS)}"
        )
    if "accuracy" in others and not args.choices:
        raise InputError("metrics: accuracy needs the answers to choose from; name their --choices")
    if "pass_at_k" in others and not args.allow_code_execution:
        raise InputError(
            "metrics: pass_at_k runs what the model wrote; pass --allow_code_execution to allow it"
        )
    check_options(args.metric_options, args.metrics or (TEXT_METRICS if args.predictions else ()))


def _check_decoding(args: Any) -> None:
    most, least = max(args.pass_at, default=0), min(args.pass_at, default=0)
    if args.num_samples < most or least < 1:
        raise InputError(
            f"pass_at: got {args.pass_at}, expected numbers from 1 to num_samples "
            f"({args.num_samples})"
        )
    if "" in (args.stop_strings or []):
        raise InputError(
            "stop_strings: an empty string would end every answer at once; leave it out"
        )
    if args.num_samples > 1 and not args.do_sample:
        raise InputError(
            f"num_samples: got {args.num_samples}, but without --do_sample all of them are the same"
        )
