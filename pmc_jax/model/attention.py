"""Scaled dot-product attention with grouped queries, softmax in at least fp32.

`scale` multiplies the query-key products and `softcap` c takes them to c · tanh(s / c). A
`window` w > 0 hides the positions w and more before the query.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.model.products import wide_einsum
from pmc_jax.model.rope import rotate
from pmc_jax.native import VECTOR, has_native

HEAD_DIMS = (16, 32, 64, 128, 256)
"""Those that Triton has blocks of."""

FLASH_HEAD_DIMS = range(8, 129, 8)
"""Those that cuDNN has attention and its gradient for, on all GPUs that Triton compiles for."""

MOST_ELEMENTS = 2**31
"""Elements of an array that 32-bit offsets reach."""

LEAST_CAPABILITY = 8.0
"""Compute capability of the oldest GPUs that Triton compiles for."""

Segments = Bool[Array, "batch time"] | Int[Array, "batch time"]
"""Which sequence of its row a token belongs to; 0 at padding.

The tokens of a sequence follow one another. A mask of real tokens will do for rows of one
sequence each.
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


def _allowed(segments: Segments, window: Int[Array, ""] | None) -> Bool[Array, "batch time time"]:
    """Whether a position attends to another."""
    place = jnp.arange(segments.shape[1])
    return _within(place[:, None] - place, window) & same_segment(segments)


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
    allowed = _allowed(segments, window)[:, None, :, None]
    scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhtgs,bshd->bthgd", weights, v).reshape(batch, time, heads, head_dim)


def flash_attention(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
    segments: Segments,
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "batch time heads head_dim"]:
    """`causal_attention` without its scores in memory, by cuDNN; where `has_flash` says so.

    What is in memory is the mask, which JAX has cuDNN add to the scores, and its gradient.
    """
    allowed = _allowed(segments, window)[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=allowed, scale=scale, is_causal=True, implementation=implementation
    )


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
    # Heads before samples, so that a prompt's products are with its keys and values as they lie.
    prefix = _scores("bhngd,bhsd->bhngs", jnp.swapaxes(q, 1, 2), prefix_k, scale, softcap)
    suffix = _scores("bnhgd,bnhtd->bnhgt", q, suffix_k, scale, softcap)
    suffix = jnp.swapaxes(suffix, 1, 2)
    lowest = jnp.finfo(prefix.dtype).min
    # Prompts are padded on the left, so that the suffix follows their last place directly.
    prompt = prefix_k.shape[2]
    seen = prefix_mask & _within(prompt + step - jnp.arange(prompt), window)
    prefix = jnp.where(seen[:, None, None, None, :], prefix, lowest)
    suffix = jnp.where(_within(step - jnp.arange(suffix_k.shape[3]), window), suffix, lowest)
    top = jnp.maximum(prefix.max(-1, keepdims=True), suffix.max(-1, keepdims=True))
    prefix, suffix = jnp.exp(prefix - top), jnp.exp(suffix - top)
    total = prefix.sum(-1, keepdims=True) + suffix.sum(-1, keepdims=True)
    prefix, suffix = ((part / total).astype(q.dtype) for part in (prefix, suffix))
    mixed = jnp.swapaxes(jnp.einsum("bhngs,bhsd->bhngd", prefix, prefix_v), 1, 2)
    mixed += jnp.einsum("bnhgt,bnhtd->bnhgd", jnp.swapaxes(suffix, 1, 2), suffix_v)
    return mixed.reshape(batch, samples, heads, head_dim)


