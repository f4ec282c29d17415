"""The decoder's forward pass: whole sequences, prompt prefill, and single decode steps.

All three run the same `block` over stacked layer weights with `lax.scan`; they
differ only in what a query attends to. Matrix products run in the dtype of the
hidden state, everything else in at least fp32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.model.attention import causal_attention, decode_attention
from pmc_jax.model.cache import PrefixCache, SuffixCache
from pmc_jax.model.config import ModelConfig
from pmc_jax.model.rope import rope_tables, rotate
from pmc_jax.model.specs import Params

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

Attend = Callable[[Array, Array, Array], tuple[Array, tuple[Array, Array]]]


def rms_norm(
    x: Float[Array, "*batch embed"], weight: Float[Array, " embed"], eps: float
) -> Float[Array, "*batch embed"]:
    """x / sqrt(mean(x²) + eps) · weight (Zhang and Sennrich 2019)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight).astype(x.dtype)


def linear(x: Array, layer: Params, name: str, equation: str) -> Array:
    """x·W (+ b where the layer has one), computed in x's dtype."""
    y = jnp.einsum(equation, x, layer[name].astype(x.dtype))
    bias = layer.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


def block(
    x: Float[Array, "batch rows embed"],
    layer: Params,
    rope: tuple[Array, Array],
    attend: Attend,
    cfg: ModelConfig,
) -> tuple[Float[Array, "batch rows embed"], tuple[Array, Array]]:
    """One pre-norm layer. `attend(q, k, v)` gives the mixed values and the new cache."""
    h = rms_norm(x, layer["attn_norm"], cfg.norm_eps)
    q, k, v = (linear(h, layer, name, "brd,dhk->brhk") for name in ("q", "k", "v"))
    mixed, kv = attend(rotate(q, *rope), rotate(k, *rope), v)
    x = x + linear(mixed, layer, "o", "brhk,hkd->brd")
    h = rms_norm(x, layer["mlp_norm"], cfg.norm_eps)
    gate = ACTIVATIONS[cfg.activation](linear(h, layer, "gate", "brd,df->brf"))
    x = x + linear(gate * linear(h, layer, "up", "brd,df->brf"), layer, "down", "brf,fd->brd")
    return x, kv


def _embed(
    params: Params, tokens: Array, positions: Array, cfg: ModelConfig, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    x = params["embed"][tokens].astype(dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    return x, rope_tables(positions, cfg.rope, cfg.head_dim, wide)


def forward(
    params: Params,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    cfg: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> Float[Array, "batch time embed"]:
    """Final hidden states (after the last norm) of whole sequences.

    `mask` is False at padding; padding may stand on either side. `remat` names what
    the backward pass recomputes: "none", "dots" (keep matrix products) or "full".
    """

    def layer_step(x: Array, layer: Params) -> tuple[Array, None]:
        x, _ = block(x, layer, rope, lambda q, k, v: (causal_attention(q, k, v, mask), (k, v)), cfg)
        return x, None

    if remat != "none":
        layer_step = jax.checkpoint(layer_step, policy=REMAT_POLICIES[remat])
    x, rope = _embed(params, tokens, positions, cfg, dtype)
    x, _ = jax.lax.scan(layer_step, x, params["layers"])
    return rms_norm(x, params["final_norm"], cfg.norm_eps)


def logits(
    params: Params, hidden: Float[Array, "*batch embed"], cfg: ModelConfig
) -> Float[Array, "*batch vocab"]:
    """Next-token logits in at least fp32."""
    head = params["embed"].T if cfg.tie_embeddings else params["lm_head"]
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum(
        "...d,dv->...v", hidden, head.astype(hidden.dtype), preferred_element_type=wide
    )


def prefill(
    params: Params,
    tokens: Int[Array, "batch prompt"],
    mask: Bool[Array, "batch prompt"],
    cfg: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "batch vocab"], PrefixCache]:
    """Run left-padded prompts once: logits after the last token, and their cache."""

    def layer_step(x: Array, layer: Params) -> tuple[Array, tuple[Array, Array]]:
        return block(x, layer, rope, lambda q, k, v: (causal_attention(q, k, v, mask), (k, v)), cfg)

    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    x, rope = _embed(params, tokens, positions, cfg, dtype)
    x, (k, v) = jax.lax.scan(layer_step, x, params["layers"])
    last = rms_norm(x[:, -1], params["final_norm"], cfg.norm_eps)
    return logits(params, last, cfg), PrefixCache(k=k, v=v, mask=mask)


def decode_step(
    params: Params,
    tokens: Int[Array, "batch samples"],
    step: Int[Array, ""],
    prefix: PrefixCache,
    suffix: SuffixCache,
    cfg: ModelConfig,
) -> tuple[Float[Array, "batch samples vocab"], SuffixCache]:
    """Feed each sample's token number `step` and return the logits of the next one.

    The suffix cache travels in the scan's carry, so that it is updated in place.
    """
    positions = jnp.broadcast_to(prefix.mask.sum(axis=1)[:, None] + step, tokens.shape)
    x, rope = _embed(params, tokens, positions, cfg, suffix.k.dtype)

    def layer_step(
        carry: tuple[Array, SuffixCache], inputs: tuple[Params, Array, Array, Array]
    ) -> tuple[tuple[Array, SuffixCache], None]:
        x, suffix = carry
        layer, prefix_k, prefix_v, index = inputs

        def write(cache: Array, new: Array) -> Array:
            start = (index, zero, zero, zero, step, zero)
            return jax.lax.dynamic_update_slice(cache, new[None, :, :, :, None], start)

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            new_k, new_v = write(suffix.k, k), write(suffix.v, v)
            mixed = decode_attention(
                q, prefix_k, prefix_v, prefix.mask, new_k[index], new_v[index], step
            )
            return mixed, (new_k, new_v)

        x, (k, v) = block(x, layer, rope, attend, cfg)
        return (x, SuffixCache(k=k, v=v)), None

    zero = jnp.zeros_like(step)
    layers = (params["layers"], prefix.k, prefix.v, jnp.arange(cfg.num_layers, dtype=step.dtype))
    (x, suffix), _ = jax.lax.scan(layer_step, (x, suffix), layers)
    x = rms_norm(x, params["final_norm"], cfg.norm_eps)
    return logits(params, x, cfg), suffix
