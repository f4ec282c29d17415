"""Relearning with infinitely many samples: iterated deterministic maps of a distribution."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Update = Callable[[Float[Array, " K"]], Float[Array, " K"]]


def iterate(update: Update, probs: Float[Array, " K"], rounds: int) -> Float[Array, "{rounds}+1 K"]:
    """p_0 = `probs`, p_{t+1} = `update(p_t)`, normalised every round.

    Without normalisation, an error in the total mass would grow by the derivative of the map: by
    a factor of n a round for a selection among n.
    """

    def step(p: Float[Array, " K"], _: None) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
        new = update(p)
        new = new / new.sum()
        return new, new

    _, later = jax.lax.scan(step, probs, length=rounds)
    return jnp.concatenate([probs[None], later])


def retain_update(
    probs: Float[Array, " K"], retain: Float[Array, " K"], weight: float | Float[Array, ""]
) -> Float[Array, " K"]:
    """p_{t+1} = (p_t + α p_r) / (1 + α): the minimiser of −E_{p_t}[log p] − α E_{p_r}[log p]."""
    return (probs + weight * retain) / (1 + weight)


def retain_closed_form(
    probs: Float[Array, " K"],
    retain: Float[Array, " K"],
    weight: float | Float[Array, ""],
    rounds: int | Array,
) -> Float[Array, " K"]:
    """`retain_update` after t rounds: p_t = (1 − (1+α)^{−t}) p_r + (1+α)^{−t} p_0."""
    left = (1.0 + weight) ** -rounds
    return (1 - left) * retain + left * probs