def write_and_attend(
    q: Float[Array, "batch samples heads head_dim"],
    k: Float[Array, "batch samples kv_heads head_dim"],
    v: Float[Array, "batch samples kv_heads head_dim"],
    rope: tuple[Float[Array, "batch 1 half"], Float[Array, "batch 1 half"]],
    prefix_k: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_v: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_mask: Bool[Array, "batch prompt"],
    suffix_k: Float[Array, "layers batch samples kv_heads time head_dim"],
    suffix_v: Float[Array, "layers batch samples kv_heads time head_dim"],
    layer: Int[Array, ""],
    step: Int[Array, ""],
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    attention: Callable[..., Array] = decode_attention,
) -> tuple[
    Float[Array, "batch samples heads head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
]:
    """The new token's attention, and the stack's suffix with its keys and values at `step`.

    Queries and keys come as they are projected, and are rotated by `rope`, one angle of each
    dimension for all samples of a prompt.
    """

    alone = len(suffix_k) == 1 and jax.sharding.get_abstract_mesh().empty

    def write(cache: Array, new: Array) -> Array:
        if alone:  # without its axis, as a loop carries it (`squeeze_single`)
            return jax.lax.dynamic_update_slice(cache[0], new[..., None, :], place)[None]
        return jax.lax.dynamic_update_slice(cache, new[None, ..., None, :], (layer, *place))

    def own(cache: Array) -> Array:
        return cache[0] if alone else cache[layer]

    zero = jnp.zeros_like(step)
    place = (zero, zero, zero, step, zero)
    suffix_k, suffix_v = write(suffix_k, rotate(k, *rope)), write(suffix_v, v)
    mixed = attention(
        rotate(q, *rope), prefix_k, prefix_v, prefix_mask, own(suffix_k), own(suffix_v),
        step, window, scale=scale, softcap=softcap,
    )  # fmt: skip
    return mixed, suffix_k, suffix_v


def kernel_places(
    prefix_mask: Bool[Array, "batch prompt"],
    layer: Int[Array, ""],
    step: Int[Array, ""],
    window: Int[Array, ""] | None,
) -> Int[Array, "batch 4"]:
    """What decode kernels are told: layer, first places of prompt and suffix to read, and step.

    Of prompts that are padded on the left; all places after the first ones are read.
    """
    prompt = prefix_mask.shape[1]
    first_of_prompt = prompt - prefix_mask.sum(axis=1)
    first_own = jnp.zeros_like(step)
    if window is not None:
        furthest = jnp.where(window > 0, step - window + 1, -prompt)
        first_of_prompt = jnp.clip(prompt + furthest, first_of_prompt, prompt)
        first_own = jnp.maximum(furthest, 0)
    columns = (layer, first_of_prompt, first_own, step)
    rows = [jnp.broadcast_to(x, len(prefix_mask)).astype(jnp.int32) for x in columns]
    return jnp.stack(rows, axis=1)


def compute_capability(device: Any) -> float:
    """That of an NVIDIA GPU; 0 of other devices."""
    found = str(getattr(device, "compute_capability", ""))
    return float(found) if found[:1].isdigit() else 0.0


def on_one_gpu(q: Array) -> bool:
    """Whether a program of such queries is for a single GPU that has matrix units for them."""
    return (
        jax.default_backend() == "gpu"
        and compute_capability(jax.devices()[0]) >= LEAST_CAPABILITY
        and jax.sharding.get_abstract_mesh().empty
        and q.dtype in (jnp.bfloat16, jnp.float16)
    )


def has_kernel(q: Array, *caches: Array) -> bool:
    """Whether there is a kernel for such queries and keys where the program will run."""
    small = max(cache.size for cache in caches) < MOST_ELEMENTS
    return on_one_gpu(q) and q.shape[-1] in HEAD_DIMS and small


def has_flash(q: Array, softcap: float | None) -> bool:
    """Whether cuDNN has attention for such queries where the program will run.

    And whether it may be used: its gradient has the same bits each time only by chance, so that
    `XLA_FLAGS` that ask for deterministic operations rule it out.
    """
    time, head_dim = q.shape[1], q.shape[3]
    there = softcap is None and time % 2 == 0 and head_dim in FLASH_HEAD_DIMS
    return there and on_one_gpu(q) and "deterministic" not in os.environ.get("XLA_FLAGS", "")


def has_cpu_kernels(head_dim: int, dtype: DTypeLike) -> bool:
    """Whether kernels in C++ attend, with heads of this size, where the program will run.

    They read of a cache what is written, however much room it has.
    """
    return head_dim % VECTOR == 0 and has_native(dtype)


def best_causal_attention(q: Array, softcap: float | None) -> Callable[..., Array]:
    """`causal_attention` with this `softcap`, or what computes the same faster where it can."""
    if has_cpu_kernels(q.shape[-1], q.dtype):
        from pmc_jax.model.causal_kernel_cpu import causal_attention_native

        return partial(causal_attention_native, softcap=softcap)
    return flash_attention if has_flash(q, softcap) else partial(causal_attention, softcap=softcap)


def best_write_and_attend(q: Array, *caches: Array) -> Callable[..., tuple[Array, Array, Array]]:
    """`write_and_attend`, or the kernel that computes the same where there is one."""
    if has_cpu_kernels(q.shape[-1], q.dtype):
        from pmc_jax.model.decode_kernel_cpu import write_and_attend_native

        return write_and_attend_native
    if not has_kernel(q, *caches):
        return write_and_attend
    try:  # only here, since Pallas takes half a second to import
        from pmc_jax.model.decode_kernel import write_and_attend_kernel
    except ImportError:  # JAX has announced that it will remove Pallas' Triton
        return write_and_attend
    return write_and_attend_kernel
