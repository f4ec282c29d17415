"""Pseudo-random bits for every element of an array, the same in every sharding.

They are a function of the element's row-major index. They need no table and no key, and are cheap
enough to be computed again wherever they are used.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


def element_index(shape: Sequence[int]) -> UInt32[Array, "..."]:
    """Each element's row-major index mod 2³², without a reshape."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * size + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def mixed(bits: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finaliser of MurmurHash3 (Appleby), a bijection that spreads every bit over all."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
