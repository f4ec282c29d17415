"""Rows that hold several sequences: their positions, hidden states and token NLLs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from pmc_jax.model.config import ModelConfig
from pmc_jax.model.forward import forward, layer_states
from pmc_jax.model.nll import token_nll
from pmc_jax.model.specs import Params


def restarted(
    counts: Int[Array, "*rows time"], segments: Int[Array, "*rows time"]
) -> Int[Array, "*rows time"]:
    """How much `counts`, which never fall along a row, have grown since their segment began."""
    before = jnp.roll(segments, 1, axis=-1).at[..., 0].set(-1)
    first = jnp.where(segments != before, counts, 0)
    return counts - jax.lax.cummax(first, axis=first.ndim - 1)


def sequence_states(
    params: Params,
    tokens: Int[Array, "rows time"],
    segments: Int[Array, "rows time"],
    cfg: ModelConfig,
    dtype: DTypeLike,
    remat: str,
    layer: int | None = None,
) -> Float[Array, "rows time embed"]:
    """Hidden states of rows of sequences: after `layer` (from 0), or the final ones."""
    indices = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    positions = restarted(indices, segments)
    if layer is None:
        return forward(params, tokens, positions, segments, cfg, dtype=dtype, remat=remat)
    layers = layer + 1
    return layer_states(
        params, tokens, positions, segments, cfg, layers=layers, dtype=dtype, remat=remat
    )


def sequence_nll(
    params: Params,
    tokens: Int[Array, "rows time"],
    segments: Int[Array, "rows time"],
    cfg: ModelConfig,
    dtype: DTypeLike,
    remat: str,
) -> Float[Array, "rows time"]:
    """Token NLLs of rows of sequences; those of a sequence's first token mean nothing."""
    hidden = sequence_states(params, tokens, segments, cfg, dtype, remat)
    return token_nll(params, hidden, tokens, cfg)
