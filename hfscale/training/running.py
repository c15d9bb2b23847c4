"""A training that can be stopped, goes on where it stopped, and never saves what is broken."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset
from transformers import Trainer

from hfscale.data.fingerprints import rows_fingerprint
from hfscale.data.repacking import RepackedRows, table_of
from hfscale.folders import clear_output_dir
from hfscale.full_disk import NO_SPACE, is_disk_full, pass_over_log_errors
from hfscale.manifest import MANIFEST
from hfscale.process import InputError, failure_status, is_main_rank
from hfscale.stopping import note_when_stopped
from hfscale.training.averaging import save_average
from hfscale.training.checkpoints import CheckpointManifest, RunIsDone
from hfscale.training.continuation import training_settings
from hfscale.training.cpu_time import CpuTime
from hfscale.training.guards import guard_best, guard_gradients
from hfscale.training.heartbeats import RankWatch
from hfscale.training.log_lines import show_progress
from hfscale.training.missed import MissedEvaluation, end_evaluation
from hfscale.training.randomness import SeededEpochs, evaluate_apart
from hfscale.training.ranks import check_same
from hfscale.training.reporting import guard_trackers
from hfscale.training.room import check_room
from hfscale.training.saving import newest_step, save_whole
from hfscale.training.signals import EvaluationStopped, StopOnSignal
from hfscale.training.traces import trace_run
from hfscale.training.weight_names import load_in_model_names


def prepare_output_dir(trainer: Trainer, *, overwrite: bool) -> None:
    """Claim the run's folder, once everything else has been checked, and delete the earlier run in
    it when asked to.

    Raises:
        InputError: see `check_room` and `clear_output_dir`; nothing is deleted.
    """
    folder = Path(str(trainer.args.output_dir))
    try:
        check_room(trainer, overwrite=overwrite)
    except InputError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Trainer made it, unless it holds something
        raise
    clear_output_dir(str(folder), overwrite)


def run_training(
    trainer: Trainer,
    checkpoint: str | None,
    settings: dict[str, Any] | None = None,
    *,
    documents: Mapping[str, Any] | None = None,
    can_resume: bool = True,
) -> None:
    """Train with any Trainer (ours or TRL's) from the start or from a checkpoint.

    Args:
        checkpoint: of `newest_checkpoint`; None: from the start.
        settings: of `settings_of_run`; None: what upstream's arguments tell.
        documents: the texts of each split, as they were read, for the record; None: not said.
        can_resume: whether the recipe has --resume; what a signal prints says so.

    Raises:
        FloatingPointError: gradients or weights that are not finite; the checkpoints are good.
        InputError: a rank has other rows or settings, or the best checkpoint, which is to become
            the final model, is damaged.
        StartDiffersError: see `check_start`.
        SystemExit: a signal ended the training; see `StopOnSignal`.
    """
    pass_over_log_errors("stdout")  # of a log, which ends no training
    trainer.add_callback(CpuTime())
    show_progress(trainer)
    guard_trackers(trainer)
    settings = settings or training_settings(trainer.args)
    _check_same_run(trainer, settings)
    trace_run(trainer, documents)
    watch = _start_watch(trainer)
    can_resume = can_resume and not _is_without_optimizer(trainer)
    guard_gradients(trainer)
    guard_best(trainer)
    load_in_model_names(trainer)
    _draw_by_seed(trainer)
    manifest = CheckpointManifest(settings)
    trainer.add_callback(manifest)
    save_whole(
        trainer,
        facts=lambda: manifest.facts(trainer),
        limit=lambda: manifest.save_total_limit,
        save_more=partial(save_average, trainer),
    )
    stop_on_signal = StopOnSignal(can_resume)
    trainer.add_callback(stop_on_signal)
    trainer.add_callback(MissedEvaluation(trainer))
    try:
        with _without_outdated_warning():
            trainer.train(resume_from_checkpoint=checkpoint)
    except RunIsDone:
        _end_training(trainer)
    except KeyError as error:
        name = trainer.args.metric_for_best_model
        if not name or f"eval_{name.removeprefix('eval_')}" not in str(error):
            raise
        measured = ", ".join(_evaluated(trainer))
        raise InputError(
            f"metric_for_best_model: {name} is not measured; expected one of {measured}"
        ) from None
    except FloatingPointError as error:
        _end_on_numbers(trainer, watch, error)
    except EvaluationStopped:
        end_evaluation(trainer, stop_on_signal)
    except Exception as error:
        kept = stop_on_signal.what_is_kept(trainer.args, trainer.state.global_step)
        # Such a worker got the signal too, as all processes of a group do, and ended on it.
        if stop_on_signal.received and "DataLoader worker" in str(error):
            stop_on_signal.end_alone(f"with a data loader's process; {kept}")
        if is_disk_full(error):
            _end_on_full_disk(trainer, watch, kept)
        raise
    finally:
        stop_on_signal.restore()  # an error ends a training without `on_train_end`
    if trainer.is_world_process_zero():
        # Of an earlier end of this run, whose final files are written anew now.
        Path(str(trainer.args.output_dir), MANIFEST).unlink(missing_ok=True)
    kept = stop_on_signal.what_is_kept(trainer.args, trainer.state.global_step)
    note_when_stopped(f"the training is done; {kept}")


def _draw_by_seed(trainer: Trainer) -> None:
    """Let what is drawn at random depend on the seed and the steps alone."""
    evaluate_apart(trainer)
    trainer.add_callback(SeededEpochs())


def _start_watch(trainer: Trainer) -> RankWatch:
    watch = RankWatch(trainer.args)
    watch.start()
    trainer.add_callback(watch)
    return watch


def _end_on_full_disk(trainer: Trainer, watch: RankWatch, kept: str) -> NoReturn:
    """Say so in one line, and end all ranks with status 1."""
    folder = Path(str(trainer.args.output_dir))
    watch.end_others(
        f"output_dir {folder}: {NO_SPACE} for what step {trainer.state.global_step} saves; {kept}; "
        "free some space first"
    )
    raise SystemExit(failure_status())


def _end_on_numbers(trainer: Trainer, watch: RankWatch, error: FloatingPointError) -> NoReturn:
    """Say which checkpoint is good, in one line for all ranks: each of them has met the numbers, or
    waits for one that has.

    Raises FloatingPointError: a process on its own, to whoever called.
    """
    folder = Path(str(trainer.args.output_dir))
    last = newest_step(folder)
    kept = f"the last good weights are in {folder}/checkpoint-{last}" if last else "none was saved"
    line = f"{error}; {kept}"
    if trainer.args.world_size == 1:
        raise FloatingPointError(line) from None
    watch.end_others(line)
    raise SystemExit(failure_status())


def _check_same_run(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Raise InputError on all ranks if one has read other data than rank 0."""
    values = dict(settings)
    rows: Any = trainer.train_dataset
    if "train_rows" not in values and isinstance(rows, (Dataset, RepackedRows)):
        values["the content of the training rows"] = rows_fingerprint(table_of(rows))
    check_same(
        values, "all ranks must read the same: put data and models on a disk that they share"
    )


def _evaluated(trainer: Trainer) -> list[str]:
    """The metrics of the last evaluation."""
    logs = [log for log in trainer.state.log_history if "eval_loss" in log]
    return [name for name in (logs[-1] if logs else ()) if name.startswith("eval_")]


def _is_without_optimizer(trainer: Trainer) -> bool:
    """Whether no run can go on from the checkpoints, which is said."""
    if trainer.args.save_only_model and is_main_rank():
        print(
            "save_only_model: checkpoints without the optimizer's state; --resume auto cannot go "
            "on from them",
            file=sys.stderr,
        )
    return trainer.args.save_only_model


@contextlib.contextmanager
def _without_outdated_warning() -> Iterator[None]:
    """Upstream warns that a continued run logs, evaluates and saves as often as before; it does so
    as it is told now (see `CheckpointManifest`).
    """
    logger = logging.getLogger("transformers.trainer_utils")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "do not match the ones in the `trainer_state.json`" not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def _end_training(trainer: Trainer) -> None:
    """What upstream does after the last step, for a run that has no step left: its state and
    weights are loaded.
    """
    trainer.is_in_train = False
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    handler = trainer.callback_handler
    trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)
