"""Top-k and top-p (nucleus) filtering, and the draw, without sorting the vocabulary.

Both filters keep the tokens whose logit is at least a threshold, so tokens that tie at the
threshold are kept together. Bisection over the bit patterns of floats finds the thresholds. It
always ends at the exact value.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from pmc_jax.model.kernels.cpu_top_k import top_k_cpu
from pmc_jax.model.kernels.dispatch import current_target, is_one_cpu, top_k_kernel

SMALL_TOP_K = 128
"""Up to this `top_k`, `lax.top_k` is cheaper than bisection over the whole vocabulary."""

TOP_K_PARTS = 16
"""On a CPU, `lax.top_k` runs on this many parts of the rows. On two cores XLA ran 16 parts in
parallel, and up to 12 one after the other."""

LARGE_VOCABULARY, TOP_BLOCK = 16_384, 32
"""From this vocabulary size on, `largest` first compares blocks of `TOP_BLOCK` tokens."""

BLOCK = 128
"""Tokens per block of the two-level cumulative sum in `draw`."""


def _ordered_bits(x: Float[Array, "*rows"]) -> Int[Array, "*rows"]:
    """Integers in the same order as these floats."""
    integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(x, integer)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(integer).max, bits)


def _largest_threshold(
    logits: Float[Array, "*batch vocab"],
    enough: Callable[[Array], Array],
) -> Float[Array, "*batch 1"]:
    """The largest logit t for which `enough(logits >= t)` holds.

    `enough` maps a mask `[*batch, vocab]` to `[*batch, 1]`. It must hold for the full mask, and
    stay true when tokens are added to the mask.
    """
    bits = _ordered_bits(logits)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1)
        holds = enough(bits >= middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    bounds = bits.min(-1, keepdims=True), bits.max(-1, keepdims=True)
    low, _ = jax.lax.fori_loop(0, 8 * bits.dtype.itemsize, halve, bounds)
    return jnp.where(bits >= low, logits, jnp.inf).min(-1, keepdims=True)


def largest(
    logits: Float[Array, "*batch vocab"], count: int, scale: ArrayLike = 1.0
) -> tuple[Float[Array, "*batch count"], Int[Array, "*batch count"]]:
    """The `count` largest of logits · scale, and their tokens. Of equal logits, the lower token is
    first.

    In a large vocabulary, only the `count` blocks with the largest maxima are searched and scaled.
    These blocks contain the `count` largest logits: at most `count` blocks contain one of them,
    and no other block has a larger maximum. Of blocks with equal maxima, the first ones are
    searched.
    """
    *batch, vocab = logits.shape
    target = current_target(logits.dtype)
    if top_k_kernel(target) == "native":
        return top_k_cpu(logits, count, scale)
    parts = TOP_K_PARTS if is_one_cpu(target) else 1
    if vocab < LARGE_VOCABULARY or vocab < 2 * count * TOP_BLOCK:
        return _top_k(logits * scale, count, parts)
    padding = [(0, 0)] * len(batch) + [(0, -vocab % TOP_BLOCK)]
    padded = jnp.pad(logits, padding, constant_values=-jnp.inf)
    blocks = padded.reshape(*batch, -1, TOP_BLOCK)
    chosen = jnp.sort(_top_k(blocks.max(-1) * scale, count, parts)[1], axis=-1)
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)
    values, index = _top_k(candidates.reshape(*batch, -1) * scale, count, parts)
    block = jnp.take_along_axis(chosen, index // TOP_BLOCK, axis=-1)
    return values, block * TOP_BLOCK + index % TOP_BLOCK


def _top_k(x: Float[Array, "*batch size"], count: int, parts: int) -> tuple[Array, Array]:
    """`lax.top_k` by parts of the rows, since XLA uses one core of a CPU for each call."""
    rows = x.reshape(-1, x.shape[-1])
    found = [
        jax.lax.top_k(part, count) for part in jnp.array_split(rows, min(parts, max(len(rows), 1)))
    ]
    values, indices = (
        jnp.concatenate(own).reshape(*x.shape[:-1], count) for own in zip(*found, strict=True)
    )
    # Without the barrier, XLA takes a part of the result and sorts all of x for it. A barrier
    # around both results crashes XLA's compilation for a mesh.
    return jax.lax.optimization_barrier(values), indices


def _count_beyond(
    logits: Float[Array, "*batch vocab"], values: Float[Array, "*batch k"]
) -> Int[Array, "*batch 1"]:
    """The number of logits that are equal to the k-th largest but not among the k `values`."""
    kth = values[..., -1:]
    found = (logits == kth).sum(-1, keepdims=True) - (values == kth).sum(-1, keepdims=True)
    return found.astype(jnp.int32)


def _threshold_of(
    values: Float[Array, "*batch k"], beyond: Int[Array, "*batch 1"], top_p: float
) -> Float[Array, "*batch 1"]:
    """The threshold of both filters, from the k largest logits and `_count_beyond` of them."""
    kth = values[..., -1:]
    if top_p >= 1:
        return kth
    weights = jnp.exp(values - values[..., :1])
    total = weights.sum(-1, keepdims=True) + beyond * weights[..., -1:]
    reached = jnp.cumsum(weights, axis=-1) >= top_p * total
    return jnp.where(reached, values, kth).max(-1, keepdims=True)


def _is_small(top_k: int, vocab: int) -> bool:
    return 0 < top_k <= min(SMALL_TOP_K, vocab)


def filter_threshold(
    logits: Float[Array, "*batch vocab"], top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "*batch 1"]:
    """The smallest logit that top-k filtering and then top-p filtering keep.

    `top_k` = 0 and `top_p` = 1 switch a filter off. Top-p (nucleus sampling, Holtzman et al. 2020)
    keeps the smallest set of most probable tokens whose mass, among the tokens that top-k keeps,
    is at least `top_p`. Tokens that tie with the threshold are kept.
    """
    vocab = logits.shape[-1]
    if _is_small(top_k, vocab):
        values, _ = largest(logits, top_k)
        return _threshold_of(values, _count_beyond(logits, values), top_p)
    threshold = logits.min(-1, keepdims=True)
    if 0 < top_k < vocab:
        threshold = _largest_threshold(logits, lambda kept: kept.sum(-1, keepdims=True) >= top_k)
    if top_p >= 1:
        return threshold
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = jnp.where(logits >= threshold, weights, 0)
    wanted = top_p * weights.sum(-1, keepdims=True)
    return _largest_threshold(
        logits, lambda kept: jnp.where(kept, weights, 0).sum(-1, keepdims=True) >= wanted
    )


def _first_above(
    weights: Float[Array, "*batch count"], target: Float[Array, "*batch draws"]
) -> tuple[Int[Array, "*batch draws"], Float[Array, "*batch draws"]]:
    """For each `target`, the first index at which the cumulative sum of `weights` exceeds it.

    Indices of weight 0 are skipped. Rounding can leave no such index; the last one with weight is
    taken then. Returns the indices, and the sum of the weights before each.
    """
    total, some = jnp.cumsum(weights, axis=-1), weights > 0
    hit = (total[..., None, :] > target[..., None]) & some[..., None, :]
    last = weights.shape[-1] - 1 - jnp.argmax(some[..., ::-1], axis=-1, keepdims=True)
    index = jnp.where(hit.any(-1), jnp.argmax(hit, -1), last)
    before = jnp.take_along_axis(total - weights, index, axis=-1)
    return index, before


def _draw_from_top(
    uniform: Float[Array, "rows draws"],
    logits: Float[Array, "rows vocab"],
    top_k: int,
    top_p: float,
    scale: ArrayLike,
) -> tuple[Int[Array, "rows draws"], Float[Array, " rows"]]:
    """`_draw` from the k largest of logits · scale.

    The (k + 1)-th largest tells whether there are ties beyond the k largest; only then are they
    counted. These ties come last, as one token. If that token is drawn, the vocabulary is searched
    for the tie that it stands for.
    """
    # The barrier keeps XLA from merging an earlier factor of the logits with the scale in one of
    # the products below and not in another. Equal logits would no longer be equal.
    logits = jax.lax.optimization_barrier(logits)
    more, tokens = largest(logits, min(top_k + 1, logits.shape[-1]), scale)
    values, kth = more[..., :top_k], more[..., top_k - 1 : top_k]
    beyond = jax.lax.cond(
        (more[..., top_k:] == kth).any(),
        lambda: _count_beyond(logits * scale, values),
        lambda: jnp.zeros_like(kth, jnp.int32),
    )
    threshold = _threshold_of(values, beyond, top_p)
    weights = jnp.where(values >= threshold, jnp.exp(values - values[..., :1]), 0)
    last = weights[..., -1:]
    weights = jnp.concatenate([weights, beyond * last], axis=-1)
    target = uniform * weights.sum(-1, keepdims=True)
    index, before = _first_above(weights, target)
    found = jnp.take_along_axis(tokens, jnp.minimum(index, top_k - 1), axis=-1)
    is_tie = index == top_k

    def look_up() -> Int[Array, "rows draws"]:
        number = jnp.floor((target - before) / last).astype(jnp.int32)
        number = jnp.clip(number, 0, beyond - 1) + (values == kth).sum(-1, keepdims=True)
        order = jnp.cumsum(logits * scale == kth, axis=-1)
        tie = jnp.argmax(order[:, None] == (number + 1)[..., None], axis=-1)
        return jnp.where(is_tie, tie.astype(found.dtype), found)

    drawn = jax.lax.cond(is_tie.any(), look_up, lambda: found).astype(jnp.int32)
    return drawn, values[..., 0]


def greedy(logits: Float[Array, "*batch vocab"]) -> Int[Array, "*batch"]:
    """The most probable token; of tokens that tie, the lowest.

    XLA runs these two passes on all cores of a CPU, but its `argmax` on one.
    """
    vocab = logits.shape[-1]
    highest = logits == logits.max(-1, keepdims=True)
    first = jnp.where(highest, jnp.arange(vocab, dtype=jnp.int32), vocab - 1)
    return first.min(-1)


def draw(
    keys: Key[Array, "*draws"],
    logits: Float[Array, "*batch vocab"],
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: ArrayLike = 1.0,
) -> Int[Array, "*draws"]:
    """Draw a token per key from the filtered softmax of logits / temperature (`draw_checked`)."""
    return draw_checked(keys, logits, top_k, top_p, temperature)[0]


def draw_checked(
    keys: Key[Array, "*draws"],
    logits: Float[Array, "*batch vocab"],
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: ArrayLike = 1.0,
) -> tuple[Int[Array, "*draws"], Float[Array, "*batch"]]:
    """Draw a token per key from the filtered softmax of logits / temperature.

    The second result is the largest logit / temperature, which drawing needs anyway. It is finite
    unless the logits contain infinity or NaN. If a hidden state is not finite, all its logits are
    NaN or infinite.

    The function inverts the cumulative distribution, so a draw needs one uniform number.
    `jax.random.categorical` needs Gumbel noise for the whole vocabulary. `keys` begins with the
    batch axes of `logits`. Further axes are draws from the same distribution, which is filtered
    once for all of them.
    """
    each = jax.vmap(lambda key: jax.random.uniform(key, (1,), logits.dtype))
    uniform = each(keys.reshape(-1))
    # One axis for all rows, as in the matrix product before: the barrier below then copies nothing.
    rows = logits.reshape(-1, logits.shape[-1])
    draws = math.prod(keys.shape[logits.ndim - 1 :])
    drawn, highest = _draw(uniform.reshape(-1, draws), rows, top_k, top_p, temperature)
    return drawn.reshape(keys.shape), highest.reshape(logits.shape[:-1])


def _draw(
    uniform: Float[Array, "rows draws"],
    logits: Float[Array, "rows vocab"],
    top_k: int,
    top_p: float,
    temperature: ArrayLike,
) -> tuple[Int[Array, "rows draws"], Float[Array, " rows"]]:
    """`draw_checked` from a uniform number for each draw."""
    rows, vocab = logits.shape
    # XLA would compile a division by the temperature as a division here and as a product there.
    scale = 1 / jnp.asarray(temperature, logits.dtype)
    if _is_small(top_k, vocab):
        return _draw_from_top(uniform, logits, top_k, top_p, scale)
    logits = logits * scale
    highest = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - highest)
    if top_k > 0 or top_p < 1:
        weights = jnp.where(logits >= filter_threshold(logits, top_k, top_p), weights, 0)
    blocks = jnp.pad(weights, [(0, 0), (0, -vocab % BLOCK)]).reshape(rows, -1, BLOCK)
    sums = blocks.sum(-1)
    target = uniform * sums.sum(-1, keepdims=True)
    block, before = _first_above(sums, target)
    inside = jnp.take_along_axis(blocks, block[..., None], axis=-2)
    offset, _ = _first_above(inside, (target - before)[..., None])
    return (block * BLOCK + offset[..., 0]).astype(jnp.int32), highest[..., 0]
