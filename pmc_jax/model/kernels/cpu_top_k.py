"""The largest logits on a CPU, by a kernel in C++ (`native`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from pmc_jax.model.kernels.native import native_call


def top_k_cpu(
    x: Float[Array, "*batch size"], count: int, scale: ArrayLike
) -> tuple[Float[Array, "*batch count"], Int[Array, "*batch count"]]:
    """`lax.top_k` of x · scale. The kernel scales as it reads.

    Raises:
        ValueError: if `count` is not between 1 and the size of x's last axis.
    """
    if not 0 < count <= x.shape[-1]:
        raise ValueError(f"there are no {count} largest of {x.shape[-1]}")
    rows = x.reshape(-1, x.shape[-1])
    shape = len(rows), count
    found = native_call(
        "top_k",
        [jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int32)],
        rows, jnp.asarray(scale, x.dtype).reshape(1),
    )  # fmt: skip
    values, indices = (own.reshape(*x.shape[:-1], count) for own in found)
    return values, indices
