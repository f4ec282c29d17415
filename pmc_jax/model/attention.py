"""Scaled dot-product attention with grouped queries, softmax in at least fp32.

`scale` multiplies the query-key products and `softcap` c takes them to c · tanh(s / c). A
`window` w > 0 hides the positions w and more before the query.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pmc_jax.model.products import wide_einsum

HEAD_DIMS = (16, 32, 64, 128, 256)
"""Those that Triton has blocks of."""

MOST_ELEMENTS = 2**31
"""Elements of an array that 32-bit offsets reach."""

LEAST_CAPABILITY = 8.0
"""Compute capability of the oldest GPUs that Triton compiles for."""

Segments = Bool[Array, "batch time"] | Int[Array, "batch time"]
"""Which sequence of its row a token belongs to; 0 at padding.

A mask of real tokens will do for rows of one sequence each.
"""


def same_segment(segments: Segments) -> Bool[Array, "batch time time"]:
    """Whether two places of a row belong to the same sequence."""
    return segments[:, :, None] == segments[:, None, :]


def segment_lengths(segments: Segments) -> Int[Array, "batch time"]:
    """Tokens of the sequence that each place belongs to."""
    return same_segment(segments).sum(axis=-1)


def _scores(equation: str, q: Array, k: Array, scale: float, softcap: float | None) -> Array:
    """Scaled and capped query-key products, in at least fp32."""
    scores = wide_einsum(equation, q, k) * scale
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _within(distance: Array, window: Int[Array, ""] | None) -> Array:
    """Whether a position this far before the query is seen."""
    if window is None:
        return distance >= 0
    return (distance >= 0) & ((distance < window) | (window <= 0))


def causal_attention(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
    segments: Segments,
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """Each position attends to the positions of its own segment up to itself."""
    batch, time, heads, head_dim = q.shape
    q = q.reshape(batch, time, k.shape[2], -1, head_dim)
    scores = _scores("bthgd,bshd->bhtgs", q, k, scale, softcap)
    place = jnp.arange(time)
    allowed = _within(place[:, None] - place, window) & same_segment(segments)
    scores = jnp.where(allowed[:, None, :, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhtgs,bshd->bthgd", weights, v).reshape(batch, time, heads, head_dim)


def decode_attention(
    q: Float[Array, "batch samples heads head_dim"],
    prefix_k: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_v: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_mask: Bool[Array, "batch prompt"],
    suffix_k: Float[Array, "batch samples kv_heads time head_dim"],
    suffix_v: Float[Array, "batch samples kv_heads time head_dim"],
    step: Int[Array, ""],
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "batch samples heads head_dim"]:
    """One new token per sample attends to its prompt and to its own suffix up to `step`.

    The samples of a prompt read one copy of its keys and values. Both parts share
    one softmax: the weights are exp(score - max) over the sum of both parts' exps.
    """
    batch, samples, heads, head_dim = q.shape
    q = q.reshape(batch, samples, prefix_k.shape[1], -1, head_dim)
    prefix = _scores("bnhgd,bhsd->bnhgs", q, prefix_k, scale, softcap)
    suffix = _scores("bnhgd,bnhtd->bnhgt", q, suffix_k, scale, softcap)
    lowest = jnp.finfo(prefix.dtype).min
    # Prompts are padded on the left, so that the suffix follows their last place directly.
    prompt = prefix_k.shape[2]
    seen = prefix_mask & _within(prompt + step - jnp.arange(prompt), window)
    prefix = jnp.where(seen[:, None, None, None, :], prefix, lowest)
    suffix = jnp.where(_within(step - jnp.arange(suffix_k.shape[3]), window), suffix, lowest)
    top = jnp.maximum(prefix.max(-1, keepdims=True), suffix.max(-1, keepdims=True))
    prefix, suffix = jnp.exp(prefix - top), jnp.exp(suffix - top)
    total = prefix.sum(-1, keepdims=True) + suffix.sum(-1, keepdims=True)
    mixed = jnp.einsum("bnhgs,bhsd->bnhgd", (prefix / total).astype(q.dtype), prefix_v)
    mixed += jnp.einsum("bnhgt,bnhtd->bnhgd", (suffix / total).astype(q.dtype), suffix_v)
    return mixed.reshape(batch, samples, heads, head_dim)


def compute_capability(device: Any) -> float:
    """That of an NVIDIA GPU; 0 of other devices."""
    found = str(getattr(device, "compute_capability", ""))
    return float(found) if found[:1].isdigit() else 0.0


def has_kernel(q: Array, *caches: Array) -> bool:
    """Whether there is a kernel for such queries and keys where the program will run."""
    return (
        jax.default_backend() == "gpu"
        and compute_capability(jax.devices()[0]) >= LEAST_CAPABILITY
        and jax.sharding.get_abstract_mesh().empty
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] in HEAD_DIMS
        and max(cache.size for cache in caches) < MOST_ELEMENTS
    )


def best_decode_attention(q: Array, *caches: Array) -> Callable[..., Array]:
    """`decode_attention`, or the kernel that computes the same where there is one."""
    if not has_kernel(q, *caches):
        return decode_attention
    try:  # only here, since Pallas takes half a second to import
        from pmc_jax.model.decode_kernel import decode_kernel
    except ImportError:  # JAX has announced that it will remove Pallas' Triton
        return decode_attention
    return decode_kernel
