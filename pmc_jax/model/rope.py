"""Rotary position embeddings."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pmc_jax.model.config import RopeConfig

Rope = tuple[Float[Array, "*places half"], Float[Array, "*places half"]]
"""Cosines and sines of rotation angles."""


def inverse_frequencies(rope: RopeConfig, head_dim: int, long: bool = False) -> np.ndarray:
    """Radians per position of each rotated pair, `[head_dim · partial / 2]`, after rope scaling.

    The "llama3" ramp keeps wavelengths below `original / high_freq_factor`, divides
    those above `original / low_freq_factor` by `factor`, and blends between. "longrope" has
    frequencies of its own for `long` sequences.
    """
    rotated = int(head_dim * rope.partial)
    frequencies = 1.0 / rope.theta ** (np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        kept = np.clip((turns - rope.low_freq_factor) / span, 0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / rope.factor
    if rope.kind == "longrope":
        return frequencies / np.array(rope.long_factor if long else rope.short_factor)
    return frequencies


def rope_tables(
    positions: Int[Array, "*batch time"],
    lengths: Int[Array, "*batch #time"],
    rope: RopeConfig,
    head_dim: int,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "*batch time half"], Float[Array, "*batch time half"]]:
    """Cosines and sines of the rotation angles at `positions` of sequences of `lengths`.

    A row has one length, or one for every place where it holds several sequences.
    """
    frequencies = jnp.asarray(inverse_frequencies(rope, head_dim), dtype)
    if rope.kind == "longrope":
        long = lengths > rope.original_max_position_embeddings
        stretched = jnp.asarray(inverse_frequencies(rope, head_dim, long=True), dtype)
        frequencies = jnp.where(long[..., None], stretched, frequencies)
    angles = positions[..., None].astype(dtype) * frequencies
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(
    x: Float[Array, "*batch time heads head_dim"],
    cos: Float[Array, "*batch #time half"],
    sin: Float[Array, "*batch #time half"],
) -> Float[Array, "*batch time heads head_dim"]:
    """Rotate the pairs (x_i, x_{i + half}) of each head's first 2 · half dimensions.

    In the tables' dtype, which have an angle for each time or one for all; the dimensions after
    them stay as they are.
    """
    half = cos.shape[-1]
    first, second = x[..., :half].astype(cos.dtype), x[..., half : 2 * half].astype(cos.dtype)
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
