"""Gradient difference (GD or GradDiff; Liu et al. 2022)."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from pmc_jax.unlearning.baselines.ga import ascent_loss
from pmc_jax.unlearning.losses import Targets
from pmc_jax.unlearning.method import BaselineMethod


@dataclasses.dataclass(frozen=True)
class GD(BaselineMethod):
    """Gradient difference: −f + λ r. With `retain_loss` "kl" it is TOFU's KL minimisation."""

    name: str = "gd"

    sentence: ClassVar[str] = (
        "by gradient ascent on the answers to be forgotten and descent on those to keep "
        "(gradient difference)."
    )

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """−f."""
        return ascent_loss(forget)
