"""The learning rate that new weights are trained with where none is given, by a rule that was
measured: docs/planning.md, "Learning rate".
"""

from collections.abc import Mapping
from typing import Any

from hfscale.arguments import OptimizerArguments
from hfscale.planning.settings import DEFAULT_OPTIMIZER, Planned

# AdamW's rate times the width of the hidden states. That the rate falls with the width as 1 / width
# is muP's rule for hidden matrices under Adam (arXiv:2203.03466, table 3).
ADAMW_RATE_TIMES_WIDTH = 0.4
# Of what is not a hidden matrix, beside Muon.
RATE_BESIDE_MUON = 6e-3
SHOWN_DIGITS = 2  # the rule is not known more closely, and what is shown is what is used


def suggested_learning_rates(
    width: int, optimizer: OptimizerArguments, training: Mapping[str, Any]
) -> dict[str, float]:
    """The rates for new weights, by the names of the arguments; none for an optimizer that the rule
    was not measured with.

    Args:
        width: of the hidden states, in numbers per token.
        optimizer: AdamW, or Muon beside it.
        training: values of TrainingArguments, of which `optim` counts.
    """
    if optimizer.optimizer == "muon":
        return {
            "learning_rate": RATE_BESIDE_MUON,
            "muon_learning_rate": OptimizerArguments.muon_learning_rate,
        }
    optim = training.get("optim", DEFAULT_OPTIMIZER)
    if not optim.startswith(("adamw", "paged_adamw")):
        return {}
    rate = ADAMW_RATE_TIMES_WIDTH / width
    return {"learning_rate": float(f"{rate:.{SHOWN_DIGITS}g}")}


def planned_learning_rates(planned: Planned, width: int) -> dict[str, float]:
    """What is suggested for new weights, and beside it what the config says otherwise; nothing
    where nothing was measured. By the names that are shown.
    """
    if not _is_measured(planned):
        return {}
    configured = {"muon_learning_rate": planned.muon_learning_rate} | planned.training
    rates = {}
    for name, rate in suggested_learning_rates(width, planned, planned.training).items():
        rates[f"suggested {name}"] = rate
        if configured.get(name, rate) != rate:
            rates[f"configured {name}"] = configured[name]
    return rates


def transfer_note(planned: Planned, width: int) -> str | None:
    """What a rate that was found at another width is here; None: nothing is known of it."""
    if not _is_measured(planned):
        return None
    suggested = suggested_learning_rates(width, planned, planned.training)
    if not suggested:
        return None
    if "muon_learning_rate" in suggested:
        return "learning rates that were found at another width serve here as they are"
    return f"a learning rate that was found at another width W serves here as rate x W / {width}"


def _is_measured(planned: Planned) -> bool:
    """The rule is one for new weights."""
    return planned.model is None
