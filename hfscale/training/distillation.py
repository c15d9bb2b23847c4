"""A student that learns from the logits of a teacher (Hinton et al. 2015, arXiv:1503.02531; Agarwal
et al. 2024, arXiv:2306.13649).
"""

import inspect
import math
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput

from hfscale.models import context_limit, count_parameters
from hfscale.process import InputError, launched_engine
from hfscale.training.trainer import IGNORED, LMTrainer, next_token_loss, token_metrics

MIB = 2**20


def generalized_jsd(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    beta: float = 0.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """How far the student's next-token distribution Q is from the teacher's P, in nats.

    With P and Q the softmax of logits / temperature and M = beta P + (1 - beta) Q, the generalised
    Jensen-Shannon divergence is beta KL(P || M) + (1 - beta) KL(Q || M) (arXiv:2306.13649,
    equation 1), which vanishes at both ends; there, as in TRL's `generalized_jsd_loss`, beta 0 is
    the forward KL(P || Q) and beta 1 the reverse KL(Q || P).

    Args:
        student_logits, teacher_logits: of the same tokens (... x vocabulary).
        beta: from 0 to 1.
        temperature: above 0.

    Returns:
        The divergence of each place (...), in float32.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


def summed_divergence(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    """The sum of `generalized_jsd` over the places that predict a label, in nats.

    Row by row, and anew in the backward pass: the float32 copies of a whole batch's distributions
    would be the largest tensors of the run.

    Args:
        student_logits, teacher_logits: (batch x length x vocabulary); where one has more tokens
            than the other, as embeddings that are filled up do, those count for neither.
        labels: (batch x length); each is predicted from the place before it, unless it is -100.
    """
    shared = min(student_logits.shape[-1], teacher_logits.shape[-1])

    def row_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return generalized_jsd(student, teacher, beta, temperature).sum()

    sums = []
    for student, teacher, row_labels in zip(student_logits, teacher_logits, labels, strict=True):
        predicts = row_labels[1:] != IGNORED
        rows = (logits[:-1, :shared][predicts] for logits in (student, teacher))
        sums.append(checkpoint(row_sum, *rows, use_reentrant=False))
    return torch.stack(sums).sum()


class DistillationTrainer(LMTrainer):
    """`LMTrainer` whose student also learns from a teacher's distribution of each next token.

    The loss is (1 - kd_ratio) cross-entropy + kd_ratio temperature^2 divergence
    (`generalized_jsd`): the square keeps the teacher's gradients, which shrink with it, as large
    beside the text's at any temperature (arXiv:1503.02531, section 2). Both are exact means over
    the predicted tokens of the step. Logged are the cross-entropy as `loss`, which is that of a
    training without a teacher, and the divergence, without its factors, as `divergence`.

    Args:
        model: the student.
        args: as `training_arguments` makes them.
        teacher: has the student's vocabulary; every process holds it whole, in eval mode.
        beta, temperature: see `generalized_jsd`.
        kd_ratio: the teacher's share of the loss, from 0 to 1.
        kwargs: of `LMTrainer`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        teacher: PreTrainedModel,
        beta: float,
        temperature: float,
        kd_ratio: float,
        **kwargs: Any,
    ):
        super().__init__(model, args, **kwargs)
        self.teacher = teacher.requires_grad_(False).eval().to(args.device)
        self._teacher_reads = inspect.signature(teacher.forward).parameters.keys() - {"labels"}
        self.beta = beta
        self.temperature = temperature
        self.kd_ratio = kd_ratio

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As `LMTrainer`, of the text and the teacher together; a teacher without a share in it is
        not asked.
        """
        if self.kd_ratio:
            with torch.no_grad():
                known = self._known_to_teacher(inputs)
                teacher_logits = self.teacher(**known, use_cache=False).logits
            # Upstream hands a loss function the student's outputs and the labels.
            self.compute_loss_func = partial(self._mixed_loss, teacher_logits)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _known_to_teacher(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The columns that the student reads may be more than the teacher does."""
        return {name: value for name, value in inputs.items() if name in self._teacher_reads}

    def _mixed_loss(
        self,
        teacher_logits: torch.Tensor,
        outputs: CausalLMOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int,
    ) -> torch.Tensor:
        assert outputs.logits is not None
        text_loss = next_token_loss(outputs, labels, num_items_in_batch)
        total = summed_divergence(
            outputs.logits, teacher_logits, labels, self.beta, self.temperature
        )
        teacher_loss = self.temperature**2 * total / num_items_in_batch
        loss = (1 - self.kd_ratio) * text_loss + self.kd_ratio * teacher_loss
        tokens = (labels[:, 1:] != IGNORED).sum()
        added = self.summed_over_ranks(loss - text_loss)
        value = total / tokens.clamp(min=1)
        self.log_apart("divergence", added, value, tokens / num_items_in_batch)
        return loss

    def evaluate_teacher(self) -> dict[str, float]:
        """The teacher on the student's held-out rows, as `teacher_loss`, `teacher_perplexity`,
        `teacher_tokens` and, where the text's bytes are known, `teacher_bits_per_byte`.
        """
        nll, tokens = 0.0, 0
        for inputs in self.get_eval_dataloader():
            known = self._known_to_teacher(inputs) | {"labels": inputs["labels"]}
            _, row_nll, row_tokens = self.prediction_step(self.teacher, known, False)
            row_nll, row_tokens = self.accelerator.gather_for_metrics((row_nll, row_tokens))
            nll += row_nll.double().sum().item()
            tokens += int(row_tokens.sum())
        rows: Any = self.eval_dataset
        metrics = token_metrics(nll, tokens, sum(rows["num_bytes"]))
        return {f"teacher_{name}": value for name, value in metrics.items()}


