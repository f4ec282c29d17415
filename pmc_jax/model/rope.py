"""Rotary position embeddings."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pmc_jax.model.config import RopeConfig

Rope = tuple[Float[Array, "*positions half"], Float[Array, "*positions half"]]
"""Cosines and sines of rotation angles."""


def inverse_frequencies(rope: RopeConfig, head_dim: int, long: bool = False) -> np.ndarray:
    """Radians per position of each rotated pair, `[head_dim · partial / 2]`, after rope scaling.

    With original = `original_max_position_embeddings`, "llama3" keeps frequencies whose wavelength
    is below original / `high_freq_factor`, divides those above original / `low_freq_factor` by
    `factor`, and interpolates between. "longrope" has other frequencies for `long` sequences.
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
    """Cosines and sines of the rotation angles at `positions` of sequences of these `lengths`.

    `lengths` has one entry per row, or one per token where rows hold several sequences.
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

    The other dimensions are kept. The rotation is computed in the dtype of the tables, which hold
    angles for each time or the same ones for all.
    """
    half = cos.shape[-1]
    first, second = x[..., :half].astype(cos.dtype), x[..., half : 2 * half].astype(cos.dtype)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., 2 * half :]], axis=-1)
