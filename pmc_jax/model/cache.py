"""Key/value caches of the decoder: one prefix per prompt and one suffix per sample.

Both hold one array for each stack of layers (`layer_stacks`).
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from pmc_jax.model.sharding import constrain, has_mesh

Part = TypeVar("Part")

PREFIX_AXES = ("layers", "batch", "kv_heads", None, None)
SUFFIX_AXES = ("layers", "batch", None, "kv_heads", None, None)
"""The logical axes of a stack's prefix and suffix cache."""


@struct.dataclass
class PrefixCache:
    """Keys and values of left-padded prompts, once per prompt.

    Attributes:
        k, v: keys and values of each stack.
        mask: True at prompt tokens, False at padding.
    """

    k: tuple[Float[Array, "layers batch kv_heads prompt head_dim"], ...]
    v: tuple[Float[Array, "layers batch kv_heads prompt head_dim"], ...]
    mask: Bool[Array, "batch prompt"]


@struct.dataclass
class SuffixCache:
    """Keys and values of the tokens decoded so far, for each sample of each prompt.

    Decode step t writes position t of all samples. Positions after the current step are not read.
    A loop carries stacks of one layer without the layer axis (`squeeze_single`).
    """

    k: tuple[Float[Array, "*layers batch samples kv_heads time head_dim"], ...]
    v: tuple[Float[Array, "*layers batch samples kv_heads time head_dim"], ...]

    @property
    def length(self) -> int:
        """Number of decode steps that the cache has room for."""
        return self.k[0].shape[-2]


def init_suffix(prefix: PrefixCache, samples: int, length: int) -> SuffixCache:
    """An empty suffix cache for `length` decode steps of `samples` samples of each prompt."""

    def empty(stack: Array) -> Array:
        layers, batch, kv_heads, _, head_dim = stack.shape
        return jnp.zeros((layers, batch, samples, kv_heads, length, head_dim), stack.dtype)

    k, v = jax.tree.map(empty, (prefix.k, prefix.v))
    return place_suffix(SuffixCache(k=k, v=v))


def place_suffix(suffix: Part) -> Part:
    """The same cache, or stacks of it, sharded over the mesh by prompts and heads."""
    return jax.tree.map(lambda x: constrain(x, *SUFFIX_AXES), suffix)


def place_prefix(prefix: PrefixCache) -> PrefixCache:
    """The same cache, sharded over the mesh by prompts and heads."""
    k, v = jax.tree.map(lambda x: constrain(x, *PREFIX_AXES), (prefix.k, prefix.v))
    return PrefixCache(k=k, v=v, mask=constrain(prefix.mask, "batch", None))


@partial(jax.jit, static_argnames="length")
def _longer(stack: Array, length: int) -> Array:
    """A stack of a suffix cache with room for `length` decode steps."""
    room = [(0, 0)] * 4 + [(0, length - stack.shape[-2]), (0, 0)]
    return place_suffix(jnp.pad(stack, room))


def grow(suffix: SuffixCache, length: int) -> SuffixCache:
    """The same cache with room for `length` decode steps; it replaces `suffix` (`replaced`)."""
    return replaced(partial(_longer, length=length), suffix)


def replaced(change: Callable[[Array], Array], tree: Part) -> Part:
    """`tree` with `change` applied to its arrays; each is freed once its successor is there.

    So there is never a second copy of the whole. A call within a compiled function would free
    nothing.
    """

    def one(old: Array) -> Array:
        new = jax.block_until_ready(change(old))
        old.delete()
        return new

    return jax.tree.map(one, tree)


def squeeze_single(suffix: SuffixCache) -> SuffixCache:
    """The cache for a loop to carry: stacks of a single layer lose their first axis.

    XLA for CPUs writes in place only if an array keeps one shape throughout the loop; otherwise it
    copies the cache at every step. On a mesh the cache stays as it is: without the axis, XLA would
    gather a cache that is not sharded by heads.
    """
    if has_mesh():
        return suffix
    return jax.tree.map(lambda x: x[0] if len(x) == 1 else x, suffix)


def unsqueeze_single(suffix: SuffixCache) -> SuffixCache:
    """The inverse of `squeeze_single`."""
    return jax.tree.map(lambda x: x if x.ndim == len(SUFFIX_AXES) else x[None], suffix)
