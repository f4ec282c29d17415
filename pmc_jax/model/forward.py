"""The decoder's forward pass: whole sequences, prompt prefill, and single decode steps.

All three run the same `block` over stacks of layers, with `lax.scan` within a stack. They differ
only in what a query attends to. Matrix products run in the dtype of the hidden state, everything
else in at least fp32.
"""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.model.attention import Segments, segment_lengths
from pmc_jax.model.cache import PrefixCache, SuffixCache, place_prefix, place_suffix
from pmc_jax.model.config import ModelConfig, RopeConfig
from pmc_jax.model.gradients import opened
from pmc_jax.model.kernels.dispatch import (
    Target,
    causal_attention_for,
    current_target,
    write_and_attend_for,
)
from pmc_jax.model.products import product, wide_einsum
from pmc_jax.model.rope import Rope, rope_tables, rotate
from pmc_jax.model.sharding import constrain, gather
from pmc_jax.model.specs import Params, param_specs
from pmc_jax.model.stacks import joined_name, layer_stacks

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

Attend = Callable[[Array, Array, Array], tuple[Array, tuple[Array, Array]]]


def normalise(
    x: Float[Array, "*batch embed"], weights: Params, name: str, cfg: ModelConfig
) -> Float[Array, "*batch embed"]:
    """The norm `name` of a layer, in at least fp32.

    RMS norm (Zhang and Sennrich 2019): x / sqrt(mean(x²) + eps) · w, or · (1 + w). Layer norm (Ba
    et al. 2016): (x − mean) / sqrt(var + eps) · w + b. Where the sum of squares overflows, the
    result is NaN, not 0, so that the logits show it; `attn_norm` and `mlp_norm` leave this to the
    final norm, which sees the same hidden states.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    weight = weights[name].astype(wide.dtype)
    if cfg.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    if name not in ("attn_norm", "mlp_norm"):
        square = jnp.where(jnp.isinf(square), jnp.nan, square)
    scale = jax.lax.rsqrt(square + cfg.norm_eps)
    y = wide * scale * (1 + weight if cfg.norm == "rms_plus_one" else weight)
    return (y + weights[f"{name}_bias"] if cfg.norm == "layer" else y).astype(x.dtype)


def linear(x: Array, layer: Params, name: str, equation: str) -> Array:
    """x·W, plus b if the layer has a bias, computed in x's dtype.

    In `equation`, n is the axis of tokens. The first two axes of x are merged into it, since W's
    gradient then needs no transposition.
    """
    y = product(equation, x.reshape(-1, *x.shape[2:]), layer[name])
    y = y.reshape(*x.shape[:2], *y.shape[1:])
    bias = layer.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


def linears(x: Array, layer: Params, sizes: dict[str, int], equation: str) -> tuple[Array, ...]:
    """x·W for several weights, which may be `joined`.

    `sizes` maps each weight's name to the size of its first output axis.
    """
    name = joined_name(list(sizes))
    if name not in layer:
        return tuple(linear(x, layer, name, equation) for name in sizes)
    ends = list(itertools.accumulate(sizes.values()))
    return tuple(jnp.split(linear(x, layer, name, equation), ends[:-1], axis=2))


def block(
    x: Float[Array, "batch rows embed"],
    layer: Params,
    attend: Attend,
    cfg: ModelConfig,
) -> tuple[Float[Array, "batch rows embed"], tuple[Array, Array]]:
    """One pre-norm layer.

    `attend(q, k, v)` rotates queries and keys; it returns the mixed values and the new cache.
    """
    layer = gather(layer, param_specs(cfg)["layers"])
    x = constrain(x, "batch", None, None)
    h = normalise(x, layer, "attn_norm", cfg)
    sizes = {"q": cfg.num_heads, "k": cfg.num_kv_heads, "v": cfg.num_kv_heads}
    q, k, v = linears(h, layer, sizes, "nd,dhk->nhk")
    q = constrain(q, "batch", None, "heads", None)
    k, v = (constrain(y, "batch", None, "kv_heads", None) for y in (k, v))
    if cfg.qk_norm:
        q, k = normalise(q, layer, "q_norm", cfg), normalise(k, layer, "k_norm", cfg)
    mixed, kv = attend(q, k, v)
    attended = linear(mixed, layer, "o", "nhk,hkd->nd")
    if cfg.parallel_block:
        return x + attended + mlp(h, layer, cfg), kv
    if cfg.post_norms:
        attended = normalise(attended, layer, "attn_post_norm", cfg)
    x = x + attended
    changed = mlp(normalise(x, layer, "mlp_norm", cfg), layer, cfg)
    if cfg.post_norms:
        changed = normalise(changed, layer, "mlp_post_norm", cfg)
    return x + changed, kv


def mlp(
    h: Float[Array, "batch rows embed"], layer: Params, cfg: ModelConfig
) -> Float[Array, "batch rows embed"]:
    """down(act(gate(h)) · up(h)), or down(act(up(h)))."""
    act = ACTIVATIONS[cfg.activation]
    if cfg.gated_mlp:
        sizes = dict.fromkeys(("gate", "up"), cfg.intermediate_size)
        gate, up = linears(h, layer, sizes, "nd,df->nf")
        return linear(act(gate) * up, layer, "down", "nf,fd->nd")
    return linear(act(linear(h, layer, "up", "nd,df->nf")), layer, "down", "nf,fd->nd")


def attention_scale(cfg: ModelConfig) -> float:
    """The factor of query-key products."""
    return cfg.head_dim**-0.5 if cfg.attention_scale is None else cfg.attention_scale


def _embed(
    params: Params, tokens: Array, cfg: ModelConfig, dtype: DTypeLike
) -> Float[Array, "batch rows embed"]:
    x = constrain(params["embed"], "vocab", None)[tokens].astype(dtype)
    return x if cfg.embedding_scale == 1 else x * jnp.asarray(cfg.embedding_scale, dtype)


def _ropes(
    positions: Int[Array, "batch rows"],
    lengths: Int[Array, "batch #rows"],
    cfg: ModelConfig,
    dtype: DTypeLike,
    select: Callable[[Array], Array] = lambda table: table,
) -> Callable[[Array | None], Rope]:
    """A function from a layer's window to its cosines and sines, of which `select` takes a part."""
    wide = jnp.promote_types(dtype, jnp.float32)

    def tables(rope: RopeConfig) -> Rope:
        cos, sin = rope_tables(positions, lengths, rope, cfg.head_dim, wide)
        return select(cos), select(sin)

    everywhere = tables(cfg.rope)
    if cfg.local_rope is None:
        return lambda window: everywhere
    local = tables(cfg.local_rope)

    def choose(window: Array | None) -> Rope:
        if window is None:
            return everywhere
        return jax.tree.map(lambda a, b: jnp.where(window > 0, a, b), local, everywhere)

    return choose


