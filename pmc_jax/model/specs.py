"""The weight table: it declares each weight once, and everything else is derived from it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from pmc_jax.model.config import ModelConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape, logical axes and initialiser ("normal", "zeros" or "ones") of a weight."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: str = "normal"


def param_specs(cfg: ModelConfig) -> Params:
    """The table for `cfg`: nested dicts of `Spec`. The first axis of layer weights is "layers"."""
    layers, embed, mlp = cfg.num_layers, cfg.hidden_size, cfg.intermediate_size
    heads, kv_heads, head_dim = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim

    def stacked(shape: tuple[int, ...], axes: tuple[str, ...], init: str = "normal") -> Spec:
        return Spec((layers, *shape), ("layers", *axes), init)

    def norm(name: str, size: int = embed, axis: str = "embed") -> dict[str, Spec]:
        start = "zeros" if cfg.norm == "rms_plus_one" else "ones"
        leaves = {name: stacked((size,), (axis,), start)}
        if cfg.norm == "layer":
            leaves[f"{name}_bias"] = stacked((size,), (axis,), "zeros")
        return leaves

    layer = {
        **norm("attn_norm"),
        "q": stacked((embed, heads, head_dim), ("embed", "heads", "head_dim")),
        "k": stacked((embed, kv_heads, head_dim), ("embed", "kv_heads", "head_dim")),
        "v": stacked((embed, kv_heads, head_dim), ("embed", "kv_heads", "head_dim")),
        "o": stacked((heads, head_dim, embed), ("heads", "head_dim", "embed")),
        "up": stacked((embed, mlp), ("embed", "mlp")),
        "down": stacked((mlp, embed), ("mlp", "embed")),
    }
    if not cfg.parallel_block:
        layer |= norm("mlp_norm")
    if cfg.post_norms:
        layer |= norm("attn_post_norm") | norm("mlp_post_norm")
    if cfg.qk_norm:
        layer |= norm("q_norm", head_dim, "head_dim") | norm("k_norm", head_dim, "head_dim")
    if cfg.gated_mlp:
        layer["gate"] = stacked((embed, mlp), ("embed", "mlp"))
    if cfg.attention_bias:
        layer |= {
            "q_bias": stacked((heads, head_dim), ("heads", "head_dim"), "zeros"),
            "k_bias": stacked((kv_heads, head_dim), ("kv_heads", "head_dim"), "zeros"),
            "v_bias": stacked((kv_heads, head_dim), ("kv_heads", "head_dim"), "zeros"),
        }
    if cfg.attention_out_bias:
        layer["o_bias"] = stacked((embed,), ("embed",), "zeros")
    if cfg.mlp_bias:
        if cfg.gated_mlp:
            layer["gate_bias"] = stacked((mlp,), ("mlp",), "zeros")
        layer |= {
            "up_bias": stacked((mlp,), ("mlp",), "zeros"),
            "down_bias": stacked((embed,), ("embed",), "zeros"),
        }
    specs: Params = {
        "embed": Spec((cfg.vocab_size, embed), ("vocab", "embed")),
        "layers": layer,
        # The norm of a layer, without the axis "layers".
        **{
            name: Spec(spec.shape[1:], spec.axes[1:], spec.init)
            for name, spec in norm("final_norm").items()
        },
    }
    if not cfg.tie_embeddings:
        specs["lm_head"] = Spec((embed, cfg.vocab_size), ("embed", "vocab"))
    if cfg.head_bias:
        specs["lm_head_bias"] = Spec((cfg.vocab_size,), ("vocab",), "zeros")
    return specs


def init_params(key: PRNGKeyArray, cfg: ModelConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """Random weights: N(0, `cfg.initializer_range`²) for matrices, constants elsewhere."""
    specs, treedef = jax.tree.flatten(param_specs(cfg))
    keys = jax.random.split(key, len(specs))

    def leaf(key: PRNGKeyArray, spec: Spec) -> Array:
        if spec.init == "normal":
            return cfg.initializer_range * jax.random.normal(key, spec.shape, dtype)
        return jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, dtype)

    leaves = [leaf(k, s) for k, s in zip(keys, specs, strict=True)]
    return jax.tree.unflatten(treedef, leaves)


def abstract_specs(specs: Params, dtype: DTypeLike = jnp.float32) -> Params:
    """Shapes and dtypes of the weights of a table, without values."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), specs)


def abstract_params(cfg: ModelConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """Shapes and dtypes of a model's weights, without values."""
    return abstract_specs(param_specs(cfg), dtype)


def count_of(specs: Params) -> int:
    """Number of weights of a table."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(specs))


def param_count(cfg: ModelConfig) -> int:
    """Number of a model's weights; a tied output head counts once."""
    return count_of(param_specs(cfg))


def decayed(specs: Params) -> Params:
    """True where weight decay applies: everywhere but biases and norm weights."""
    return jax.tree.map(lambda spec: spec.init == "normal", specs)


def decay_mask(cfg: ModelConfig) -> Params:
    """`decayed` of all of a model's weights."""
    return decayed(param_specs(cfg))
