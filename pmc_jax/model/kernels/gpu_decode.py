"""Rotation, cache update and attention of a decode step as one Pallas kernel for one NVIDIA GPU.

It computes what `write_and_attend` computes, by an online softmax (Milakov and Gimelshein 2018). It
reads only the part of the suffix cache that is written, and does not store scores or weights.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from pmc_jax.model.kernels.visible import visible_ranges

KEYS, SAMPLES = 16, 2
"""The suffix is read in blocks of this many keys of this many samples. Both are constant, so that a
sample's attention has the same bits whichever samples share its kernel instance."""

BLOCK = KEYS * SAMPLES
"""The prefix is read in blocks of this many keys."""

MIN_INSTANCES = 256
"""About two kernel instances for each multiprocessor of a large GPU; with fewer, some are idle."""

MIN_ROWS = 16
"""Rows of the smallest matrix product that a GPU's matrix units compute."""

MAX_SAMPLES = 8
"""The most samples that share a kernel instance."""


def _write_and_attend(
    projected: Any, cos: Any, sin: Any, prefix_k: Any, prefix_v: Any, suffix_k: Any, suffix_v: Any,
    ranges: Any, out: Any, out_k: Any, out_v: Any,
    *, samples: int, kv_heads: int, together: int, per_head: int, prompt: int, room: int,
    per_sample: bool, scale: float, softcap: float | None,
) -> None:  # fmt: skip
    """One kernel instance: `together` samples of a prompt, the query heads of one key-value head.

    All refs but `ranges` (`visible_ranges`, a row for each sample) are matrices whose rows are
    vectors of `head_dim`, or the cosines or sines of a prompt or of a sample. `out_k` and `out_v`
    alias `suffix_k` and `suffix_v`.
    """
    batch, head, first = pl.program_id(0), pl.program_id(1), pl.program_id(2) * together
    layer, first_of_suffix, step = (ranges[batch * samples + first, i] for i in (0, 3, 4))
    rows = max(MIN_ROWS, pl.next_power_of_2(together * per_head))
    row, dim = jnp.arange(rows), jnp.arange(projected.shape[1])
    own = first + row // per_head
    real = (row < together * per_head) & (own < samples)
    sequence = batch * samples + own
    lowest = jnp.finfo(jnp.float32).min
    # Of rows that are not real, no position is visible; they must not widen the loop either.
    first_of_prompt = triton.load(ranges.at[sequence, 1], mask=real, other=prompt)
    end_of_prompt = triton.load(ranges.at[sequence, 2], mask=real, other=0)

    def read(ref: Any, at: Array, columns: Array, there: Array) -> Array:
        return triton.load(ref.at[at[:, None], columns[None, :]], mask=there[:, None], other=0)

    # The rotation of `rotate`: a dimension is paired with the one `half` away, if it is rotated.
    half = cos.shape[1]
    has_partner = dim < 2 * half
    partner = jnp.where(has_partner, jnp.where(dim < half, dim + half, dim - half), dim)
    if per_sample:
        angle = (sequence[:, None], (dim % half)[None, :])
        rotates = real[:, None] & has_partner[None, :]
    else:
        angle, rotates = (batch, (dim % half)[None, :]), has_partner[None, :]
    cosine = triton.load(cos.at[angle], mask=rotates, other=1)
    sine = triton.load(sin.at[angle], mask=rotates, other=0)
    sine = jnp.where((dim < half)[None, :], -sine, sine)

    def rotated(at: Array) -> Array:
        x, other = read(projected, at, dim, real), read(projected, at, partner, real)
        return (x.astype(sine.dtype) * cosine + other.astype(sine.dtype) * sine).astype(x.dtype)

    def capped(scores: Array) -> Array:
        scores = scores * scale
        return scores if softcap is None else softcap * jnp.tanh(scores / softcap)

    # A sample's vectors: the heads of its queries, then of its keys, then of its values.
    vectors = sequence * kv_heads * (per_head + 2)
    q = rotated(vectors + head * per_head + row % per_head)
    new_k = rotated(vectors + kv_heads * per_head + head)
    new_v = read(projected, vectors + kv_heads * (per_head + 1) + head, dim, real)

    caches = (layer * pl.num_programs(0) + batch) * samples
    at_step = (((caches + own) * kv_heads + head) * room + step)[:, None]
    # Every query that shares a key writes it.
    triton.store(out_k.at[at_step, dim[None, :]], new_k, mask=real[:, None])
    triton.store(out_v.at[at_step, dim[None, :]], new_v, mask=real[:, None])

    def update(state: Any, k: Array, v: Array, visible: Array) -> Any:
        """Update the online softmax with a block of keys and values."""
        highest, total, mixed = state
        scores = jnp.where(visible, capped(triton.dot(q, k, trans_b=True)), lowest)
        new = jnp.maximum(highest, scores.max(axis=1))
        kept, weights = jnp.exp(highest - new), jnp.exp(scores - new[:, None])
        mixed = mixed * kept[:, None] + triton.dot(weights.astype(q.dtype), v)
        return new, total * kept + weights.sum(axis=1), mixed

    def over_prompt(block: Any, state: Any) -> Any:
        at = block * BLOCK + jnp.arange(BLOCK)
        base, there = (batch * kv_heads + head) * prompt + at, at < prompt
        inside = (at >= first_of_prompt[:, None]) & (at < end_of_prompt[:, None])
        k, v = (read(ref, base, dim, there) for ref in (prefix_k, prefix_v))
        visible = there[None, :] & inside
        return update(state, k, v, visible)

    first_block = first_of_suffix // KEYS
    blocks = pl.cdiv(step, KEYS) - first_block
    end = jnp.minimum(first + together, samples)

    def over_samples(turn: Any, state: Any) -> Any:
        lane = jnp.arange(BLOCK)
        sample = first + turn // blocks * SAMPLES + lane // KEYS
        at = (first_block + turn % blocks) * KEYS + lane % KEYS
        base = ((caches + sample) * kv_heads + head) * room + at
        there = (sample < end) & (at < step)
        visible = (there & (at >= first_of_suffix))[None, :] & (own[:, None] == sample[None, :])
        k, v = (read(ref, base, dim, there) for ref in (suffix_k, suffix_v))
        return update(state, k, v, visible)

    newest = capped((q.astype(jnp.float32) * new_k.astype(jnp.float32)).sum(axis=1))
    state = (newest, jnp.ones(rows, jnp.float32), new_v.astype(jnp.float32))
    begin, stop = first_of_prompt.min() // BLOCK, pl.cdiv(end_of_prompt.max(), BLOCK)
    state = jax.lax.fori_loop(begin, stop, over_prompt, state)
    groups = pl.cdiv(end - first, SAMPLES)
    _, total, mixed = jax.lax.fori_loop(0, groups * blocks, over_samples, state)
    mixed = (mixed / total[:, None]).astype(q.dtype)
    query = ((sequence * kv_heads + head) * per_head + row % per_head)[:, None]
    triton.store(out.at[query, dim[None, :]], mixed, mask=real[:, None])


