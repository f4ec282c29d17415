"""Token negative log-likelihoods without the `[batch, time, vocab]` array."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pmc_jax.model.config import ModelConfig
from pmc_jax.model.forward import logits
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

    The logits are computed for `CHUNK` tokens at a time and again in the backward
    pass, so that memory does not grow with vocabulary times sequence.
    """
    batch, time, embed = hidden.shape
    count = batch * (time - 1)
    chunk = min(CHUNK, count)
    padding = -count % chunk
    states = jnp.pad(hidden[:, :-1].reshape(count, embed), ((0, padding), (0, 0)))
    targets = jnp.pad(tokens[:, 1:].reshape(count), (0, padding))

    @jax.checkpoint
    def one_chunk(inputs: tuple[Array, Array]) -> Array:
        states, targets = inputs
        scores = logits(params, states, cfg)
        chosen = jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(scores, axis=-1) - chosen

    nll = jax.lax.map(
        one_chunk, (states.reshape(-1, chunk, embed), targets.reshape(-1, chunk))
    ).reshape(-1)[:count]
    return jnp.pad(nll.reshape(batch, time - 1), ((0, 0), (1, 0)))
