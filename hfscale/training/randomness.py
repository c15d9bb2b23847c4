"""What a training draws at random depends on its seed and its steps alone: not on how often it is
evaluated, nor on where it was broken off.
"""

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from hfscale.data.repacking import RepackedRows


def evaluate_apart(trainer: Trainer) -> None:
    """Let evaluations leave the random numbers as they were: each pass over a data loader draws
    one, after which all dropout would be another.
    """
    evaluate = trainer.evaluate

    def apart(*args: Any, **kwargs: Any) -> dict[str, float]:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            return evaluate(*args, **kwargs)

    setattr(trainer, "evaluate", apart)  # noqa: B010  # it is a method to the type checker


class SeededEpochs(TrainerCallback):
    """Tells what else draws an order for each epoch the number of the epoch, as accelerate tells
    its sampler.

    Rows of like length: upstream takes the random numbers of the moment, which are others where a
    run goes on within a later epoch than its first. `RepackedRows`: accelerate tells a data set
    only on one process, and not in an epoch within which a run goes on.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        """Seed the sampler of `train_sampling_strategy` group_by_length, or tell `RepackedRows`."""
        epoch = int(state.epoch or 0)
        rows = getattr(train_dataloader, "dataset", None)
        if isinstance(rows, RepackedRows):
            rows.set_epoch(epoch)
        batches: Any = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):  # of one that takes a process's share
            batches = batches.batch_sampler
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, LengthGroupedSampler):
            seed = args.seed if args.data_seed is None else args.data_seed
            sampler.generator = torch.Generator().manual_seed(seed + epoch)
