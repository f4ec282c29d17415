"""Primal-dual unlearning (PDU; Entesari et al. 2025, arXiv 2506.05314).

Forgetting under a constraint on retention, r ≤ ε, instead of a fixed trade-off:

    min over θ, max over λ ≥ 0:  f_margin + λ (r − ε)

f_margin is the token mean over forget answers of (max_v z(v) − mean_v z(v))², where z are the
logits: it is 0 where the distribution is uniform. Weights descend and λ ascends in turn, after
each step λ ← max(0, λ + η (r − ε)), with r that of the step. The constant −λ ε has no gradient and
is not in the reported loss.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig
from pmc_jax.model.specs import Params
from pmc_jax.settings import bounded
from pmc_jax.unlearning.losses import TokenLoss
from pmc_jax.unlearning.method import BaselineMethod, Method, Run, StepExamples, Task


def squared_margin(
    logits: Float[Array, "*positions vocab"], tokens: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """(max_v z(v) − mean_v z(v))², whatever the token."""
    return (logits.max(axis=-1) - logits.mean(axis=-1)) ** 2


@dataclasses.dataclass(frozen=True)
class PDU(BaselineMethod):
    """Flattened logits at forget answers, under the constraint that r stays below ε.

    Attributes:
        retain_weight: λ before the first step.
        epsilon: ε, the largest retain loss that is allowed: more than the target model's.
        dual_step_size: η, by how much λ changes for each unit of r − ε; 0 keeps it.
        dual_warmup_epochs: epochs at the beginning in which λ stays.
    """

    name: str = "pdu"
    epsilon: float = bounded(0.3, least=0)
    dual_step_size: float = bounded(5.0, least=0)
    dual_warmup_epochs: int = bounded(5, least=0)
    retain_weight: float = bounded(100.0, least=0)

    sentence: ClassVar[str] = (
        "by primal-dual unlearning (PDU, arXiv 2506.05314): the logits at the answers to be "
        "forgotten were flattened as far as the loss on answers to keep stayed small."
    )

    def check(self) -> None:
        """Check that there is something to keep."""
        if not self.retain_per_forget:
            raise UserError("method.retain_per_forget=0: expected at least 1, since λ depends on r")

    @property
    def has_retain_term(self) -> bool:
        """Always: λ can grow from 0."""
        return True

    def token_losses(self, config: ModelConfig) -> dict[str, TokenLoss]:
        """Tokens of forget answers cost their squared margin."""
        return {**super().token_losses(config), "forget": TokenLoss(squared_margin)}

    def initial_state(self, task: Task) -> dict[str, Any]:
        """λ before the first step."""
        return {"retain_weight": np.array(self.retain_weight)}

    def step_examples(
        self, run: Run[Method], state: Any, params: Params, step: int, questions: Any
    ) -> StepExamples:
        """The fixed answers; λ goes to the log."""
        chosen = super().step_examples(run, state, params, step, questions)
        weight = self.retain_weight_at(run, state, step)
        return chosen._replace(measures={"retain_weight": weight}, note=f"λ {weight:.4g}")

    def retain_weight_at(self, run: Run[Method], state: Any, step: int) -> float:
        """λ at a step."""
        return float(state["retain_weight"])

    def after_step(self, run: Run[Method], state: Any, step: int, retain_loss: float) -> Any:
        """λ ← max(0, λ + η (r − ε)) after the warm-up."""
        if run.epoch(step) < self.dual_warmup_epochs:
            return state
        change = self.dual_step_size * (retain_loss - self.epsilon)
        return {"retain_weight": np.maximum(0.0, state["retain_weight"] + change)}
