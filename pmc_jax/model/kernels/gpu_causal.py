"""Attention within whole sequences on an NVIDIA GPU, by cuDNN."""

from typing import Literal

import jax
from jaxtyping import Array, Float, Int

from pmc_jax.model.attention import Segments, visible_keys


def causal_attention_gpu(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
    segments: Segments,
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "batch time heads head_dim"]:
    """`causal_attention` without a softcap; its scores are never in memory.

    The mask is in memory, since JAX passes it to cuDNN as a bias, and so is a gradient of it.
    """
    mask = visible_keys(segments, window)[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=True, implementation=implementation
    )
