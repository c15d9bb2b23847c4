"""What a training shows while it runs: a line at its beginning, and lines that a person reads."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

from hfscale.shown import show_text

ESTIMATE_STEPS = 5  # after so many it is said how long all of them take
# Of a log, what the line says in other words, or what is no news.
NOT_SHOWN = (
    "epoch",
    "grad_norm",
    "total_flos",
    "num_input_tokens_seen",
    "perplexity",
    "train_runtime",
    "train_loss",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_tokens_per_second",
    "learning_rate",
)
# Of rewards, what the report has: shown are their mean, the KL, the entropy and the length.
OF_GROUPS = (
    "rewards/",
    "reward_std",
    "clip_ratio/",
    "completions/min",
    "completions/max",
    "completions/mean_terminated",
    "completions/clipped",
    "num_tokens",
    "step_time",
)
COSTS = ("_runtime", "_per_second", "_tokens")  # of an evaluation: ends of names


def show_progress(trainer: Trainer) -> None:
    """Put `LogLines` in the place of what upstream prints, the log as a dictionary; draw no bar for
    each file that is saved.
    """
    disable_progress_bar()
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogLines())


class LogLines(ProgressCallback):
    """Upstream's bar where a terminal shows it, and each log as a line (rank 0)."""

    def __init__(self) -> None:
        super().__init__()
        # When the first step began, in seconds of a clock that only goes forward; None: none has.
        self.started: float | None = None
        self.first_step = 0
        self.tokens = 0  # read before this start
        self.has_estimate = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Say what begins."""
        self.started = None
        self.first_step = self.current_step = state.global_step
        self.tokens = int(state.num_input_tokens_seen)
        if not state.is_world_process_zero:
            return
        show_text(start_line(args, state), flush=True)
        if has_bar(args):
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Start the clock; an evaluation may have come before."""
        if self.started is None:
            self.started = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Move the bar, or say once how long it will take."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)
        elif state.is_world_process_zero and not self.has_estimate:
            self._estimate(state)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Move the bar of an evaluation."""
        if has_bar(args):
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line."""
        if not state.is_world_process_zero or not logs:
            return
        line = log_line(logs, state, self._speed(state))
        if self.training_bar is not None:
            self.training_bar.clear()  # it is drawn anew below the line
        show_text(line, flush=True)  # a log file is read while it grows
        self.has_estimate = self.has_estimate or "left" in line

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _estimate(self, state: TrainerState) -> None:
        """How long the whole run will take, once, where no log has come before."""
        steps = state.global_step - self.first_step
        if steps < ESTIMATE_STEPS or state.global_step >= state.max_steps:
            return
        self.has_estimate = True
        speed = self._speed(state)
        show_text(f"step {state.global_step}/{state.max_steps} | {left(state, speed)}", flush=True)

    def _speed(self, state: TrainerState) -> tuple[float, float]:
        """Steps and tokens per second since the first step of this start."""
        if self.started is None:
            return 0.0, 0.0
        seconds = max(time.monotonic() - self.started, 1e-9)
        steps = state.global_step - self.first_step
        tokens = int(state.num_input_tokens_seen) - self.tokens
        return steps / seconds, tokens / seconds


def has_bar(args: TrainingArguments) -> bool:
    """A bar is for a terminal."""
    return sys.stderr.isatty() and not args.disable_tqdm


def start_line(args: TrainingArguments, state: TrainerState) -> str:
    """On what a run trains, how long, and where its results will be."""
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = f"{state.max_steps} steps of {rows} rows"
    if state.global_step:
        steps = f"steps {state.global_step + 1} to {state.max_steps}, of {rows} rows each"
    processes = f"{args.world_size} processes on " if args.world_size > 1 else ""
    return f"training: {steps}, {processes}{args.device.type}, {precision}; into {args.output_dir}"


def log_line(
    logs: Mapping[str, Any], state: TrainerState, speed: tuple[float, float] = (0.0, 0.0)
) -> str:
    """A log of Trainer as one line.

    Args:
        logs: of a training step, of an evaluation, or the last one, of the whole training.
        speed: steps and tokens per second.
    """
    step = f"step {state.global_step}/{state.max_steps}"
    if "train_runtime" in logs and "loss" not in logs:
        parts = [f"trained to {step}", f"{clock(logs['train_runtime'])}"]
        if "train_loss" in logs:
            parts.append(f"mean loss {shown(logs['train_loss'])}")
        return " | ".join(parts)
    parts = [step, *_measured(logs)]
    if "loss" in logs:
        parts += _of_training(logs, state, speed)
    else:
        costs = [value for name, value in logs.items() if name.endswith("_runtime")]
        parts += [clock(seconds) for seconds in costs[:1]]
    return " | ".join(parts)


def _measured(logs: Mapping[str, Any]) -> Iterator[str]:
    """Losses and metrics, by the names that they have in the record."""
    for name, value in logs.items():
        is_number = isinstance(value, int | float)
        is_shown = name not in NOT_SHOWN and not name.removeprefix("eval_").startswith(OF_GROUPS)
        if is_number and is_shown and not name.endswith(COSTS):
            yield f"{name} {shown(value)}"


def _of_training(
    logs: Mapping[str, Any], state: TrainerState, speed: tuple[float, float]
) -> Iterator[str]:
    if "learning_rate" in logs:
        yield f"lr {logs['learning_rate']:.2g}"
    steps_per_second, tokens_per_second = speed
    if tokens_per_second:
        yield f"{thousands(tokens_per_second)} tok/s"
    if steps_per_second and state.global_step < state.max_steps:
        yield left(state, speed)


def left(state: TrainerState, speed: tuple[float, float]) -> str:
    """How long the steps that remain take at this speed."""
    return f"{clock((state.max_steps - state.global_step) / speed[0])} left"


def shown(value: float) -> str:
    """Four digits, as many as a loss is known to."""
    return f"{value:,.0f}" if abs(value) >= 10_000 and math.isfinite(value) else f"{value:.4g}"


def thousands(value: float) -> str:
    """A rate, from a thousand on with a k."""
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes with their unit; short times in seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60} h {minutes % 60:02d} min"
