"""Plain model folders after given numbers of words, as BabyLM asks for them: chck_1M, chck_2M, ...

A word is what white space parts, as `wc -w` counts. All rows of an epoch together hold all words of
the training text, so a run has seen, of these words, the share of the rows that it has trained on:
exact after whole epochs, and between them as even as the order of the rows is random.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfscale.data.repacking import RepackedRows
from hfscale.folders import SAVING, TRAINING_ARGUMENTS, WORD_CHECKPOINT, apply_umask
from hfscale.manifest import write_manifest
from hfscale.process import InputError, from_main_rank, is_main_rank, launched_processes
from hfscale.shown import show_text
from hfscale.training.averaging import averaging_of
from hfscale.training.guards import check_finite
from hfscale.training.preview import count_steps, steps_of_epoch
from hfscale.training.saving import put_in_place

UNITS = {"": 1, "K": 1_000, "M": 1_000_000}
COUNT = re.compile(r"([0-9]+)([KM]?)")
# What a run misses by less is the model of its last step: ten epochs of a corpus "of 10M words" may
# hold 99.6M.
NEARLY = 0.99


class WordMark(NamedTuple):
    """A folder that is to be saved."""

    name: str  # says how many words were asked for
    words: int  # seen after its step
    step: int  # the first after which so many were seen


def read_counts(save_words: Sequence[str]) -> list[int]:
    """Numbers such as 500K and 10M, each once, the smallest first; several may be in one text, with
    commas between.

    Raises InputError: something else.
    """
    counts = set()
    for text in ",".join(save_words).split(","):
        found = COUNT.fullmatch(text.strip().upper())
        words = int(found[1]) * UNITS[found[2]] if found else 0
        if words < 1:
            raise InputError(
                f"save_words: got {text.strip()!r}, expected numbers of words such as 500K or 10M"
            )
        counts.add(words)
    return sorted(counts)


def folder_name(words: int) -> str:
    """`chck_10M`, as BabyLM names it; K and none where the number is not of whole millions."""
    for unit in ("M", "K"):
        if words % UNITS[unit] == 0:
            return f"{WORD_CHECKPOINT}{words // UNITS[unit]}{unit}"
    return f"{WORD_CHECKPOINT}{words}"


def check_save_words(save_words: Sequence[str] | None, *, streaming: bool = False) -> None:
    """Raise InputError for what cannot work, before anything is read."""
    if save_words is None:
        return
    read_counts(save_words)
    if streaming:
        raise InputError(
            "save_words: a stream does not say how many words it holds, so nobody knows when they "
            "are seen; leave out --streaming, or save by --save_steps"
        )


def count_words(documents: Dataset) -> int:
    """Words of all texts, parted by white space."""
    return sum(len(text.split()) for batch in documents.iter(1000) for text in batch["text"])


def word_marks(
    save_words: Sequence[str] | None,
    epoch_words: int,
    rows: Dataset | RepackedRows,
    args: TrainingArguments,
) -> list[WordMark]:
    """The folders to save, each with its step, which are shown too; none unless they are asked for.

    Args:
        epoch_words: of the text that all `rows` together hold.
        rows: to train on.

    Raises InputError: the run ends before so many words are seen.
    """
    if save_words is None:
        return []
    last_step = count_steps(len(rows), args)
    seen = words_seen(last_step, epoch_words, len(rows), args)
    marks = []
    for words in read_counts(save_words):
        step = _step_of(words, epoch_words, len(rows), args)
        if seen >= NEARLY * words:
            step = min(step, last_step)
        words_there = words_seen(step, epoch_words, len(rows), args)
        marks.append(WordMark(folder_name(words), words_there, step))
    missed = [mark.name.removeprefix(WORD_CHECKPOINT) for mark in marks if mark.step > last_step]
    if missed:
        raise InputError(
            f"save_words: {', '.join(missed)}: the run sees {seen:,} words in {last_step:,} steps "
            f"({epoch_words:,} in an epoch); raise num_train_epochs or max_steps, or leave it out: "
            "the folder of the run itself is its last model"
        )
    if is_main_rank():
        steps = ", ".join(f"{mark.name} after step {mark.step:,}" for mark in marks)
        show_text(f"words: {epoch_words:,} in an epoch, {seen:,} in the run; {steps}")
    return marks


def words_seen(step: int, epoch_words: int, num_rows: int, args: TrainingArguments) -> int:
    """Words of the rows that a run has trained on after a step, rounded down."""
    epochs, steps = divmod(step, steps_of_epoch(num_rows, args))
    rows = min(num_rows, steps * _rows_of_step(args))
    return epochs * epoch_words + rows * epoch_words // num_rows


def _step_of(words: int, epoch_words: int, num_rows: int, args: TrainingArguments) -> int:
    """The first step after which so many words were seen; the inverse of `words_seen`."""
    epochs, rest = divmod(words, epoch_words)
    rows = -(-rest * num_rows // epoch_words)  # rounded up
    return epochs * steps_of_epoch(num_rows, args) + -(-rows // _rows_of_step(args))


def _rows_of_step(args: TrainingArguments) -> int:
    """Of all processes together."""
    of_process = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return of_process * launched_processes(args.world_size)


class WordCheckpoints(TrainerCallback):
    """Saves model and tokenizer into a folder of the run's after the step of each mark; a run that
    goes on from an earlier step writes it anew.

    Where the weights are averaged, it is their average, as the final model is: add this after
    `WeightAveraging`.
    """

    def __init__(self, trainer: Trainer, marks: Sequence[WordMark]):
        self.trainer = trainer
        self.marks = marks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise InputError where the run goes on from a step beyond a mark that was not saved."""
        folder = Path(str(args.output_dir))
        for mark in self.marks:
            if mark.step <= state.global_step and not (folder / mark.name).is_dir():
                raise InputError(
                    f"save_words: {folder} goes on from step {state.global_step:,}, and "
                    f"{mark.name}, of step {mark.step:,}, is not there; leave it out, or start a "
                    "run in another output_dir"
                )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what is due. Collective: weights may be spread over the ranks."""
        for mark in self.marks:
            if mark.step == state.global_step:
                self._save(mark)

    def _save(self, mark: WordMark) -> None:
        trainer = self.trainer
        place = Path(str(trainer.args.output_dir), mark.name)
        part = place.parent / SAVING / mark.name
        averaging = averaging_of(trainer)
        check_finite(trainer)
        # What a save left that was broken off.
        from_main_rank(lambda: shutil.rmtree(part.parent, ignore_errors=True))
        with averaging.in_place() if averaging else contextlib.nullcontext():
            trainer.save_model(str(part))
        from_main_rank(lambda: _finish(part, place, mark))


def _finish(part: Path, place: Path, mark: WordMark) -> None:
    """Move a folder that is written to its place, without the pickle that upstream adds."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part / TRAINING_ARGUMENTS)
    apply_umask(part)
    write_manifest(part, step=mark.step, words=mark.words)
    put_in_place(part, place)


def save_at_words(trainer: Trainer, marks: Sequence[WordMark]) -> None:
    """Let a trainer save the folders of `word_marks`; called after `average_weights`."""
    if marks:
        trainer.add_callback(WordCheckpoints(trainer, marks))


def marks_of(trainer: Trainer) -> Sequence[WordMark]:
    """What a trainer saves by words."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, WordCheckpoints):
            return callback.marks
    return ()
