"""Key/value caches of the decoder: a shared prompt prefix and one suffix per sample."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float

from pmc_jax.model.config import ModelConfig
from pmc_jax.model.sharding import constrain


@struct.dataclass
class PrefixCache:
    """Keys and values of left-padded prompts, held once per prompt.

    Attributes:
        k, v: all layers' keys and values.
        mask: True at prompt tokens, False at padding.
    """

    k: Float[Array, "layers batch kv_heads prompt head_dim"]
    v: Float[Array, "layers batch kv_heads prompt head_dim"]
    mask: Bool[Array, "batch prompt"]


@struct.dataclass
class SuffixCache:
    """Keys and values of the tokens decoded so far, one row per sample of each prompt.

    All rows write position t at decode step t; positions after the current step
    are not read.
    """

    k: Float[Array, "layers batch samples kv_heads time head_dim"]
    v: Float[Array, "layers batch samples kv_heads time head_dim"]

    @property
    def length(self) -> int:
        """Decode steps that fit."""
        return self.k.shape[4]


def init_suffix(
    cfg: ModelConfig, batch: int, samples: int, length: int, dtype: DTypeLike
) -> SuffixCache:
    """An empty suffix cache for `length` decode steps."""
    shape = (cfg.num_layers, batch, samples, cfg.num_kv_heads, length, cfg.head_dim)
    return place_suffix(SuffixCache(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype)))


def place_suffix(suffix: SuffixCache) -> SuffixCache:
    """The same cache, parted over the mesh by prompts and heads."""
    axes = ("layers", "batch", None, "kv_heads", None, None)
    return jax.tree.map(lambda x: constrain(x, *axes), suffix)


def place_prefix(prefix: PrefixCache) -> PrefixCache:
    """The same cache, parted over the mesh by prompts and heads."""
    k, v = (constrain(x, "layers", "batch", "kv_heads", None, None) for x in (prefix.k, prefix.v))
    return PrefixCache(k=k, v=v, mask=constrain(prefix.mask, "batch", None))


def grow(suffix: SuffixCache, length: int) -> SuffixCache:
    """The same cache with room for `length` decode steps."""
    room = [(0, 0)] * 4 + [(0, length - suffix.length), (0, 0)]
    return place_suffix(jax.tree.map(lambda x: jnp.pad(x, room), suffix))