def _height(stack: Any) -> int:
    """The number of layers in a stack."""
    return len(jax.tree.leaves(stack)[0])


def _layers(
    params: Params, cfg: ModelConfig, layers: int | None = None
) -> list[tuple[Params, Array | None]]:
    """What the scan over each stack reads: weights, and windows if the model has any.

    `layers` limits it to the first layers; None: all.
    """
    first, found = 0, []
    count = cfg.num_layers if layers is None else layers
    for whole in layer_stacks(params):
        stack = jax.tree.map(operator.itemgetter(slice(count - first)), whole)
        windows = cfg.windows[first:][: _height(stack)]
        found.append((stack, jnp.asarray(windows, jnp.int32) if windows else None))
        first += _height(stack)
        if first == count:
            break
    return found


def _over_layers(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stack: Any) -> Any:
    """`lax.scan` over a stack; a single layer runs without the loop."""
    if _height(stack) > 1:
        return jax.lax.scan(step, carry, stack)
    carry, out = step(carry, jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), stack))
    return carry, jax.tree.map(lambda leaf: leaf[None], out)


def _causal(
    segments: Segments, rope: Rope, window: Array | None, cfg: ModelConfig, target: Target
) -> Attend:
    """Attention within whole sequences, for `block`."""

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        k = rotate(k, *rope)
        attention = causal_attention_for(target, q, k, cfg.attention_softcap)
        mixed = attention(rotate(q, *rope), k, v, segments, window, scale=attention_scale(cfg))
        return mixed, (k, v)

    return attend