def samples_together(groups: int, samples: int, per_head: int) -> int:
    """How many samples share a kernel instance: as many as leave `MIN_INSTANCES` of them.

    At most `MAX_SAMPLES`, and at most as many as fill the smallest matrix product. The samples of
    a group are spread evenly over its instances, in even numbers where that needs no further
    instance.
    """
    most = min(MAX_SAMPLES, max(1, MIN_ROWS // per_head), samples)
    while most > 1 and groups * pl.cdiv(samples, most) < MIN_INSTANCES:
        most -= 1
    evenly = pl.cdiv(samples, pl.cdiv(samples, most))
    return min(most, evenly + evenly % 2)


def write_and_attend_gpu(
    q: Float[Array, "batch samples heads head_dim"],
    k: Float[Array, "batch samples kv_heads head_dim"],
    v: Float[Array, "batch samples kv_heads head_dim"],
    rope: tuple[Float[Array, "batch #samples half"], Float[Array, "batch #samples half"]],
    prefix_k: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_v: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_mask: Bool[Array, "batch prompt"],
    suffix_k: Float[Array, "layers batch samples kv_heads time head_dim"],
    suffix_v: Float[Array, "layers batch samples kv_heads time head_dim"],
    layer: Int[Array, ""],
    step: Int[Array, ""],
    window: Int[Array, ""] | None = None,
    unused: Int[Array, "batch samples"] | None = None,
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
    """`write_and_attend` for left-padded prompts, on a GPU (`dispatch.decode_kernel`).

    `together` samples of a prompt share a kernel instance, which reads the prompt's keys and
    values once for all of them; None: `samples_together` decides. `interpret` runs the kernel on
    any device.
    """
    batch, samples, heads, head_dim = q.shape
    kv_heads, prompt, room = prefix_k.shape[1], prefix_k.shape[2], suffix_k.shape[4]
    per_head = heads // kv_heads
    if together is None:
        together = samples_together(batch * kv_heads, samples, per_head)
    unused = jnp.zeros((batch, samples), jnp.int32) if unused is None else unused
    ranges = visible_ranges(prefix_mask, layer, step, window, unused).reshape(batch * samples, -1)
    kernel = partial(
        _write_and_attend, samples=samples, kv_heads=kv_heads, together=together,
        per_head=per_head, prompt=prompt, room=room, per_sample=rope[0].shape[1] > 1, scale=scale,
        softcap=softcap,
    )  # fmt: skip
    # No copy where the weights of q, k and v are joined.
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
        name="decode_attention",  # `benchmarks/operations.py` looks for this name
    )(*matrices, ranges)
    return (
        mixed.reshape(q.shape),
        suffix_k_out.reshape(suffix_k.shape),
        suffix_v_out.reshape(suffix_v.shape),
    )
