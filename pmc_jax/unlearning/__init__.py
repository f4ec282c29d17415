"""The paper: reward, selection, memory of the best responses, objective.

Minimise E[-log p(x̂ | q)] over forget questions q, where x̂ is selected among
the model's own samples, plus λ times the retain loss (arXiv 2507.04219, section 4).
"""

from pmc_jax.unlearning.objective import LossRows, PMCLoss, pmc_loss
from pmc_jax.unlearning.rewards import (
    response_score,
    score_bound,
    short_answer_penalty,
)
from pmc_jax.unlearning.selection import (
    ResponseMemory,
    cannot_be_selected,
    empty_memory,
    needs_sampling,
    select,
    selection_keys,
    update_memory,
)

__all__ = [
    "LossRows",
    "PMCLoss",
    "ResponseMemory",
    "cannot_be_selected",
    "empty_memory",
    "needs_sampling",
    "pmc_loss",
    "response_score",
    "score_bound",
    "select",
    "selection_keys",
    "short_answer_penalty",
    "update_memory",
]
