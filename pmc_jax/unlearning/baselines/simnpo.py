"""NPO without a reference model, per token (SimNPO; Fan et al. 2024, arXiv 2410.07163)."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from pmc_jax.settings import bounded
from pmc_jax.unlearning.losses import Targets, answer_lengths, answer_mean, answer_sum
from pmc_jax.unlearning.method import BaselineMethod


def simnpo_loss(forget: Targets, beta: float, gamma: float) -> Float[Array, ""]:
    """−(2/β) mean log σ(β (N(y)/|y| − γ)).

    The paper's γ is β times this one, which is the `delta` of OpenUnlearning.
    """
    per_token = answer_sum(forget) / answer_lengths(forget).clip(1)
    return -2 / beta * answer_mean(forget, jax.nn.log_sigmoid(beta * (per_token - gamma)))


@dataclasses.dataclass(frozen=True)
class SimNPO(BaselineMethod):
    """SimNPO: −(2/β) mean log σ(β (N(y)/|y| − γ)) + λ r.

    Attributes:
        beta: the inverse temperature β.
        gamma: the margin γ; the paper's is β times this one.
    """

    name: str = "simnpo"
    beta: float = bounded(4.5, above=0)
    gamma: float = bounded(0.0, least=0)

    sentence: ClassVar[str] = (
        "by negative preference optimisation without a reference model (SimNPO, arXiv "
        "2410.07163) on the answers to be forgotten, and on answers to keep."
    )

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The SimNPO loss."""
        return simnpo_loss(forget, self.beta, self.gamma)
