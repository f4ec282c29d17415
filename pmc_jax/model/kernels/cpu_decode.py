"""Rotation, cache update and attention of a decode step on a CPU, by a kernel in C++ (`native`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pmc_jax.model.kernels.native import VECTOR, native_call
from pmc_jax.model.kernels.visible import visible_ranges


def write_and_attend_cpu(
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
) -> tuple[
    Float[Array, "batch samples heads head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
]:
    """`write_and_attend` for left-padded prompts; `head_dim` is a multiple of `VECTOR`.

    It reads only the part of the suffix cache that is written.
    """
    left = [(0, 0), (0, 0), (-prefix_k.shape[2] % VECTOR, 0), (0, 0)]
    # None of these changes from step to step, so XLA computes them once, before the loop. It would
    # not do so for a transposition alone, which is why the scale is applied here.
    prompt_k = scale * jnp.swapaxes(jnp.pad(prefix_k, left), 2, 3)
    prompt_v = jnp.pad(prefix_v, left)
    mask = jnp.pad(prefix_mask, left[1:3])
    # A single layer goes without its axis, as the decode loop carries it (`squeeze_single`).
    caches = [x[0] if len(x) == 1 else x for x in (suffix_k, suffix_v)]
    samples = q.shape[:2]
    unused = jnp.zeros(samples, jnp.int32) if unused is None else unused
    mixed, *written = native_call(
        "write_and_attend",
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *caches)],
        jnp.concatenate([q, k, v], axis=2),  # no copy where their weights are joined
        *(jnp.broadcast_to(table, (*samples, table.shape[-1])) for table in rope),
        prompt_k, prompt_v, *caches, visible_ranges(mask, layer, step, window, unused),
        in_place={5: 1, 6: 2}, scale=scale, softcap=softcap or 0.0,
    )  # fmt: skip
    new_k, new_v = (x.reshape(suffix_k.shape) for x in written)
    return mixed, new_k, new_v
