"""Key/value caches of the decoder: a shared prompt prefix and one suffix per sample.

Both hold one array for each stack of layers that the weights are in (`layer_stacks`).
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from pmc_jax.model.sharding import constrain

Part = TypeVar("Part")

SUFFIX_AXES = 6
"""How many axes a stack's suffix cache has."""


@struct.dataclass
class PrefixCache:
    """Keys and values of left-padded prompts, held once per prompt.

    Attributes:
        k, v: each stack's keys and values.
        mask: True at prompt tokens, False at padding.
    """

    k: tuple[Float[Array, "layers batch kv_heads prompt head_dim"], ...]
    v: tuple[Float[Array, "layers batch kv_heads prompt head_dim"], ...]
    mask: Bool[Array, "batch prompt"]


@struct.dataclass
class SuffixCache:
    """Keys and values of the tokens decoded so far, one row per sample of each prompt.

    All rows write position t at decode step t; positions after the current step
    are not read. A loop carries stacks of one layer without their axis (`squeeze_single`).
    """

    k: tuple[Float[Array, "*layers batch samples kv_heads time head_dim"], ...]
    v: tuple[Float[Array, "*layers batch samples kv_heads time head_dim"], ...]

    @property
    def length(self) -> int:
        """Decode steps that fit."""
        return self.k[0].shape[-2]


def init_suffix(prefix: PrefixCache, samples: int, length: int) -> SuffixCache:
    """An empty suffix cache for `length` decode steps of `samples` samples of every prompt."""

    def empty(stack: Array) -> Array:
        layers, batch, kv_heads, _, head_dim = stack.shape
        return jnp.zeros((layers, batch, samples, kv_heads, length, head_dim), stack.dtype)

    k, v = jax.tree.map(empty, (prefix.k, prefix.v))
    return place_suffix(SuffixCache(k=k, v=v))


def place_suffix(suffix: Part) -> Part:
    """The same cache, or stacks of it, parted over the mesh by prompts and heads."""
    axes = ("layers", "batch", None, "kv_heads", None, None)
    return jax.tree.map(lambda x: constrain(x, *axes), suffix)


def place_prefix(prefix: PrefixCache) -> PrefixCache:
    """The same cache, parted over the mesh by prompts and heads."""
    axes = ("layers", "batch", "kv_heads", None, None)
    k, v = jax.tree.map(lambda x: constrain(x, *axes), (prefix.k, prefix.v))
    return PrefixCache(k=k, v=v, mask=constrain(prefix.mask, "batch", None))


def grow(suffix: SuffixCache, length: int) -> SuffixCache:
    """The same cache with room for `length` decode steps."""
    room = [(0, 0)] * 4 + [(0, length - suffix.length), (0, 0)]
    return place_suffix(jax.tree.map(lambda x: jnp.pad(x, room), suffix))


def squeeze_single(suffix: SuffixCache) -> SuffixCache:
    """The cache for a loop to carry: stacks of a single layer without their first axis.

    A decode step writes to them so. XLA for CPUs writes in place only where an array has one
    shape all the time; else it copies the cache at every step. On a mesh they stay as they are,
    since XLA would gather a cache that is not parted by heads.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        return suffix
    return jax.tree.map(lambda x: x[0] if len(x) == 1 else x, suffix)


def unsqueeze_single(suffix: SuffixCache) -> SuffixCache:
    """The cache of which `squeeze_single` made this one."""
    return jax.tree.map(lambda x: x if x.ndim == SUFFIX_AXES else x[None], suffix)
