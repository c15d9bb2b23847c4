"""A checkpoint has its name only once it is whole, and older ones go only then."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hfscale.folders import SAVING, apply_umask
from hfscale.manifest import MANIFEST, flush_to_disk, write_manifest
from hfscale.process import from_main_rank, is_main_rank
from hfscale.training.guards import check_finite

REPLACED = "replaced"  # in SAVING: a checkpoint in whose place a new one of its step comes


def save_whole(
    trainer: Trainer,
    facts: Callable[[], dict[str, Any]],
    limit: Callable[[], int | None],
    save_more: Callable[[Path], None] | None = None,
) -> None:
    """Let a trainer write its checkpoints into `.saving` in its `output_dir`, from where each goes
    to its place in one step, once its manifest is written and all of it lies on the disk. After
    that the oldest are deleted.

    Saving raises FloatingPointError for weights that are not finite, before anything is written.
    After that, and after any other error, all earlier checkpoints stay, and no half of the new one.

    Args:
        facts: what the manifest says beside the files; asked at each save, on rank 0.
        limit: `save_total_limit`, which upstream must not see: it deletes before a checkpoint is
            whole, and by the times of files.
        save_more: writes what a checkpoint holds beside upstream's files; called on rank 0.
    """
    save = trainer._save_checkpoint

    def save_checkpoint(model: Any, trial: Any) -> None:
        state = trainer.state
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        place = Path(trainer._get_output_dir(trial), name)
        part = place.parent / SAVING / name

        def finish() -> None:
            if save_more is not None:
                save_more(part)
            apply_umask(part)
            state.save_to_json(str(part / TRAINER_STATE_NAME))  # now it names the best one's place
            write_manifest(part, **facts())
            put_in_place(part, place)
            rotate(checkpoints_in(place.parent), limit(), state.best_model_checkpoint)

        check_finite(trainer)
        from_main_rank(lambda: forget_unfinished(place.parent))
        with _without_a_half(part):
            with _saving_below(trainer, part.parent):
                save(model, trial)
            _name_best(state, place)
            PartialState().wait_for_everyone()  # every rank saves its own random state
            from_main_rank(finish)
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(str(place))

    _replace(trainer, _save_checkpoint=save_checkpoint)


@contextlib.contextmanager
def _saving_below(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Within it, upstream writes a checkpoint below the folder, and pushes nothing from there."""
    _replace(
        trainer,
        _get_output_dir=lambda trial: str(folder),
        _push_from_checkpoint=lambda folder: None,
    )
    try:
        yield
    finally:
        del trainer._get_output_dir, trainer._push_from_checkpoint


def _replace(trainer: Trainer, **methods: Callable[..., Any]) -> None:
    """Let this one trainer, of whichever class, have other methods."""
    vars(trainer).update(methods)


def _name_best(state: TrainerState, place: Path) -> None:
    """Let the state name the best checkpoint by its final place, as upstream finds it."""
    if not state.best_global_step:
        return
    best = place.with_name(f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
    if best == place or best.is_dir():
        state.best_model_checkpoint = str(best)


@contextlib.contextmanager
def _without_a_half(part: Path) -> Iterator[None]:
    """After an error, such as a full disk, no half of a checkpoint keeps its room."""
    try:
        yield
    except Exception:
        if is_main_rank():
            shutil.rmtree(part, ignore_errors=True)
        raise


def put_in_place(part: Path, place: Path) -> None:
    """Rename a folder that was written whole below `.saving`. One of its name that is there goes,
    after that.
    """
    if os.path.lexists(place):
        aside = part.parent / REPLACED / place.name
        aside.parent.mkdir()
        os.rename(place, aside)
    os.rename(part, place)
    flush_to_disk(place.parent)
    shutil.rmtree(part.parent)


def forget_unfinished(output_dir: Path) -> None:
    """Delete what a save left that was broken off. A checkpoint that it was just replacing comes
    back.
    """
    saving = output_dir / SAVING
    for folder in (saving / REPLACED).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not os.path.lexists(output_dir / folder.name):
            os.rename(folder, output_dir / folder.name)
    if saving.is_dir():
        shutil.rmtree(saving)


def checkpoints_in(output_dir: Path) -> list[Path]:
    """The folders of checkpoints, newest first, whole or not."""
    steps = {}
    for folder in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isascii() and step.isdecimal():
            steps[folder] = int(step)
    return sorted(steps, key=lambda folder: steps[folder], reverse=True)


def newest_step(output_dir: Path) -> int | None:
    """The step of the newest checkpoint with a manifest; None: there is none."""
    whole = [folder for folder in checkpoints_in(output_dir) if (folder / MANIFEST).is_file()]
    return int(whole[0].name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")) if whole else None


def rotate(checkpoints: Sequence[Path], save_total_limit: int | None, best: str | None) -> None:
    """Delete the checkpoints of the earliest steps until at most so many whole ones are left.

    The newest whole one always stays, and so does the best; what is broken and older goes too.

    Args:
        checkpoints: their folders, newest step first.
        save_total_limit: upstream's; None: all stay.
        best: the folder of the best one, where a metric says which that is.
    """
    if save_total_limit is None:
        return
    whole = [folder for folder in checkpoints if (folder / MANIFEST).is_file()]
    kept = whole[:save_total_limit]
    if best is not None and Path(best) not in kept:
        kept = [*whole[: max(1, save_total_limit - 1)], Path(best)]
    newest = checkpoints.index(whole[0])
    for folder in checkpoints[newest + 1 :]:
        if folder not in kept:
            (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a half is never a whole
            shutil.rmtree(folder)
