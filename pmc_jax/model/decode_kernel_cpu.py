"""Rotation, cache and attention of a decode step on CPUs, by a kernel in C++ (`pmc_jax.native`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pmc_jax.model.attention import kernel_places
from pmc_jax.native import VECTOR, native_call


def write_and_attend_native(
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
) -> tuple[
    Float[Array, "batch samples heads head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
]:
    """`write_and_attend`, for prompts that are padded on the left and heads of whole vectors;
    where `has_native` says so.
    """
    left = [(0, 0), (0, 0), (-prefix_k.shape[2] % VECTOR, 0), (0, 0)]
    # None of these changes from step to step. XLA computes them once, before a loop, but for a
    # transposition alone: hence the scale here.
    prompt_k = scale * jnp.swapaxes(jnp.pad(prefix_k, left), 2, 3)
    prompt_v = jnp.pad(prefix_v, left)
    mask = jnp.pad(prefix_mask, left[1:3])
    # Of one layer without its axis, as a loop carries it (`squeeze_single`).
    caches = [x[0] if len(x) == 1 else x for x in (suffix_k, suffix_v)]
    mixed, *written = native_call(
        "write_and_attend",
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *caches)],
        jnp.concatenate([q, k, v], axis=2),  # of joined weights, as they lie
        *(table[:, 0] for table in rope),
        prompt_k, prompt_v, *caches, kernel_places(mask, layer, step, window),
        in_place={5: 1, 6: 2}, scale=scale, softcap=softcap or 0.0,
    )  # fmt: skip
    new_k, new_v = (x.reshape(suffix_k.shape) for x in written)
    return mixed, new_k, new_v
