"""Functions of the logits at each token, computed without an array `[batch, time, vocab]`."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pmc_jax.model.config import ModelConfig
from pmc_jax.model.forward import logits
from pmc_jax.model.sharding import constrain
from pmc_jax.model.specs import Params

CHUNK = 1024
"""Number of tokens whose logits exist at the same time."""


def token_values(
    values: Callable[..., Float[Array, "batch positions"]],
    models: Sequence[tuple[Params, Float[Array, "batch time embed"]]],
    tokens: Int[Array, "batch time"],
    cfg: ModelConfig,
) -> Float[Array, "batch time"]:
    """`values(*logits, tokens)` at every token; 0 at t = 0.

    Each of `models` is a pair of weights and final hidden states. Its logits
    `[batch, positions, vocab]` are those that predict `tokens`. They are computed for about `CHUNK`
    tokens at a time, and recomputed in the backward pass, so that memory does not grow with
    vocabulary size times sequence length.
    """
    batch, time = tokens.shape
    pieces = -(-batch * (time - 1) // CHUNK)
    width = -(-(time - 1) // pieces)
    padding = pieces * width - (time - 1)

    def cut(array: Array) -> Array:
        array = jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(array.reshape(batch, pieces, width, *array.shape[2:]), 1, 0)

    @jax.checkpoint
    def one_piece(inputs: tuple[list[Array], Array]) -> Array:
        states, targets = inputs
        scores = [
            logits(params, constrain(hidden, "batch", None, None), cfg)
            for (params, _), hidden in zip(models, states, strict=True)
        ]
        return values(*scores, targets)

    parts = ([cut(hidden[:, :-1]) for _, hidden in models], cut(tokens[:, 1:]))
    found = jnp.moveaxis(jax.lax.map(one_piece, parts), 0, 1).reshape(batch, -1)
    return jnp.pad(found[:, : time - 1], ((0, 0), (1, 0)))


def negative_log_likelihood(
    scores: Float[Array, "*positions vocab"], tokens: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """-log p(token) from logits."""
    chosen = jnp.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - chosen


def token_nll(
    params: Params,
    hidden: Float[Array, "batch time embed"],
    tokens: Int[Array, "batch time"],
    cfg: ModelConfig,
) -> Float[Array, "batch time"]:
    """-log p(tokens[t] | tokens[<t]) from final hidden states; 0 at t = 0."""
    return token_values(negative_log_likelihood, [(params, hidden)], tokens, cfg)
