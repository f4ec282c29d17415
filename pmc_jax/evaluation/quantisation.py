"""Quantised weights, as in a model that is deployed on small hardware."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pmc_jax.model import ModelConfig, decay_mask, map_stacks, parts_of
from pmc_jax.model.specs import Params

BLOCK = 64
"""Weights that share a scale."""


def quantise(weights: Float[Array, "*shape"], bits: int) -> Float[Array, "*shape"]:
    """Symmetric absmax quantisation in blocks of weights that are adjacent in memory.

    A block w becomes s·round(w/s) with s = max|w| / (2^(bits−1) − 1). Halves are rounded to
    even. The computation is in float32 for every dtype of the weights.
    """
    levels = 2 ** (bits - 1) - 1
    flat = weights.reshape(-1).astype(jnp.float32)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True) / levels
    rounded = jnp.round(blocks / jnp.where(scale > 0, scale, 1)) * scale
    return rounded.reshape(-1)[: flat.size].reshape(weights.shape).astype(weights.dtype)


def quantise_params(params: Params, cfg: ModelConfig, bits: int) -> Params:
    """Quantise the layers' weight matrices; norms, biases and embeddings are not changed.

    The common 8-bit and 4-bit formats quantise the same weights. Matrices that are stored
    `joined` are quantised as if they were separate, provided that a row of each has a multiple of
    `BLOCK` weights. This holds for all published models.
    """
    is_matrix = decay_mask(cfg)["layers"]

    def one(name: str, leaf: Array) -> Array:
        return quantise(leaf, bits) if is_matrix[parts_of(name)[0]] else leaf

    def change(stack: Params) -> Params:
        return {name: one(name, leaf) for name, leaf in stack.items()}

    return map_stacks(change, params)
