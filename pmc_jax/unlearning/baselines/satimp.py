"""Gradient ascent weighted by saturation and importance (SatImp; arXiv 2505.11953)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pmc_jax.settings import bounded
from pmc_jax.unlearning.losses import Targets, token_mean
from pmc_jax.unlearning.method import BaselineMethod


def satimp_loss(forget: Targets, beta1: float, beta2: float) -> Float[Array, ""]:
    """Token mean of p^β₁ (1 − p)^β₂ log p, where the weight carries no gradient."""
    # A certain token's NLL may be rounded to just below 0, where (1 - p)^β₂ has no value.
    p = jax.lax.stop_gradient(jnp.exp(-forget.losses).clip(max=1))
    return -token_mean(forget, p**beta1 * (1 - p) ** beta2 * forget.losses)


@dataclasses.dataclass(frozen=True)
class SatImp(BaselineMethod):
    """Gradient ascent on tokens weighted by p^β₁ (1 − p)^β₂, plus λ r (Yang et al. 2025).

    Attributes:
        beta1: the exponent β₁ of a token's probability p (saturation).
        beta2: the exponent β₂ of 1 − p (importance).
    """

    name: str = "satimp"
    beta1: float = bounded(5.0, least=0)
    beta2: float = bounded(1.0, least=0)
    retain_weight: float = bounded(10.0, least=0)

    sentence: ClassVar[str] = (
        "by gradient ascent weighted by saturation and importance (SatImp, arXiv "
        "2505.11953) on the answers to be forgotten, and on answers to keep."
    )

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The SatImp loss."""
        return satimp_loss(forget, self.beta1, self.beta2)
