"""Token negative log-likelihoods without the `[batch, time, vocab]` array."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pmc_jax.model.config import ModelConfig
from pmc_jax.model.forward import logits
from pmc_jax.model.sharding import constrain
from pmc_jax.model.specs import Params

CHUNK = 1024
"""Tokens whose logits exist at the same time."""


def token_nll(
    params: Params,
    hidden: Float[Array, "batch time embed"],
    tokens: Int[Array, "batch time"],
    cfg: ModelConfig,
) -> Float[Array, "batch time"]:
    """-log p(tokens[t] | tokens[<t]) from the final hidden states; 0 at t = 0.

    The logits are computed for about `CHUNK` tokens at a time, some places of every row, and
    again in the backward pass, so that memory does not grow with vocabulary times sequence.
    """
    batch, time, embed = hidden.shape
    pieces = -(-batch * (time - 1) // CHUNK)
    width = -(-(time - 1) // pieces)
    padding = pieces * width - (time - 1)
    states = jnp.pad(hidden[:, :-1], ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, padding)))

    @jax.checkpoint
    def one_piece(inputs: tuple[Array, Array]) -> Array:
        states, targets = inputs
        scores = logits(params, constrain(states, "batch", None, None), cfg)
        chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(scores, axis=-1) - chosen

    parts = (
        jnp.moveaxis(states.reshape(batch, pieces, width, embed), 1, 0),
        jnp.moveaxis(targets.reshape(batch, pieces, width), 1, 0),
    )
    nll = jnp.moveaxis(jax.lax.map(one_piece, parts), 0, 1).reshape(batch, -1)
    return jnp.pad(nll[:, : time - 1], ((0, 0), (1, 0)))
