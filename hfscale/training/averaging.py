"""The average of the weights over a training's steps, evaluated and saved in their place."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfscale.arguments import AveragingArguments
from hfscale.data.repacking import RepackedRows
from hfscale.folders import AVERAGED_WEIGHTS
from hfscale.process import UNSHARDED, InputError, is_main_rank, launched_engine
from hfscale.training.preview import count_steps

EMA_DECAY = 0.999  # where nothing is said: torch's
# Where nothing is said: as a share of the run's steps. torch.optim.swa_utils begins a tail there.
START = {"ema": 0.0, "tail": 0.75}


def check_averaging(args: AveragingArguments, training_args: TrainingArguments) -> None:
    """Refuse what cannot work before anything is read.

    Raises InputError: an argument without the averaging that it belongs to, an engine whose
    processes share the weights out, or a start that is not before the last of `max_steps`.
    """
    if args.ema_decay is not None and args.weight_averaging != "ema":
        raise InputError("ema_decay: works with --weight_averaging ema, which is not given")
    if args.weight_averaging is None:
        if args.averaging_start_step is not None:
            raise InputError("averaging_start_step: works with --weight_averaging ema or tail")
        return
    name = f"weight_averaging {args.weight_averaging}"
    engine = launched_engine()
    if engine != UNSHARDED:
        raise InputError(
            f"{name}: needs whole weights in each process, and {engine} shares them out; use "
            "--accelerate ddp, or leave it out"
        )
    if training_args.max_steps > 0:
        averaging_start(args, training_args.max_steps)


def settle_averaging(
    args: AveragingArguments,
    training_args: TrainingArguments,
    rows: Dataset | IterableDataset | RepackedRows,
) -> None:
    """Set in `args` what they leave open of the averaging, for a run on these training `rows`, so
    that its record and a continuation see it. Raises InputError as `averaging_start`.
    """
    if args.weight_averaging is None:
        return
    # Of a stream the number of rows is not known, but max_steps is given.
    num_rows = 0 if isinstance(rows, IterableDataset) else len(rows)
    args.averaging_start_step = averaging_start(args, count_steps(num_rows, training_args))
    if args.weight_averaging == "ema" and args.ema_decay is None:
        args.ema_decay = EMA_DECAY


def averaging_start(args: AveragingArguments, num_steps: int) -> int:
    """The first step whose weights count. Raises InputError: the run has one step from there on, or
    none, so there is nothing to average.
    """
    assert args.weight_averaging is not None, "asked for a run that averages"
    start = args.averaging_start_step
    if start is None:
        start = START[args.weight_averaging]
    step = max(1, math.ceil(start * num_steps) if start < 1 else math.ceil(start))
    if step >= num_steps:
        raise InputError(
            f"weight_averaging {args.weight_averaging}: nothing to average, it would start at step "
            f"{step} of {num_steps}; lower averaging_start_step, or train more steps"
        )
    return step


class WeightAveraging(TrainerCallback):
    """Averages the trained weights after each step; evaluations and the final model take the
    average, the training goes on with the weights as they are.

    `tail`: the mean of all weights from the first step on that counts (Polyak and Juditsky, 1992;
    Jain et al. 2018, arXiv:1610.03774). `ema`: the exponential moving average, which begins with
    the weights of that step. `torch.optim.swa_utils` computes both.

    Args:
        start_step: the first step whose weights count.
        ema_decay: what an `ema` keeps of itself at each step; None: `tail`.
        checkpoint: the folder of that from which the run goes on; None: it begins.
    """

    def __init__(self, start_step: int, ema_decay: float | None, checkpoint: str | None = None):
        self.start_step = start_step
        self.ema_decay = ema_decay
        self.checkpoint = checkpoint
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.averages: dict[str, torch.Tensor] = {}  # empty before the first step that counts
        self.num_averaged = 0
        self._is_exchanged = False
        self._average: Callable[..., None] = get_swa_multi_avg_fn()
        if ema_decay is not None:
            self._average = get_ema_multi_avg_fn(ema_decay)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Find the weights that are trained, and read their average where the run goes on."""
        assert model is not None, "Trainer names it"
        trained = [pair for pair in model.named_parameters() if pair[1].requires_grad]
        self.parameters = dict(trained)
        self._forget()
        if state.global_step >= self.start_step:
            assert self.checkpoint is not None, "a run that goes on has one"
            self._load(Path(self.checkpoint), state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the weights of the step in."""
        if state.global_step < self.start_step:
            return
        if self.averages:
            weights = [parameter.detach() for parameter in self.parameters.values()]
            self._average(list(self.averages.values()), weights, self.num_averaged)
        else:
            self.averages = {
                name: parameter.detach().clone() for name, parameter in self.parameters.items()
            }
        self.num_averaged += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the average in the model: that of the best checkpoint, where that was loaded."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._forget()
            best_step = state.best_global_step or 0
            if best_step >= self.start_step:
                self._load(Path(state.best_model_checkpoint), best_step)
        self._exchange()
        self._is_exchanged = True
        if is_main_rank():
            print(f"evaluated and saved from here on: {self}")

    def __str__(self) -> str:
        if not self.averages:
            return f"the weights as they are, from before step {self.start_step}"
        last_step = self.start_step + self.num_averaged - 1
        kind = "mean" if self.ema_decay is None else f"moving average (decay {self.ema_decay:g})"
        return f"the {kind} of the weights after steps {self.start_step} to {last_step}"

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint, under the names of the model's weights; nothing
        before the first step that counts.
        """
        if self.averages:
            save_file(self.averages, folder / AVERAGED_WEIGHTS)

    def _forget(self) -> None:
        self.averages = {}
        self.num_averaged = 0

    def _load(self, folder: Path, step: int) -> None:
        """Read the average that a checkpoint of `step` holds.

        Raises InputError: it holds none, or one of other weights.
        """
        file = folder / AVERAGED_WEIGHTS
        averages = load_file(file) if file.is_file() else {}
        if averages.keys() != self.parameters.keys():
            raise InputError(
                f"weight_averaging: {folder} holds no average of the weights that are trained; go "
                "on without weight_averaging, or start a run in another output_dir"
            )
        self.averages = {
            name: averages[name].to(parameter.device) for name, parameter in self.parameters.items()
        }
        self.num_averaged = step - self.start_step + 1

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the average, and bit for bit its own weights after it."""
        if self._is_exchanged:  # an evaluation of several sets calls itself for each
            yield
            return
        self._exchange()
        self._is_exchanged = True
        try:
            yield
        finally:
            self._exchange()
            self._is_exchanged = False

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the numbers and not the tensors, which compiled models and DDP hold on to."""
        for name, average in self.averages.items():
            parameter = self.parameters[name]
            weight = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weight)


def average_weights(
    trainer: Trainer, args: AveragingArguments, checkpoint: str | None = None
) -> None:
    """Let a trainer, of whichever class, average its weights as the settled `args` say (see
    `settle_averaging`) and evaluate the average.

    `checkpoint`: of `newest_checkpoint`; None: from the start.
    """
    if args.weight_averaging is None:
        return
    assert args.averaging_start_step is not None, "settled"
    averaging = WeightAveraging(int(args.averaging_start_step), args.ema_decay, checkpoint)
    trainer.add_callback(averaging)
    evaluate = trainer.evaluate

    def evaluate_average(*args: Any, **kwargs: Any) -> dict[str, float]:
        with averaging.in_place():
            return evaluate(*args, **kwargs)

    setattr(trainer, "evaluate", evaluate_average)  # noqa: B010  # a method to the type checker


def save_average(trainer: Trainer, folder: Path) -> None:
    """Write what a trainer averages, if it does, into a checkpoint's folder."""
    averaging = averaging_of(trainer)
    if averaging is not None:
        averaging.save(folder)


def averaging_of(trainer: Trainer) -> WeightAveraging | None:
    """The averaging of a trainer; None: it has none."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, WeightAveraging):
            return callback
    return None
