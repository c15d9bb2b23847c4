"""`transformers.Trainer` with exact losses, and the arguments it gets on the machine at hand."""

import contextlib
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils import ModelOutput

from hfscale.data.packing import IGNORED
from hfscale.process import InputError, is_main_rank, launched_engine, planned_launch
from hfscale.training.checkpoints import CheckpointManifest, StopOnSignal
from hfscale.training.micro_batches import find_pieces, split_batch
from hfscale.training.ranks import check_same_software
from hfscale.training.sharing import check_sharing

BF16_MIN_WIDTH = (
    256  # below it, casting costs more than bf16 matrix units save (measured on a CPU with AMX)
)
# Upstream takes zero or less for these, and then trains on nothing, never saves or stops halfway.
POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "save_steps",
    "eval_steps",
)


def training_arguments(
    values: dict[str, Any], *, width: int, cls: type[TrainingArguments] = TrainingArguments, **more
) -> TrainingArguments:
    """`cls(**values, **more)` with what the machine suggests where the user said nothing.

    bf16 where there are matrix units for it and the model is at least 256 wide, the CPU where
    accelerate was told so, no filter that logs a NaN loss as 0, TensorBoard's logs, on the Hub only
    the finished run, and no search of DDP for parameters that a step leaves out (a model that has
    such needs `ddp_find_unused_parameters: true`). See `check_sharing` for trackers and the Hub.

    Raises:
        InputError: what upstream refuses, in one line; fp16 on a CPU, which upstream ignores.
    """
    values = {
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",
        "greater_is_better": False,
        "report_to": "tensorboard",
        "hub_strategy": "end",
        "ddp_find_unused_parameters": False,
        "accelerator_config": {
            "dispatch_batches": False
        },  # each rank reads its own share of a stream
        **values,
    }
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    on_cpu = values.get("use_cpu", told) or not torch.accelerator.is_available()
    elsewhere = planned_launch() is not None  # GPUs, for which this CPU shows what a run would be
    if elsewhere:
        values = {name: value for name, value in values.items() if name != "tf32"}
    if on_cpu and values.get("fp16") and not elsewhere:
        raise InputError("fp16: a CPU does not train in float16; use bf16 or leave it out")
    if not values.keys() & {"bf16", "fp16"}:
        values["bf16"] = width >= BF16_MIN_WIDTH and (elsewhere or has_bf16_units(on_cpu))
    if on_cpu:
        values = {"use_cpu": True, "dataloader_pin_memory": False, **values}
    try:
        for name, value in values.items():
            if (
                name in POSITIVE
                and value is not None
                and value <= 0
                or (name, value) == ("max_steps", 0)
            ):
                raise ValueError(f"{name}: got {value}, expected more than 0")
        args = cls(**values, **more)
        _try_out(args)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training arguments: {' '.join(str(error).split())}") from None
    check_sharing(args)
    return args


def batch_rows_of_like_length(training_args: TrainingArguments, args: Any) -> None:
    """Rows that are padded (`args.packing` none) share a batch with others of about their length,
    unless the user chose another `train_sampling_strategy`.
    """
    if args.packing == "none":
        training_args.train_sampling_strategy = args.training.get(
            "train_sampling_strategy", "group_by_length"
        )


def _try_out(args: TrainingArguments) -> None:
    """Raise ValueError or TypeError for what upstream finds wrong only after the data is prepared,
    or at the first evaluation: here AdamW and the schedule are made for a single number.
    """
    betas, parameter = (args.adam_beta1, args.adam_beta2), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW(
        [parameter], args.learning_rate, betas, args.adam_epsilon, args.weight_decay
    )
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(1000),
        1000,
        args.lr_scheduler_kwargs,
    )
    if not 0 <= args.label_smoothing_factor < 1:
        raise ValueError(
            f"label_smoothing_factor: got {args.label_smoothing_factor}, expected from 0 to below 1"
        )
    if args.seed < 0:
        raise ValueError(f"seed: got {args.seed}, expected at least 0")
    if missing := set(args.report_to) - set(available := get_available_reporting_integrations()):
        raise ValueError(
            f"report_to: {missing.pop()} is unknown or not installed; here: "
            f"{', '.join(available)}, none"
        )


