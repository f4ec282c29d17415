"""Attention within whole sequences on a CPU, by a kernel in C++ (`native`)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pmc_jax.model.attention import Segments
from pmc_jax.model.kernels.native import native_call


def causal_attention_cpu(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
    segments: Segments,
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """`causal_attention` without its scores in memory; `head_dim` is a multiple of `VECTOR`.

    The result at padding is 0, and so is its gradient. First-order gradients in reverse mode are
    supported.
    """
    window = jnp.zeros((), jnp.int32) if window is None else window.astype(jnp.int32)
    return _attention(q, k, v, segments.astype(jnp.int32), window, scale, softcap or 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(
    q: Array, k: Array, v: Array, segments: Array, window: Array, scale: float, softcap: float
) -> Array:
    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    operands = q, k, v, segments, window
    return native_call("causal_attention", [out], *operands, scale=scale, softcap=softcap)[0]


def _forward(
    q: Array, k: Array, v: Array, segments: Array, window: Array, scale: float, softcap: float
) -> tuple[Array, tuple[Array, ...]]:
    operands = q, k, v, segments, window
    return _attention(*operands, scale, softcap), operands


def _backward(
    scale: float, softcap: float, operands: Any, d_out: Array
) -> tuple[Array | None, ...]:
    operands = tuple(map(jnp.asarray, operands))  # JAX keeps constants as NumPy arrays
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands[:3]]
    gradients = native_call(
        "causal_attention_backward", results, *operands, d_out, scale=scale, softcap=softcap
    )
    return (*gradients, None, None)


_attention.defvjp(_forward, _backward)