def layer_states(
    params: Params,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"],
    segments: Segments,
    cfg: ModelConfig,
    *,
    layers: int | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> Float[Array, "batch time embed"]:
    """Hidden states of whole sequences after the first `layers` layers (None: all).

    A row may hold several sequences one after another. Each has its own number in `segments` and
    `positions` from 0; padding may be on either side. `remat` names what the backward pass
    recomputes: "none", "dots" (all but matrix products) or "full".
    """

    def layer_step(x: Array, inputs: tuple[Params, Array | None]) -> tuple[Array, None]:
        layer, window = inputs
        x, _ = block(x, opened(layer), _causal(segments, ropes(window), window, cfg, target), cfg)
        return x, None

    # Within a scan, recomputation needs no barrier. With one, XLA copies each layer's weights out
    # of their stack before it casts them.
    if remat != "none":
        layer_step = jax.checkpoint(layer_step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    x = _embed(params, tokens, cfg, dtype)
    target = current_target(x.dtype)
    ropes = _ropes(positions, segment_lengths(segments), cfg, dtype)
    for stack in _layers(params, cfg, layers):
        x, _ = _over_layers(layer_step, x, stack)
    return x


def forward(
    params: Params,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"],
    segments: Segments,
    cfg: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> Float[Array, "batch time embed"]:
    """Final hidden states of whole sequences, after the last norm; see `layer_states`."""
    x = layer_states(params, tokens, positions, segments, cfg, dtype=dtype, remat=remat)
    return normalise(x, params, "final_norm", cfg)


def logits(
    params: Params, hidden: Float[Array, "*batch embed"], cfg: ModelConfig
) -> Float[Array, "*batch vocab"]:
    """Next-token logits in at least fp32."""
    head = params["embed"].T if cfg.tie_embeddings else params["lm_head"]
    head = constrain(head, None, "vocab")
    found = wide_einsum("...d,dv->...v", hidden, head.astype(hidden.dtype))
    if cfg.head_bias:
        found = found + params["lm_head_bias"].astype(found.dtype)
    cap = cfg.logit_softcap
    return found if cap is None else cap * jnp.tanh(found / cap)


def prefill(
    params: Params,
    tokens: Int[Array, "batch prompt"],
    mask: Bool[Array, "batch prompt"],
    cfg: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "batch vocab"], PrefixCache]:
    """Run left-padded prompts; returns the logits after their last tokens, and their cache."""
    states, prefix = prefill_states(params, tokens, mask, cfg, dtype=dtype)
    return logits_after(params, states[:, -1], cfg), prefix


def logits_after(
    params: Params, states: Float[Array, "*batch embed"], cfg: ModelConfig
) -> Float[Array, "*batch vocab"]:
    """The logits of the next tokens, from hidden states after the last layer."""
    return logits(params, normalise(states, params, "final_norm", cfg), cfg)


def prefill_states(
    params: Params,
    tokens: Int[Array, "batch prompt"],
    mask: Bool[Array, "batch prompt"],
    cfg: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "batch prompt embed"], PrefixCache]:
    """Run left-padded prompts; returns hidden states after the last layer, and their cache."""

    @jax.jit  # unrolled layers are traced once
    def layer_step(
        x: Array, inputs: tuple[Params, Array | None]
    ) -> tuple[Array, tuple[Array, Array]]:
        layer, window = inputs
        x, kv = block(x, layer, _causal(mask, ropes(window), window, cfg, target), cfg)
        # Heads before tokens, the order in which decode steps read them.
        k, v = (jnp.swapaxes(part, 1, 2) for part in kv)
        return x, (k, v)

    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    x = _embed(params, tokens, cfg, dtype)
    target = current_target(x.dtype)
    ropes = _ropes(positions, mask.sum(1, keepdims=True), cfg, dtype)
    caches = []
    for stack in _layers(params, cfg):
        x, kv = _over_layers(layer_step, x, stack)
        caches.append(kv)
    k, v = zip(*caches, strict=True)
    return x, place_prefix(PrefixCache(k=k, v=v, mask=mask))


def decode_step(
    params: Params,
    tokens: Int[Array, "batch samples"],
    step: Int[Array, ""],
    prefix: PrefixCache,
    suffix: SuffixCache,
    cfg: ModelConfig,
    unused: Int[Array, "batch samples"] | None = None,
) -> tuple[Float[Array, "batch samples vocab"], SuffixCache]:
    """Feed token number `step` of each sample; returns the logits of the next one.

    A sample does not see the last `unused` positions of its prompt, which its suffix replaces; None
    stands for 0. The suffix cache of a stack is in the carry of its scan, so that it is updated in
    place.
    """
    dtype = suffix.k[0].dtype
    x = _embed(params, tokens, cfg, dtype)
    target = current_target(x.dtype)
    # Angles of all positions, not only of this step: XLA computes them once, before the decode
    # loop, and not again wherever something is rotated.
    positions = jnp.arange(prefix.mask.shape[1] + suffix.length, dtype=step.dtype)[None]
    position = prefix.mask.sum(axis=1, keepdims=True) + step  # the same for all samples of a prompt
    if unused is not None:
        position = position - unused
    ropes = _ropes(positions, positions + 1, cfg, dtype, lambda table: table[0, position])

    @jax.jit  # unrolled layers are traced once
    def layer_step(
        carry: tuple[Array, Array, Array],
        inputs: tuple[tuple[Params, Array | None], Array, Array, Array],
    ) -> tuple[tuple[Array, Array, Array], None]:
        x, suffix_k, suffix_v = carry
        (layer, window), prefix_k, prefix_v, number = inputs

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            mixed, new_k, new_v = write_and_attend_for(target, q, prefix_k, suffix_k)(
                q, k, v, ropes(window), prefix_k, prefix_v, prefix.mask, suffix_k, suffix_v,
                number, step, window, unused, scale=attention_scale(cfg),
                softcap=cfg.attention_softcap,
            )  # fmt: skip
            return mixed, (new_k, new_v)

        x, (k, v) = block(x, layer, attend, cfg)
        return (x, *place_suffix((k, v))), None

    written = []
    caches = zip(prefix.k, prefix.v, suffix.k, suffix.v, strict=True)
    for stack, (*prefix_kv, own_k, own_v) in zip(_layers(params, cfg), caches, strict=True):
        numbers = jnp.arange(len(own_k), dtype=step.dtype)
        inputs = (stack, *prefix_kv, numbers)
        (x, *kv), _ = _over_layers(layer_step, (x, own_k, own_v), inputs)
        written.append(kv)
    k, v = zip(*written, strict=True)
    x = normalise(x, params, "final_norm", cfg)
    return logits(params, x, cfg), SuffixCache(k=k, v=v)
