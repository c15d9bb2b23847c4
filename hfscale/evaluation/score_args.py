"""What the score recipe's arguments must be, known before any text or model is read.

One small check for each thing that cannot work or has no effect; all raise InputError and change
nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfscale.folders import check_output_file
from hfscale.metrics.texts import TEXT_METRICS
from hfscale.process import InputError

SCORES = "scores.json"
UNFINISHED = "unfinished"  # the folder that keeps finished batches until the scores are written


def check_score_folder(output_dir: str, *, resume: str | None, overwrite: bool) -> Path:
    """The path of the scores, once they may be written in this folder."""
    if resume and overwrite:
        raise InputError(
            "--resume auto continues a run and --overwrite replaces it; give one of the two"
        )
    path = check_output_file(output_dir, SCORES, overwrite=overwrite)
    if Path(output_dir, UNFINISHED).exists() and not resume and not overwrite:
        raise InputError(
            f"output_dir {output_dir}: holds an unfinished run; --resume auto goes on, --overwrite "
            "starts anew"
        )
    return path


def check_one_kind(
    *,
    model: Sequence[str],
    predictions: Sequence[str] | None,
    lm_eval: Sequence[str] | None,
    source: Sequence[str] | None,
    task_source: Sequence[str] | None,
    minimal_pairs: Sequence[str] | None,
) -> None:
    """Models, or saved predictions, are scored on one kind of thing."""
    if not model and not predictions:
        raise InputError("model: missing; give folders of saved models, or Hub ids")
    if minimal_pairs and (lm_eval or predictions or task_source or source):
        raise InputError(
            "minimal_pairs, lm_eval, predictions, source, task_source: give one of them"
        )
    if lm_eval and (predictions or task_source or source):
        raise InputError("lm_eval, predictions, source, task_source: give one of them")
    if source and (task_source or predictions):
        raise InputError(
            "source, task_source, predictions: text and answers are not scored at once; give one "
            "of them"
        )


def check_not_given(reason: str, **values: Any) -> None:
    """None of these arguments is given, since they would have no effect."""
    for name, value in values.items():
        if value is not None:
            raise InputError(f"{name}: {reason}; leave it out")


def check_metrics_fit(
    metrics: Sequence[str],
    *,
    predictions: Sequence[str] | None,
    task_source: Sequence[str] | None,
    choices: str | Sequence[str] | None,
    allow_code_execution: bool,
) -> None:
    """The metrics judge what is scored."""
    if metrics and not task_source and not predictions:
        raise InputError(
            f"metrics: {', '.join(metrics)} judge answers; give --task_source or --predictions "
            "(text has perplexity and its kin without being asked)"
        )
    if task_source and not predictions and not metrics:
        raise InputError(
            f"metrics: missing; a task is judged by {', '.join(TEXT_METRICS)}, accuracy, pass_at_k "
            "or a metric of your own (FILE.py:FUNCTION)"
        )
    for metric in ("accuracy", "pass_at_k"):
        if predictions and metric in metrics:
            raise InputError(
                f"metrics: {metric} does not judge saved texts; expected "
                f"{', '.join(TEXT_METRICS)} or a metric of your own (FILE.py:FUNCTION)"
            )
    if "accuracy" in metrics and not choices:
        raise InputError("metrics: accuracy needs the answers to choose from; name their --choices")
    if "pass_at_k" in metrics and not allow_code_execution:
        raise InputError(
            "metrics: pass_at_k runs what the model wrote; pass --allow_code_execution to allow it"
        )


def check_answers(
    *,
    pass_at: Sequence[int],
    num_samples: int,
    do_sample: bool,
    stop_strings: Sequence[str] | None,
) -> None:
    """As many answers are drawn as are judged, and none ends before it begins."""
    if not pass_at or max(pass_at) > num_samples:
        raise InputError(
            f"pass_at: got {pass_at}, expected numbers from 1 to num_samples ({num_samples})"
        )
    if "" in (stop_strings or []):
        raise InputError(
            "stop_strings: an empty string would end every answer at once; leave it out"
        )
    if num_samples > 1 and not do_sample:
        raise InputError(
            f"num_samples: got {num_samples}, but without --do_sample all of them are the same"
        )
