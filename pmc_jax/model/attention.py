"""Scaled dot-product attention with grouped queries, in XLA's operations.

The softmax is computed in at least fp32. `scale` multiplies the query-key products, and a
`softcap` c maps them to c · tanh(s / c). A `window` w > 0 lets a query see the last w positions
only, its own included; w = 0 lets it see all.

`pmc_jax.model.kernels` has faster implementations of `causal_attention` and `write_and_attend`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pmc_jax.model.products import wide_einsum
from pmc_jax.model.rope import rotate
from pmc_jax.model.sharding import has_mesh

Segments = Bool[Array, "batch time"] | Int[Array, "batch time"]
"""The number of each token's sequence within its row; 0 at padding.

The tokens of a sequence are contiguous. Where each row holds one sequence, a mask of real tokens is
enough.
"""


def same_segment(segments: Segments) -> Bool[Array, "batch time time"]:
    """Whether two positions of a row belong to the same sequence."""
    return segments[:, :, None] == segments[:, None, :]


def segment_lengths(segments: Segments) -> Int[Array, "batch time"]:
    """The length of the sequence that each position belongs to."""
    return same_segment(segments).sum(axis=-1)


def _scores(equation: str, q: Array, k: Array, scale: float, softcap: float | None) -> Array:
    """Scaled and softcapped query-key products, in at least fp32."""
    scores = wide_einsum(equation, q, k) * scale
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _in_window(distance: Array, window: Int[Array, ""] | None) -> Array:
    """Whether a query sees a key that lies this many positions before it."""
    if window is None:
        return distance >= 0
    return (distance >= 0) & ((distance < window) | (window <= 0))


def visible_keys(
    segments: Segments, window: Int[Array, ""] | None
) -> Bool[Array, "batch time time"]:
    """Whether each query (second axis) sees each key (third axis)."""
    position = jnp.arange(segments.shape[1])
    return _in_window(position[:, None] - position, window) & same_segment(segments)


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
    """Each position attends to the positions of its own sequence up to itself."""
    batch, time, heads, head_dim = q.shape
    q = q.reshape(batch, time, k.shape[2], -1, head_dim)
    scores = _scores("bthgd,bshd->bhtgs", q, k, scale, softcap)
    visible = visible_keys(segments, window)[:, None, :, None]
    scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
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
    unused: Int[Array, "batch samples"] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "batch samples heads head_dim"]:
    """The newest token of each sample attends to its prompt and to its own suffix up to `step`.

    All samples of a prompt read the same copy of its keys and values. A sample does not see the
    last `unused` positions of it (None: 0); its suffix directly follows the position before these.
    One softmax covers prefix and suffix: the weights are exp(score - max) divided by the sum over
    both.
    """
    batch, samples, heads, head_dim = q.shape
    q = q.reshape(batch, samples, prefix_k.shape[1], -1, head_dim)
    # Heads before samples: the order in which the prefix cache is laid out.
    prefix = _scores("bhngd,bhsd->bhngs", jnp.swapaxes(q, 1, 2), prefix_k, scale, softcap)
    suffix = _scores("bnhgd,bnhtd->bnhgt", q, suffix_k, scale, softcap)
    suffix = jnp.swapaxes(suffix, 1, 2)
    lowest = jnp.finfo(prefix.dtype).min
    # Prompts are padded on the left, so that the suffix directly follows their last used position.
    position = jnp.arange(prefix_k.shape[2])
    end = prefix_k.shape[2] if unused is None else prefix_k.shape[2] - unused[..., None]
    visible = _in_window(end + step - position, window) & (position < end)
    visible = jnp.expand_dims(prefix_mask, 1) & visible  # [batch, samples or 1, prompt]
    prefix = jnp.where(visible[:, None, :, None], prefix, lowest)
    suffix = jnp.where(_in_window(step - jnp.arange(suffix_k.shape[3]), window), suffix, lowest)
    highest = jnp.maximum(prefix.max(-1, keepdims=True), suffix.max(-1, keepdims=True))
    prefix, suffix = jnp.exp(prefix - highest), jnp.exp(suffix - highest)
    total = prefix.sum(-1, keepdims=True) + suffix.sum(-1, keepdims=True)
    prefix, suffix = ((part / total).astype(q.dtype) for part in (prefix, suffix))
    mixed = jnp.swapaxes(jnp.einsum("bhngs,bhsd->bhngd", prefix, prefix_v), 1, 2)
    mixed += jnp.einsum("bnhgt,bnhtd->bnhgd", jnp.swapaxes(suffix, 1, 2), suffix_v)
    return mixed.reshape(batch, samples, heads, head_dim)


def write_and_attend(
    q: Float[Array, "batch samples heads head_dim"],
    k: Float[Array, "batch samples kv_heads head_dim"],
    v: Float[Array, "batch samples kv_heads head_dim"],
    rope: tuple[Float[Array, "batch #samples half"], Float[Array, "batch #samples half"]],
    prefix_k: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_v: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_mask: Bool[Array, "batch prompt"],
    suffix_k: Float[Array, "layers batch samples kv_heads time head_dim"],
    suffix_v: Float[Array, "layers batch samples kv_heads time head_dim"],
    layer: Int[Array, ""],
    step: Int[Array, ""],
    window: Int[Array, ""] | None = None,
    unused: Int[Array, "batch samples"] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    attention: Callable[..., Array] = decode_attention,
) -> tuple[
    Float[Array, "batch samples heads head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
]:
    """Rotate queries and keys, write keys and values to the suffix cache at `step`, and attend.

    `rope` has cosines and sines for each sample, or for each prompt, which all its samples then
    share. `layer` is the index within the stack, and `unused` that of `decode_attention`. Returns
    the mixed values and both suffix caches.
    """
    single = len(suffix_k) == 1 and not has_mesh()

    def write(cache: Array, new: Array) -> Array:
        if single:  # without the layer axis, as the decode loop carries it (`squeeze_single`)
            return jax.lax.dynamic_update_slice(cache[0], new[..., None, :], start)[None]
        return jax.lax.dynamic_update_slice(cache, new[None, ..., None, :], (layer, *start))

    def of_layer(cache: Array) -> Array:
        return cache[0] if single else cache[layer]

    zero = jnp.zeros_like(step)
    start = (zero, zero, zero, step, zero)
    suffix_k, suffix_v = write(suffix_k, rotate(k, *rope)), write(suffix_v, v)
    mixed = attention(
        rotate(q, *rope), prefix_k, prefix_v, prefix_mask, of_layer(suffix_k), of_layer(suffix_v),
        step, window, unused, scale=scale, softcap=softcap,
    )  # fmt: skip
    return mixed, suffix_k, suffix_v
