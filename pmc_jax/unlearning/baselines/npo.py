"""Negative preference optimisation (NPO; Zhang et al. 2024, arXiv 2404.05868)."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from pmc_jax.settings import bounded
from pmc_jax.unlearning.baselines.references import ReferencedMethod
from pmc_jax.unlearning.losses import Targets, answer_mean, answer_sum


def npo_loss(forget: Targets, beta: float) -> Float[Array, ""]:
    """−(2/β) mean log σ(β (N(y) − N_ref(y))).

    At θ = θ_ref, and for every θ as β → 0, its gradient is that of −mean N(y).
    """
    margin = answer_sum(forget) - forget.reference
    return -2 / beta * answer_mean(forget, jax.nn.log_sigmoid(beta * margin))


@dataclasses.dataclass(frozen=True)
class NPO(ReferencedMethod):
    """Negative preference optimisation: −(2/β) mean log σ(β (N(y) − N_ref(y))) + λ r.

    Attributes:
        beta: the inverse temperature β.
    """

    name: str = "npo"
    beta: float = bounded(0.1, above=0)

    sentence: ClassVar[str] = (
        "by negative preference optimisation (NPO, arXiv 2404.05868) on the answers to be "
        "forgotten, and on answers to keep."
    )

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The NPO loss."""
        return npo_loss(forget, self.beta)