def has_bf16_units(on_cpu: bool) -> bool:
    """Whether the device multiplies bf16 matrices faster than float32 ones."""
    if not on_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(
            Path("/proc/cpuinfo").read_text().split()
        )
    except OSError:
        return False


def next_token_loss(
    outputs: ModelOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    balance_weight: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood, in nats, of the labels (batch x length) that are not -100, each
    predicted from the places before it: its mean, or the sum over `num_items_in_batch`. Where a
    model's configuration lets it return how unevenly its experts are used (`output_router_logits`),
    that counts with `balance_weight`, as upstream's does.
    """
    loss = ForCausalLMLoss(outputs.logits, labels, outputs.logits.shape[-1], num_items_in_batch)
    imbalance = outputs.get("aux_loss")
    return loss if imbalance is None else loss + balance_weight * imbalance.to(loss.device)


class LMTrainer(Trainer):
    """`Trainer` whose losses are exact token means, for any batch size, row length and number of
    ranks.

    Training: models compute losses of their own; GPT-2's divides by all labels although the first
    of each row is never predicted, some do not shift them. So the loss is taken from the logits
    (`next_token_loss`). Evaluation: upstream averages batch means; here each row's summed loss and
    number of targets are gathered and divided once. `eval_bits_per_byte` needs rows with a column
    `num_bytes` (see `pack_documents`). `compute_metrics` is not used. `fixed_settings`: see
    `CheckpointManifest`. `auto_batch`: each step's rows go through in the largest micro-batches
    that memory holds. `can_resume`: the recipe has --resume.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        fixed_settings: dict[str, Any] | None = None,
        auto_batch: bool = False,
        can_resume: bool = True,
        **kwargs,
    ):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.loss_type = "ForCausalLM"  # so that Trainer counts the labels that are predicted
        self._saved_use_cache = getattr(
            base.config, "use_cache", None
        )  # none: the model has no cache
        self._pieces = (
            None if auto_batch else 1
        )  # micro-batches of a batch; None: to be found at the first step
        if auto_batch:
            args.per_device_train_batch_size *= args.gradient_accumulation_steps
            args.gradient_accumulation_steps = 1
        if not args.label_smoothing_factor:  # else upstream's smoothed loss
            balance_weight = getattr(base.config.get_text_config(), "router_aux_loss_coef", 0.0)
            kwargs.setdefault(
                "compute_loss_func", partial(next_token_loss, balance_weight=balance_weight)
            )
        super().__init__(model=model, args=args, **kwargs)
        try:
            self._check_launch()
        except InputError:
            with contextlib.suppress(
                OSError
            ):  # made by Trainer a moment ago, unless it holds something
                Path(args.output_dir).rmdir()
            raise
        self.add_callback(CheckpointManifest(fixed_settings))
        self._stop_on_signal = StopOnSignal(can_resume)
        self.add_callback(self._stop_on_signal)

    def _check_launch(self) -> None:
        """Refuse a launch that accelerate quietly turned into something else, or of unlike
        machines.
        """
        check_same_software()
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.args.world_size:
            raise InputError(
                f"{launched} processes were launched but each would train alone: this machine has "
                "no device for them; add --use_cpu true or launch one process"
            )
        if (
            launched_engine() == "FSDP"
            and self.accelerator.distributed_type != DistributedType.FSDP
        ):
            raise InputError(
                "the launch config asks for FSDP, which accelerate does not run on a CPU (it would "
                "train unsharded); use --accelerate cpu_2proc or zero2 here"
            )

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:  # an error ends a training without `on_train_end`
            self._stop_on_signal.restore()

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self._pieces is None:
            self._pieces = self._find_pieces(model, inputs, num_items_in_batch)
        *others, last = split_batch(inputs, self._pieces) if self._pieces > 1 else [inputs]
        with self.accelerator.no_sync(model) if others else contextlib.nullcontext():
            losses = [
                super(LMTrainer, self).training_step(model, piece, num_items_in_batch)
                for piece in others
            ]
        loss = sum(losses, start=super().training_step(model, last, num_items_in_batch))
        if not torch.isfinite(loss):  # before the optimizer steps: the weights are still good
            raise FloatingPointError(
                f"the training loss became {loss.item()} at step {self.state.global_step + 1}; the "
                "weights of the last checkpoint are good; try a lower learning_rate"
            )
        return loss

    def _find_pieces(self, model, inputs, num_items_in_batch) -> int:
        def try_piece(piece):
            with self.accelerator.no_sync(model):
                super(LMTrainer, self).training_step(model, piece, num_items_in_batch)

        if self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise InputError(
                "--auto_batch tries sizes out, which ranks that share a model's state cannot do "
                "each for itself; take the sizes that hfscale plan names, or --accelerate ddp"
            )
        pieces = find_pieces(model, inputs, try_piece)
        if is_main_rank():
            rows = len(inputs["input_ids"])
            print(
                f"auto_batch: {rows} rows per process and step, in {min(pieces, rows)} "
                "micro-batches",
                file=sys.stderr,
            )
        return pieces

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Without a cache also where Trainer does not reach the setting, in a configuration within
        a configuration: with one, position ids keep no documents apart.
        """
        inputs = {**inputs, "use_cache": False}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Each row's summed loss in nats and its number of targets, in the places of logits and
        labels.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs, use_cache=False).logits
        # Row by row: the float32 copy of a whole batch's logits would be the largest tensor of the
        # run.
        nll = torch.stack(
            [
                F.cross_entropy(row[:-1].float(), target[1:], ignore_index=IGNORED, reduction="sum")
                for row, target in zip(logits, labels, strict=True)
            ]
        )
        count = (labels[:, 1:] != IGNORED).sum(dim=1)
        return nll.sum() / count.sum(), nll, count

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, dict):  # `validation` is the run's own text and keeps the plain names
            prefixes = {
                name: metric_key_prefix + f"_{name}" * (name != "validation") for name in data
            }
            parts = [
                self.evaluate(data[name], ignore_keys, prefix) for name, prefix in prefixes.items()
            ]
            return {name: value for part in parts for name, value in part.items()}
        has_bytes = isinstance(data, Dataset) and "num_bytes" in data.column_names
        self._num_eval_bytes = sum(data["num_bytes"]) if has_bytes else None
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def metrics_before(self) -> dict[str, float]:
        """The evaluation before the first step (`eval_on_start`), as `before_eval_loss` and so
        on.
        """
        start = [log for log in self.state.log_history if log["step"] == 0]
        return {
            f"before_{name}": value
            for log in reversed(start)
            for name, value in log.items()
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
        }

    def evaluation_loop(
        self,
        dataloader,
        description,
        prediction_loss_only=None,
        ignore_keys=None,
        metric_key_prefix="eval",
    ):
        output = super().evaluation_loop(
            dataloader, description, False, ignore_keys, metric_key_prefix
        )
        nll, tokens = output.predictions.sum(dtype=np.float64), int(output.label_ids.sum())
        if not np.isfinite(nll):
            bad = int((~np.isfinite(output.predictions)).sum())
            raise FloatingPointError(
                f"the evaluation loss of {bad} of {len(output.predictions)} rows is not finite"
            )
        exact = {"loss": nll / tokens, "perplexity": _exp(nll / tokens), "tokens": tokens}
        if self._num_eval_bytes:
            exact["bits_per_byte"] = nll / math.log(2) / self._num_eval_bytes
        output.metrics.update(
            {f"{metric_key_prefix}_{name}": value for name, value in exact.items()}
        )
        return output

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the configuration as the model came; Trainer switches its `use_cache` off to train.
        Nothing is pushed to the Hub yet: the run's record and model card come last (`share_run`).
        """
        config, while_training = self.model.config, self.model.config.use_cache
        if self._saved_use_cache is not None:
            config.use_cache = self._saved_use_cache
        super().save_model(output_dir, _internal_call=True)
        config.use_cache = while_training

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs["perplexity"] = _exp(logs["loss"])
        super().log(logs, start_time)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
