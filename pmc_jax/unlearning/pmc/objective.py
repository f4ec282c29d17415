"""The PMC objective (section 4 of the paper)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pmc_jax.unlearning.losses import Targets, token_mean


def collapse_loss(selected: Targets) -> Float[Array, ""]:
    """E[−log p_θ(x̂ | q)]: the mean NLL over the tokens of the selected responses x̂."""
    return token_mean(selected)


def retain_loss(retain: Targets) -> Float[Array, ""]:
    """E[−log p_θ(y | q)]: the mean NLL over the tokens of the retain answers y."""
    return token_mean(retain)


def pmc_loss(
    nll: Float[Array, "rows time"],
    selected: Bool[Array, "rows time"],
    retain: Bool[Array, "rows time"],
    retain_weight: float | Float[Array, ""],
) -> Float[Array, ""]:
    """The objective for one whole batch: E[−log p_θ(x̂ | q)] + λ E[−log p_θ(y | q)].

    Training accumulates the same two means over micro-batches. This function computes the
    objective at once, for use on its own.

    Args:
        nll: −log p_θ of every token given those before it.
        selected: True at the tokens of selected responses, end tokens included.
        retain: True at the tokens of retain answers, end tokens included.
        retain_weight: λ.
    """

    def targets(mask: Bool[Array, "rows time"]) -> Targets:
        """All tokens of a mask as one answer, since token means do not distinguish answers."""
        return Targets(
            losses=nll, mask=mask, segments=mask.astype(int), reference=jnp.zeros(1),
            tokens=mask.sum(), answers=jnp.ones((), int),
        )  # fmt: skip

    return collapse_loss(targets(selected)) + retain_weight * retain_loss(targets(retain))
