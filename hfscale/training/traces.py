"""What a run was made of and what it was given, step by step, as fingerprints: by them two runs can
be compared, and the first thing found that differs.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hfscale.data.fingerprints import text_fingerprint, tokenizer_fingerprint
from hfscale.data.layouts import IGNORED
from hfscale.process import EXPECTED_START, from_main_rank, is_main_rank

MODULUS = 2**64  # of sums of row fingerprints
BATCHES = "batches"  # in the log history: the fingerprint of all batches up to the step


class Start(NamedTuple):
    """What a training begins with. Fingerprints of 16 or 32 hexadecimal digits; None: not known (a
    stream's text, the tokenizer of a trainer that was given none, weights of which each process
    holds a part).
    """

    text: dict[str, str | None]  # of each split
    tokenizer: str | None
    initial_weights: str | None


class StartDiffersError(Exception):
    """A run that is to repeat another one begins with something else; see `check_start`."""

    def __init__(self, start: Start):
        super().__init__("the run begins with something else than the one that it repeats")
        self.start = start


def start_of(trainer: Trainer, documents: Mapping[str, Any] | None) -> Start:
    """What a training is about to begin with; for rank 0.

    Args:
        documents: the texts of each split; None: nobody says.
    """
    tokenizer: Any = trainer.processing_class
    model: Any = trainer.model
    return Start(
        text={name: _text_of(part) for name, part in (documents or {}).items()},
        tokenizer=None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        initial_weights=parameters_fingerprint(model),
    )


def _text_of(documents: Any) -> str | None:
    return None if isinstance(documents, IterableDataset) else text_fingerprint(documents)


def parameters_fingerprint(model: torch.nn.Module) -> str | None:
    """XXH3 (32 hexadecimal digits) over the names, types, shapes and numbers of a model's
    parameters, wherever they lie; None: this process holds a part of them.
    """
    digest = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):  # of ZeRO-3
            return None
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        numbers = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_start(start: Start | None) -> None:
    """Raise StartDiffersError where the environment says with what this run has to begin (see
    `expect_start`), and it does not; on the other ranks SystemExit. Collective.

    Args:
        start: of `start_of`; None: this is not rank 0.
    """
    expected = json.loads(os.environ.get(EXPECTED_START, "{}"))

    def compare() -> None:
        assert start is not None, "on rank 0"
        if any(_differs(expected.get(name), value) for name, value in start._asdict().items()):
            raise StartDiffersError(start)

    if expected:
        from_main_rank(compare)


def _differs(expected: Any, found: Any) -> bool:
    """Whether both are known and differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return any(_differs(value, found.get(name)) for name, value in expected.items())
    return None not in (expected, found) and expected != found


class BatchTrace(TrainerCallback, ExportableState):
    """Keeps a fingerprint of all batches of a run, and writes it into the log history beside each
    loss.

    It is a sum over the rows (mod 2^64) of a hash of their tokens, labels and positions, and of the
    step: the same however a step's rows are dealt out to processes and cut into micro-batches,
    another one where a row comes at another step. What stands behind a row's last label is padding
    and left out. The sum goes into checkpoints, so that a run that goes on keeps it.
    """

    def __init__(self) -> None:
        self.start: Start | None = None  # rank 0's
        self.total: int | None = 0  # of all ranks; None: an earlier part of the run kept none
        self.pending = 0  # of this rank, since the ranks last added theirs up

    @property
    def fingerprint(self) -> str | None:
        """Of all batches until the ranks last added up (16 hexadecimal digits); None: not known."""
        return None if self.total is None else f"{self.total:016x}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"total": self.total}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the sum of the checkpoint from which the run goes on."""
        name = type(self).__name__
        callbacks: Any = state.stateful_callbacks
        # A checkpoint of an older version has none, and upstream saves only those that it knows.
        saved = callbacks.setdefault(name, {"args": {}, "attributes": {"total": None}})
        self.total = saved["attributes"]["total"]
        self.pending = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the fingerprint beside a training loss, and at the end of the training."""
        if logs and ("loss" in logs or "train_runtime" in logs):
            self.add_up()
            log: dict[str, Any] = state.log_history[-1]
            log[BATCHES] = self.fingerprint

    def add(self, batches: Sequence[Any], step: int) -> None:
        """Take the micro-batches of a step in, the first step is 1: of tensors, or lists of rows
        with prompts, to which the answers are not there yet.
        """
        for batch in batches:
            sum_of = prompts_sum if isinstance(batch, list) else rows_sum
            self.pending += sum_of(batch, step)

    def add_up(self) -> None:
        """Add the sums of all ranks up. Collective."""
        pending = self.pending % MODULUS
        signed = pending - MODULUS if pending >= MODULUS // 2 else pending
        of_rank = torch.tensor(signed, device=PartialState().device)
        of_all = reduce(of_rank, "sum").item()
        if self.total is not None:
            self.total = (self.total + of_all) % MODULUS
        self.pending = 0


def rows_sum(batch: Mapping[str, Any], step: int) -> int:
    """The sum over the rows of a batch of an XXH3 (64 bits) of what the model learns from each."""
    columns = {
        name: value.detach().cpu().numpy()
        for name, value in sorted(batch.items())
        if isinstance(value, torch.Tensor) and value.ndim == 2
    }
    total = 0
    for row, learned in enumerate(_learned_places(columns)):
        places = learned.nonzero()[0]
        if len(places) == 0:  # nothing but padding
            continue
        stop = places[-1] + 1
        digest = xxhash.xxh3_64(seed=step)
        for column in columns.values():
            digest.update(column[row, :stop].tobytes())
        total += digest.intdigest()
    return total


def prompts_sum(batch: Sequence[Mapping[str, Any]], step: int) -> int:
    """The sum over the prompts of a batch that a trainer answers itself of an XXH3 (64 bits)."""
    return sum(xxhash.xxh3_64_intdigest(row["prompt"].encode(), seed=step) for row in batch)


def _learned_places(columns: Mapping[str, np.ndarray]) -> Any:
    """Whether the loss counts each place of a batch (rows x length)."""
    if "labels" in columns:
        return columns["labels"] != IGNORED
    # Of TRL: the answers to the prompts.
    return columns["completion_mask"] != 0


def trace_run(trainer: Trainer, documents: Mapping[str, Any] | None) -> None:
    """Let a trainer, of whichever class, keep what its run begins with and what it is given.

    Args:
        documents: the texts of each split; None: nobody says.

    Raises StartDiffersError: see `check_start`.
    """
    trace = BatchTrace()
    if is_main_rank():
        trace.start = start_of(trainer, documents)
    check_start(trace.start)
    trainer.add_callback(trace)
    next_batches = trainer.get_batch_samples
    save = trainer._save_checkpoint

    def traced_batches(*args: Any, **kwargs: Any) -> Any:
        batches, num_items = next_batches(*args, **kwargs)
        trace.add(batches, trainer.state.global_step + 1)
        return batches, num_items

    def save_traced(*args: Any, **kwargs: Any) -> None:
        trace.add_up()  # of all ranks, for the checkpoint of rank 0
        save(*args, **kwargs)

    vars(trainer).update(get_batch_samples=traced_batches, _save_checkpoint=save_traced)


def trace_of(trainer: Trainer) -> BatchTrace | None:
    """What `trace_run` keeps of a trainer; None: it does not."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, BatchTrace):
            return callback
    return None
