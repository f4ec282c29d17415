"""Weights rounded to few bits, as a model is when it is deployed on small hardware."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pmc_jax.model import ModelConfig, decay_mask, map_stacks, parts_of
from pmc_jax.model.specs import Params

BLOCK = 64
"""Weights that share a scale."""


def round_weights(weights: Float[Array, "*shape"], bits: int) -> Float[Array, "*shape"]:
    """Symmetric absmax rounding of blocks of weights that follow one another in memory.

    A block w becomes s·round(w/s) with s = max|w| / (2^(bits−1) − 1), halves to even,
    computed in float32 whatever the weights' own type.
    """
    levels = 2 ** (bits - 1) - 1
    flat = weights.reshape(-1).astype(jnp.float32)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True) / levels
    rounded = jnp.round(blocks / jnp.where(scale > 0, scale, 1)) * scale
    return rounded.reshape(-1)[: flat.size].reshape(weights.shape).astype(weights.dtype)


def round_params(params: Params, cfg: ModelConfig, bits: int) -> Params:
    """The layers' weight matrices rounded to `bits`; norms, biases and embeddings stay.

    That is what the common 8-bit and 4-bit formats round. Weights that lie side by side (`joined`)
    are rounded as those alone if a row of each has a multiple of `BLOCK` weights, as in all
    published models.
    """
    is_matrix = decay_mask(cfg)["layers"]

    def one(name: str, leaf: Array) -> Array:
        return round_weights(leaf, bits) if is_matrix[parts_of(name)[0]] else leaf

    def change(stack: Params) -> Params:
        return {name: one(name, leaf) for name, leaf in stack.items()}

    return map_stacks(change, params)
