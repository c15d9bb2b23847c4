"""KTO, ORPO and SimPO from the log-probabilities of answers, and one trainer for the three.

TRL has a trainer for each, and none is exact here. Its KTO takes answers to other prompts from the
same process's batch, so that two processes train another model than one, and takes rows in the
order of the file; made from pairs, those are all good ones first. Its ORPO and CPO cut long answers
and make tokens of their own. Collators and log-probabilities are TRL's, the same as for DPO.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from accelerate.utils import gather
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

IGNORED = -100  # label that TRL's log-probabilities pass over
CERTAIN_NATS = -1e-6  # of an answer's tokens, on average; at 0 the odds are infinite


class Answers(NamedTuple):
    """The answers of a batch; both tensors are (answers,)."""

    logps: torch.Tensor  # nats, summed over the tokens of an answer, its EOS among them
    lengths: torch.Tensor  # tokens

    def mean_logps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats per token of the chosen answers, which come first, and of the rejected ones."""
        chosen, rejected = (self.logps / self.lengths).chunk(2)
        return chosen, rejected


# Answers from the batch's `input_ids`, or from those with a prefix.
Score: TypeAlias = Callable[..., Answers]


def score_answers(model: PreTrainedModel, batch: Mapping[str, Any], prefix: str = "") -> Answers:
    """Log-probabilities of a batch as TRL's collators make it: `input_ids`, `attention_mask` and
    `completion_mask`, each (answers x tokens), under names with this prefix.
    """
    input_ids = batch[f"{prefix}input_ids"]
    is_answer = batch[f"{prefix}completion_mask"]
    outputs: Any = model(
        input_ids=input_ids,
        attention_mask=batch[f"{prefix}attention_mask"],
        labels=input_ids.masked_fill(is_answer == 0, IGNORED),
        fused_lm_head=True,
    )
    return Answers(outputs.log_probs.sum(dim=1), is_answer[:, 1:].sum(dim=1))


def kto_loss(
    score: Score,
    batch: Mapping[str, Any],
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> torch.Tensor:
    """Mean over answers of `w * (1 - sigmoid(beta * s * (r - z)))` (Ethayarajh et al. 2024,
    arXiv:2402.01306, equation 7): r is how much likelier the answer became, in nats, s and w
    are 1 and `desirable_weight`, or -1 and `undesirable_weight`, by its `label`. z, at least 0 and
    without a gradient, is the mean of r over answers to other prompts (`KL_...`), over all
    processes.
    """
    with torch.no_grad():
        unrelated: Any = gather(score("KL_").logps - batch["ref_KL_logps"])
        reference_point = unrelated.mean().clamp(min=0)
    is_desirable = batch["label"]
    gain = score().logps - batch["ref_logps"] - reference_point
    value = torch.sigmoid(beta * torch.where(is_desirable, gain, -gain))
    weight = torch.where(is_desirable, desirable_weight, undesirable_weight)
    return (weight * (1 - value)).mean()


def orpo_loss(score: Score, batch: Mapping[str, Any], *, beta: float) -> torch.Tensor:
    """Mean over pairs of `-log P(chosen) - beta * log sigmoid(log odds ratio)` (Hong et al. 2024,
    arXiv:2403.07691, equations 1 and 4 to 7; beta is its lambda). P of an answer is the geometric
    mean over its tokens, its odds are P / (1 - P).
    """
    chosen, rejected = score().mean_logps()
    log_odds_ratio = _log_odds(chosen) - _log_odds(rejected)
    return (-chosen - beta * F.logsigmoid(log_odds_ratio)).mean()


def _log_odds(logp: torch.Tensor) -> torch.Tensor:
    logp = logp.clamp(max=CERTAIN_NATS)
    return logp - torch.log(-torch.expm1(logp))


def simpo_loss(
    score: Score, batch: Mapping[str, Any], *, beta: float, simpo_gamma: float
) -> torch.Tensor:
    """Mean over pairs of `-log sigmoid(beta * (c - r) - simpo_gamma)` (Meng et al. 2024,
    arXiv:2405.14734, equation 6), with c and r the nats per token of both answers.
    """
    chosen, rejected = score().mean_logps()
    return -F.logsigmoid(beta * (chosen - rejected) - simpo_gamma).mean()


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "kto": kto_loss,
    "orpo": orpo_loss,
    "simpo": simpo_loss,
}


class PreferenceTrainer(Trainer):
    """Trains with one of `LOSSES`, without dropout, as TRL does.

    Args:
        model: any causal language model, or a `peft.PeftModel` of one.
        args: of a DPOTrainer; columns are not removed.
        loss_type: a name in `LOSSES`.
        settings: the keyword arguments of the loss.
        kwargs: of `Trainer`; rows have the columns of `pair_ids` or, of kto, those of
            `with_reference`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        loss_type: str,
        settings: Mapping[str, float],
        **kwargs: Any,
    ):
        below_adapter = getattr(model, "get_base_model", None)
        disable_dropout_in_model(model)
        add_fused_lm_head(below_adapter() if below_adapter else model)
        args.remove_unused_columns = False
        collator = (
            DataCollatorForUnpairedPreference if loss_type == "kto" else DataCollatorForPreference
        )
        # What is padded is masked.
        super().__init__(model=model, args=args, data_collator=collator(pad_token_id=0), **kwargs)
        self.model_accepts_loss_kwargs = False  # a step's loss is the mean over micro-batches
        self._loss = partial(LOSSES[loss_type], **settings)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a micro-batch, a single number."""
        loss = self._loss(partial(score_answers, model, inputs), inputs)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss alone; upstream computes none without labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None
