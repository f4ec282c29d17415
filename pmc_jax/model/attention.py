"""Scaled dot-product attention with grouped queries, softmax in at least fp32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def _scores(equation: str, q: Array, k: Array) -> Array:
    """Query-key products over sqrt(head_dim), accumulated in at least fp32."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum(equation, q, k, preferred_element_type=dtype) / jnp.sqrt(
        jnp.asarray(q.shape[-1], dtype)
    )


def causal_attention(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
    mask: Bool[Array, "batch time"],
) -> Float[Array, "batch time heads head_dim"]:
    """Each position attends to the unmasked positions up to itself."""
    batch, time, heads, head_dim = q.shape
    q = q.reshape(batch, time, k.shape[2], -1, head_dim)
    scores = _scores("bthgd,bshd->bhgts", q, k)
    allowed = jnp.tril(jnp.ones((time, time), bool)) & mask[:, None, :]
    scores = jnp.where(allowed[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhgts,bshd->bthgd", weights, v).reshape(batch, time, heads, head_dim)


def decode_attention(
    q: Float[Array, "batch samples heads head_dim"],
    prefix_k: Float[Array, "batch prompt kv_heads head_dim"],
    prefix_v: Float[Array, "batch prompt kv_heads head_dim"],
    prefix_mask: Bool[Array, "batch prompt"],
    suffix_k: Float[Array, "batch samples kv_heads time head_dim"],
    suffix_v: Float[Array, "batch samples kv_heads time head_dim"],
    step: Int[Array, ""],
) -> Float[Array, "batch samples heads head_dim"]:
    """One new token per sample attends to its prompt and to its own suffix up to `step`.

    The samples of a prompt read one copy of its keys and values. Both parts share
    one softmax: the weights are exp(score - max) over the sum of both parts' exps.
    """
    batch, samples, heads, head_dim = q.shape
    q = q.reshape(batch, samples, prefix_k.shape[2], -1, head_dim)
    prefix = _scores("bnhgd,bshd->bnhgs", q, prefix_k)
    suffix = _scores("bnhgd,bnhtd->bnhgt", q, suffix_k)
    lowest = jnp.finfo(prefix.dtype).min
    prefix = jnp.where(prefix_mask[:, None, None, None, :], prefix, lowest)
    suffix = jnp.where(jnp.arange(suffix_k.shape[3]) <= step, suffix, lowest)
    top = jnp.maximum(prefix.max(-1, keepdims=True), suffix.max(-1, keepdims=True))
    prefix, suffix = jnp.exp(prefix - top), jnp.exp(suffix - top)
    total = prefix.sum(-1, keepdims=True) + suffix.sum(-1, keepdims=True)
    mixed = jnp.einsum("bnhgs,bshd->bnhgd", (prefix / total).astype(q.dtype), prefix_v)
    mixed += jnp.einsum("bnhgt,bnhtd->bnhgd", (suffix / total).astype(q.dtype), suffix_v)
    return mixed.reshape(batch, samples, heads, head_dim)