def check_same_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, teacher_name: str
) -> None:
    """Raise InputError unless each id is the same token to both: distributions are compared token
    by token.
    """
    of_student = {index: token for token, index in student.get_vocab().items()}
    of_teacher = {index: token for token, index in teacher.get_vocab().items()}
    if of_student == of_teacher:
        return
    ids = sorted(of_student.keys() | of_teacher.keys())
    first = next(index for index in ids if of_student.get(index) != of_teacher.get(index))
    raise InputError(
        f"teacher_model_name_or_path {teacher_name}: its token {first} is "
        f"{of_teacher.get(first)!r}, the student's is {of_student.get(first)!r} "
        f"({len(of_teacher):,} and {len(of_student):,} tokens); a student learns only from a "
        "teacher with its own vocabulary: train one of the two with the other's tokenizer"
    )


def check_teacher_reads(teacher: PreTrainedModel, teacher_name: str, max_length: int) -> None:
    """Raise InputError for rows that are longer than the teacher's context."""
    context = context_limit(teacher)
    if context and max_length > context:
        raise InputError(
            f"teacher_model_name_or_path {teacher_name}: its context of {context} tokens is "
            f"shorter than the rows of {max_length}; take --max_length {context}"
        )


def check_distillation(training_args: TrainingArguments) -> None:
    """Raise InputError for what a teacher does not go together with."""
    engine = launched_engine()
    if engine in ("ZeRO-3", "FSDP"):
        raise InputError(
            f"distill: every process holds the teacher whole, which {engine} would spread over "
            "them; launch with --accelerate ddp, zero1 or zero2"
        )
    if training_args.label_smoothing_factor:
        raise InputError(
            "label_smoothing_factor: the teacher's distribution takes its place; leave it out"
        )


def describe_teacher(teacher: PreTrainedModel) -> str:
    """Its size, for the dry run: what of a process's memory is not the student's."""
    size = sum(weight.numel() * weight.element_size() for weight in teacher.parameters())
    return (
        f"the teacher: {count_parameters(teacher)['parameters']:,} parameters, "
        f"{size / MIB:,.0f} MiB per process beside what follows, and a batch of its logits"
    )
