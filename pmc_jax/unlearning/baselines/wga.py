"""Weighted gradient ascent (WGA; Wang et al. 2025, arXiv 2502.19301)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pmc_jax.settings import bounded
from pmc_jax.unlearning.losses import Targets, token_mean
from pmc_jax.unlearning.method import BaselineMethod


def wga_loss(forget: Targets, alpha: float) -> Float[Array, ""]:
    """Token mean of p^α log p, where p^α carries no gradient."""
    weight = jax.lax.stop_gradient(jnp.exp(-alpha * forget.losses))
    return -token_mean(forget, weight * forget.losses)


@dataclasses.dataclass(frozen=True)
class WGA(BaselineMethod):
    """Gradient ascent on tokens weighted by p^α, plus λ r.

    Attributes:
        alpha: the exponent α of a token's probability p.
    """

    name: str = "wga"
    alpha: float = bounded(1.0, least=0)

    sentence: ClassVar[str] = (
        "by weighted gradient ascent (WGA, arXiv 2502.19301) on the answers to be "
        "forgotten, and on answers to keep."
    )

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The WGA loss."""
        return wga_loss(forget, self.alpha)
