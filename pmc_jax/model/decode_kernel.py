"""Rotation, cache and attention of a decode step as one kernel for one GPU, where XLA makes many.

What `write_and_attend` computes, by an online softmax (Milakov and Gimelshein 2018): of the
suffix only what is written is read, and nothing between the two products is stored.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from pmc_jax.model.attention import kernel_places

KEYS, ABREAST = 16, 2
"""Keys of a sample that are read at a time, and samples whose keys are. Both are fixed, so that a
sample's attention has the same bits whatever shares its program."""

WIDTH = KEYS * ABREAST
"""Keys of a prompt that are read at a time."""

ENOUGH_PROGRAMS = 256
"""About two for every processor of a large GPU: fewer leave some without work."""

LEAST_ROWS = 16
"""Rows that the smallest product of a GPU's matrix units has."""

MOST_TOGETHER = 8
"""Most samples to a program."""


def _write_and_attend(
    projected: Any, cos: Any, sin: Any, prefix_k: Any, prefix_v: Any, suffix_k: Any, suffix_v: Any,
    places: Any, out: Any, out_k: Any, out_v: Any,
    *, samples: int, kv_heads: int, together: int, per_head: int, prompt: int, room: int,
    scale: float, softcap: float | None,
) -> None:  # fmt: skip
    """`together` samples of a prompt, and the query heads that share one key-value head.

    All refs but `places` are matrices, a vector of a head to a row, or of a prompt's angles.
    `out_k` and `out_v` are the memory of `suffix_k` and `suffix_v`.
    """
    batch, head, first = pl.program_id(0), pl.program_id(1), pl.program_id(2) * together
    layer, first_of_prompt, first_own, step = (places[batch, i] for i in range(4))
    rows = max(LEAST_ROWS, pl.next_power_of_2(together * per_head))
    row, dim = jnp.arange(rows), jnp.arange(projected.shape[1])
    own = first + row // per_head
    real = (row < together * per_head) & (own < samples)
    sequence = batch * samples + own
    lowest = jnp.finfo(jnp.float32).min

    def read(ref: Any, at: Array, columns: Array, there: Array) -> Array:
        return triton.load(ref.at[at[:, None], columns[None, :]], mask=there[:, None], other=0)

    # As `rotate` has it: every dimension with its partner's, where it has one.
    half = cos.shape[1]
    has_partner = dim < 2 * half
    partner = jnp.where(has_partner, jnp.where(dim < half, dim + half, dim - half), dim)
    angle = (batch, dim % half)
    cosine = triton.load(cos.at[angle], mask=has_partner, other=1)[None, :]
    sine = triton.load(sin.at[angle], mask=has_partner, other=0)
    sine = jnp.where(dim < half, -sine, sine)[None, :]

    def rotated(at: Array) -> Array:
        x, other = read(projected, at, dim, real), read(projected, at, partner, real)
        return (x.astype(sine.dtype) * cosine + other.astype(sine.dtype) * sine).astype(x.dtype)

    def capped(scores: Array) -> Array:
        scores = scores * scale
        return scores if softcap is None else softcap * jnp.tanh(scores / softcap)

    # The vectors of a sequence: of all queries' heads, then of all keys', then of all values'.
    vectors = sequence * kv_heads * (per_head + 2)
    q = rotated(vectors + head * per_head + row % per_head)
    new_k = rotated(vectors + kv_heads * per_head + head)
    new_v = read(projected, vectors + kv_heads * (per_head + 1) + head, dim, real)

    caches = (layer * pl.num_programs(0) + batch) * samples
    place = (((caches + own) * kv_heads + head) * room + step)[:, None]
    # The queries that share a key all write it.
    triton.store(out_k.at[place, dim[None, :]], new_k, mask=real[:, None])
    triton.store(out_v.at[place, dim[None, :]], new_v, mask=real[:, None])

    def take_in(state: Any, k: Array, v: Array, visible: Array) -> Any:
        """The state after some more keys."""
        top, total, mixed = state
        scores = jnp.where(visible, capped(triton.dot(q, k, trans_b=True)), lowest)
        best = jnp.maximum(top, scores.max(axis=1))
        kept, weights = jnp.exp(top - best), jnp.exp(scores - best[:, None])
        mixed = mixed * kept[:, None] + triton.dot(weights.astype(q.dtype), v)
        return best, total * kept + weights.sum(axis=1), mixed

    def over_prompt(block: Any, state: Any) -> Any:
        at = block * WIDTH + jnp.arange(WIDTH)
        base, there = (batch * kv_heads + head) * prompt + at, at < prompt
        visible = (there & (at >= first_of_prompt))[None, :]
        k, v = (read(ref, base, dim, there) for ref in (prefix_k, prefix_v))
        return take_in(state, k, v, visible)

    first_block = first_own // KEYS
    blocks = pl.cdiv(step, KEYS) - first_block
    end = jnp.minimum(first + together, samples)

    def over_samples(turn: Any, state: Any) -> Any:
        lane = jnp.arange(WIDTH)
        sample = first + turn // blocks * ABREAST + lane // KEYS
        at = (first_block + turn % blocks) * KEYS + lane % KEYS
        base = ((caches + sample) * kv_heads + head) * room + at
        there = (sample < end) & (at < step)
        visible = (there & (at >= first_own))[None, :] & (own[:, None] == sample[None, :])
        k, v = (read(ref, base, dim, there) for ref in (suffix_k, suffix_v))
        return take_in(state, k, v, visible)

    newest = capped((q.astype(jnp.float32) * new_k.astype(jnp.float32)).sum(axis=1))
    state = (newest, jnp.ones(rows, jnp.float32), new_v.astype(jnp.float32))
    state = jax.lax.fori_loop(first_of_prompt // WIDTH, pl.cdiv(prompt, WIDTH), over_prompt, state)
    groups = pl.cdiv(end - first, ABREAST)
    _, total, mixed = jax.lax.fori_loop(0, groups * blocks, over_samples, state)
    mixed = (mixed / total[:, None]).astype(q.dtype)
    place = ((sequence * kv_heads + head) * per_head + row % per_head)[:, None]
    triton.store(out.at[place, dim[None, :]], mixed, mask=real[:, None])


def samples_together(groups: int, samples: int, per_head: int) -> int:
    """Samples that share a program: the most that leave enough programs.

    No more than fill the smallest matrix product, or `MOST_TOGETHER`; about as many in each program
    of a group, and an even number where that costs nothing.
    """
    most = min(MOST_TOGETHER, max(1, LEAST_ROWS // per_head), samples)
    while most > 1 and groups * pl.cdiv(samples, most) < ENOUGH_PROGRAMS:
        most -= 1
    evenly = pl.cdiv(samples, pl.cdiv(samples, most))
    return min(most, evenly + evenly % 2)


def write_and_attend_kernel(
    q: Float[Array, "batch samples heads head_dim"],
    k: Float[Array, "batch samples kv_heads head_dim"],
    v: Float[Array, "batch samples kv_heads head_dim"],
    rope: tuple[Float[Array, "batch 1 half"], Float[Array, "batch 1 half"]],
    prefix_k: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_v: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_mask: Bool[Array, "batch prompt"],
    suffix_k: Float[Array, "layers batch samples kv_heads time head_dim"],
    suffix_v: Float[Array, "layers batch samples kv_heads time head_dim"],
    layer: Int[Array, ""],
    step: Int[Array, ""],
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    together: int | None = None,
    interpret: bool = False,
) -> tuple[
    Float[Array, "batch samples heads head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
    Float[Array, "layers batch samples kv_heads time head_dim"],
]:
    """`write_and_attend`, for prompts that are padded on the left; where `has_kernel` says so.

    `together` samples of a prompt share a program, and with it the reading of the prompt's
    keys and values; None: as `samples_together` has it.
    """
    batch, samples, heads, head_dim = q.shape
    kv_heads, prompt, room = prefix_k.shape[1], prefix_k.shape[2], suffix_k.shape[4]
    per_head = heads // kv_heads
    if together is None:
        together = samples_together(batch * kv_heads, samples, per_head)
    places = kernel_places(prefix_mask, layer, step, window)
    kernel = partial(
        _write_and_attend, samples=samples, kv_heads=kv_heads, together=together,
        per_head=per_head, prompt=prompt, room=room, scale=scale, softcap=softcap,
    )  # fmt: skip
    # Of joined weights, q, k and v lie side by side as they are.
    projected = jnp.concatenate([q, k, v], axis=2)
    caches = (prefix_k, prefix_v, suffix_k, suffix_v)
    matrices = [x.reshape(-1, x.shape[-1]) for x in (projected, *rope, *caches)]
    shapes = [(q.size // head_dim, head_dim), *(x.shape for x in matrices[-2:])]
    mixed, suffix_k_out, suffix_v_out = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(shape, q.dtype) for shape in shapes],
        grid=(batch, kv_heads, pl.cdiv(samples, together)),
        input_output_aliases={5: 1, 6: 2},
        compiler_params=triton.CompilerParams(num_warps=2, num_stages=3),
        interpret=interpret,
        name="decode_attention",  # which `benchmarks/operations.py` looks for
    )(*matrices, places)
    return (
        mixed.reshape(q.shape),
        suffix_k_out.reshape(suffix_k.shape),
        suffix_v_out.reshape(suffix_v.shape),
    )
