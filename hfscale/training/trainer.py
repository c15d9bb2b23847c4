"""`transformers.Trainer` with exact losses."""

import contextlib
import inspect
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import DistributedType
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_utils import EvalLoopOutput

from hfscale.process import InputError, is_main_rank, launched_engine
from hfscale.training.micro_batches import find_pieces, split_batch
from hfscale.training.ranks import check_same_software

IGNORED = -100  # label that the loss passes over: the ignore_index of torch's own losses
MOST_NATS = 700.0  # a float64 holds no perplexity of a loss much above it


def next_token_loss(
    outputs: CausalLMOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of the labels, each predicted from the places before it.

    Args:
        outputs: with `logits` (batch x length x vocabulary).
        labels: token ids (batch x length); those that are -100 are not predicted.
        num_items_in_batch: predicted labels of all micro-batches and ranks of a step.

    Returns:
        A single number in nats: the mean over the predicted labels, or, where their number in the
        whole step is given, the sum divided by it.
    """
    logits = outputs.logits
    assert logits is not None
    vocab_size = logits.shape[-1]
    # Upstream's type names a tensor alone; its code divides by either.
    items: Any = num_items_in_batch
    return ForCausalLMLoss(logits, labels, vocab_size, items)


class LossPart(NamedTuple):
    """What of a micro-batch's loss is trained and logged apart, not shown as part of the loss."""

    name: str  # in the logs
    added: torch.Tensor  # to the loss
    value: torch.Tensor  # as it is logged: the mean over micro-batches and ranks, by their shares
    share: torch.Tensor  # of the step's predicted labels that are in the micro-batch


class LMTrainer(Trainer):
    """`Trainer` whose losses are exact token means, for any batch size, row length and number of
    ranks.

    Training: models compute losses of their own; GPT-2's divides by all labels although the first
    of each row is never predicted, some do not shift them. So the loss is taken from the logits
    (`next_token_loss`). Evaluation: upstream averages batch means; here each row's summed loss and
    number of targets are gathered and divided once. `eval_bits_per_byte` needs rows with a column
    `num_bytes` (see `pack_documents`). `compute_metrics` is not used.

    Where a mixture of experts returns how unevenly its experts are used (`output_router_logits`),
    that is trained too, with the weight `router_aux_loss_coef`: of a step the mean over its
    micro-batches and ranks by their predicted labels. It is logged apart, as `router_loss` without
    the weight, and is no part of any loss or perplexity that is shown. The folder that is saved
    does not ask for it: upstream's `generate` fails where it does.

    Args:
        model: any causal language model, or a `peft.PeftModel` of one.
        args: as `training_arguments` makes them.
        auto_batch: each step's rows go through in the largest micro-batches that memory holds.
        kwargs: of `Trainer`.

    Raises:
        InputError: a launch whose ranks would not train together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        auto_batch: bool = False,
        **kwargs: Any,
    ):
        below_adapter = getattr(model, "get_base_model", None)
        base = below_adapter() if below_adapter else model
        # With this name, Trainer counts the labels that are predicted.
        base.loss_type = "ForCausalLM"
        # None: the model has no cache.
        self._saved_use_cache = getattr(base.config, "use_cache", None)
        # Micro-batches of a batch; None: to be found at the first step.
        self._pieces = None if auto_batch else 1
        self._num_eval_bytes: int | None = None
        self._flops_per_token: int | None = None
        text_config = base.config.get_text_config()
        self._router_weight = getattr(text_config, "router_aux_loss_coef", 0.0)
        # Asked for at each step, not by the configuration, with which upstream's `generate` fails.
        inputs = inspect.signature(base.forward).parameters
        self._asks_router = (
            getattr(text_config, "output_router_logits", False) and "output_router_logits" in inputs
        )
        if self._asks_router:
            text_config.output_router_logits = False
        self._loss_parts: list[LossPart] = []  # of a step
        # By their names value times share, and shares, summed since the last log.
        self._part_sums: dict[str, torch.Tensor] = {}
        if auto_batch:
            args.per_device_train_batch_size *= args.gradient_accumulation_steps
            args.gradient_accumulation_steps = 1
        if not args.label_smoothing_factor:  # with it, the loss is upstream's smoothed one
            kwargs.setdefault("compute_loss_func", next_token_loss)
        super().__init__(model=model, args=args, **kwargs)
        try:
            self._check_launch()
        except InputError:
            # Trainer made the folder a moment ago, unless it holds something.
            with contextlib.suppress(OSError):
                Path(str(args.output_dir)).rmdir()
            raise

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
        if self._ranks_of_a_row() > 1:
            raise InputError(
                "the launch config asks for tensor, context or sequence parallelism, under which "
                "losses or their counts would be wrong; leave it out, and see docs/launching.md"
            )
        is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if launched_engine() == "FSDP" and not is_sharded:
            raise InputError(
                "the launch config asks for FSDP, which accelerate does not run on a CPU (it would "
                "train unsharded); use --accelerate cpu_2proc or zero2 here"
            )

    def _ranks_of_a_row(self) -> int:
        """How many ranks work on the same row together."""
        plugin = self.accelerator.state.deepspeed_plugin
        settings = plugin.deepspeed_config if plugin else {}
        # Upstream sees it in the arguments alone, and not in a launch config.
        by_deepspeed = settings.get("tensor_parallel", {}).get("autotp_size", 1)
        tp_size = max(by_deepspeed, self.get_tp_size())
        return tp_size * self.get_cp_size() * self.get_sp_size()

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward pass of a batch, in micro-batches where `auto_batch` asks for them;
        returns its loss in nats per predicted token of the step.

        Raises FloatingPointError: the loss is not finite. The optimizer has not stepped yet, so the
        weights are still good.
        """
        if self._pieces is None:
            self._pieces = self._find_pieces(model, inputs, num_items_in_batch)
        self._loss_parts.clear()
        pieces = [inputs] if self._pieces == 1 else split_batch(inputs, self._pieces)
        *earlier, last = pieces
        # The ranks exchange gradients with the last micro-batch alone.
        alone = self.accelerator.no_sync(model) if earlier else contextlib.nullcontext()
        with alone:
            losses = [
                super(LMTrainer, self).training_step(model, piece, num_items_in_batch)
                for piece in earlier
            ]
        last_loss = super().training_step(model, last, num_items_in_batch)
        loss = sum(losses, start=last_loss)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the training loss became {loss.item()} at step {self.state.global_step + 1}; try "
                "a lower learning_rate"
            )
        for part in self._loss_parts:
            sums = torch.stack([part.share * part.value, part.share])
            self._part_sums[part.name] = self._part_sums.get(part.name, 0) + sums
            loss = loss - part.added
        return loss

    def _find_pieces(self, model, inputs, num_items_in_batch) -> int:
        """Into how many micro-batches a batch has to be split; said on stderr."""
        if self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise InputError(
                "--auto_batch tries sizes out, which ranks that share a model's state cannot do "
                "each for itself; take the sizes that hfscale plan names, or --accelerate ddp"
            )

        def try_piece(piece):
            with self.accelerator.no_sync(model):
                super(LMTrainer, self).training_step(model, piece, num_items_in_batch)

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
        """As upstream, without a cache also where Trainer does not reach the setting, in a
        configuration within a configuration: with one, position ids keep no documents apart.
        """
        inputs = {**inputs, "use_cache": False}
        if self._asks_router:
            inputs["output_router_logits"] = True
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        imbalance = outputs.get("aux_loss")
        if imbalance is not None and num_items_in_batch is not None:
            share = (labels[:, 1:] != IGNORED).sum() / num_items_in_batch
            added = self.summed_over_ranks(share * self._router_weight * imbalance)
            loss = loss + added
            self.log_apart("router_loss", added, imbalance, share)
        return (loss, outputs) if return_outputs else loss

    def summed_over_ranks(self, loss: torch.Tensor) -> torch.Tensor:
        """What of a step's loss is in a micro-batch, so that its gradients, of which the ranks take
        the mean, add up: as upstream has it.
        """
        if self.args.average_tokens_across_devices:
            return loss * self.accelerator.num_processes
        return loss

    def log_apart(
        self, name: str, added: torch.Tensor, value: torch.Tensor, share: torch.Tensor
    ) -> None:
        """Log a part of a micro-batch's loss under its own name, and leave it out of the loss that
        is shown; for `compute_loss`. See `LossPart`.
        """
        self._loss_parts.append(LossPart(name, added.detach(), value.detach(), share.detach()))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The batch's mean loss and, in the places of logits and labels, each row's summed loss in
        nats and its number of targets (both as long as the batch has rows).
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs, use_cache=False).logits
        # Row by row: the float32 copy of a whole batch's logits would be the largest tensor of the
        # run.
        row_nll = [
            F.cross_entropy(row[:-1].float(), target[1:], ignore_index=IGNORED, reduction="sum")
            for row, target in zip(logits, labels, strict=True)
        ]
        nll = torch.stack(row_nll)
        count = (labels[:, 1:] != IGNORED).sum(dim=1)
        return nll.sum() / count.sum(), nll, count

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> dict[str, float]:
        """As upstream, with exact metrics. Of several sets, `validation` is the run's own text and
        keeps the plain names (`eval_loss`), others have theirs in it (`eval_forget_loss`).
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, dict):
            metrics = {}
            for name, part in data.items():
                plain = name == "validation"
                prefix = metric_key_prefix if plain else f"{metric_key_prefix}_{name}"
                metrics.update(self.evaluate(part, ignore_keys, prefix))
            return metrics
        self._num_eval_bytes = None
        if isinstance(data, Dataset) and "num_bytes" in data.column_names:
            self._num_eval_bytes = sum(data["num_bytes"])
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def metrics_before(self) -> dict[str, float]:
        """The evaluation before the first step (`eval_on_start`), as `before_eval_loss` and so
        on.
        """
        at_start = [log for log in self.state.log_history if log["step"] == 0]
        before = {}
        for log in reversed(at_start):
            for name, value in log.items():
                is_speed = name.endswith(("_runtime", "_per_second"))
                if name.startswith("eval_") and not is_speed:
                    before[f"before_{name}"] = value
        return before

    def evaluation_loop(
        self,
        dataloader,
        description,
        prediction_loss_only=None,
        ignore_keys=None,
        metric_key_prefix="eval",
    ) -> EvalLoopOutput:
        """As upstream; the metrics are loss and perplexity (exact token means), the number of
        predicted tokens and, where the text's bytes are known, bits per byte.

        Raises FloatingPointError: the loss of a row is not finite.
        """
        # Upstream types its output for models of any kind; `prediction_step` makes it two arrays.
        output: Any = super().evaluation_loop(
            dataloader, description, False, ignore_keys, metric_key_prefix
        )
        row_nll = output.predictions
        nll = row_nll.sum(dtype=np.float64)
        tokens = int(output.label_ids.sum())
        if not np.isfinite(nll):
            bad_rows = int((~np.isfinite(row_nll)).sum())
            raise FloatingPointError(
                f"the evaluation loss of {bad_rows} of {len(row_nll)} rows is not finite"
            )
        for name, value in token_metrics(nll, tokens, self._num_eval_bytes).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the configuration as the model came; Trainer switches its `use_cache` off to train.
        Nothing is pushed to the Hub yet: the run's record and model card come last (`share_run`).
        """
        model: Any = self.model
        config = model.config
        while_training = config.use_cache
        if self._saved_use_cache is not None:
            config.use_cache = self._saved_use_cache
        super().save_model(output_dir, _internal_call=True)
        config.use_cache = while_training

    def floating_point_ops(self, inputs: dict[str, torch.Tensor | Any]) -> int:
        """As upstream, which counts the parameters anew at every batch."""
        if self._flops_per_token is None:
            one_token = {"input_ids": torch.zeros(1, 1)}
            self._flops_per_token = super().floating_point_ops(one_token)
        return self._flops_per_token * inputs["input_ids"].numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As upstream, with the perplexity beside each training loss, and what is logged apart: how
        unevenly experts were used, by their model's own measure.
        """
        if "loss" in logs:
            logs["perplexity"] = perplexity_of(logs["loss"])
            for name, sums in self._part_sums.items():
                total, shares = self.accelerator.reduce(sums, "sum").tolist()  # over all ranks
                logs[name] = total / shares
            self._part_sums.clear()
        super().log(logs, start_time)


def token_metrics(nll: float, tokens: int, num_bytes: int | None) -> dict[str, float]:
    """Loss in nats per token, perplexity, tokens and, where the text's bytes are known, bits per
    byte, of a text's summed loss in nats.
    """
    loss = nll / tokens
    metrics = {"loss": loss, "perplexity": perplexity_of(loss), "tokens": tokens}
    if num_bytes:
        metrics["bits_per_byte"] = nll / math.log(2) / num_bytes
    return metrics


def perplexity_of(loss: float) -> float:
    """e to a loss in nats per token; infinite beyond what a float64 holds."""
    return math.exp(loss) if loss < MOST_NATS else math.inf
