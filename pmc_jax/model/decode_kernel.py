"""Decode attention as one kernel for one GPU, where XLA makes a dozen.

What `decode_attention` computes, by an online softmax (Milakov and Gimelshein 2018): of the
suffix only what is written is read, and nothing between the two products is stored.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

KEYS = 64
"""Keys that are read at a time."""

ENOUGH_PROGRAMS = 256
"""About two for every processor of a large GPU: fewer leave some without work."""

LEAST_ROWS = 16
"""Rows that the smallest product of a GPU's matrix units has."""

MOST_TOGETHER = 8
"""Most samples to a program, which reads them one after another."""


def _attend(
    q_ref: Any, prefix_k: Any, prefix_v: Any, suffix_k: Any, suffix_v: Any, seen: Any, out: Any,
    *, samples: int, heads: int, together: int, per_head: int, prompt: int, room: int,
    scale: float, softcap: float | None,
) -> None:  # fmt: skip
    """`together` samples of a prompt, and the query heads that share one key-value head.

    All refs but `seen` are matrices, a vector of a head to a row.
    """
    batch, head, first = pl.program_id(0), pl.program_id(1), pl.program_id(2) * together
    rows = max(LEAST_ROWS, pl.next_power_of_2(together * per_head))
    row, dim = jnp.arange(rows), jnp.arange(q_ref.shape[1])[None, :]
    own = first + row // per_head
    real = ((row < together * per_head) & (own < samples))[:, None]
    place = ((batch * samples + own) * heads + head) * per_head + row % per_head
    q = triton.load(q_ref.at[place[:, None], dim], mask=real, other=0)
    lowest = jnp.finfo(jnp.float32).min

    def read(ref: Any, base: Any, at: Array, end: Any) -> Array:
        return triton.load(ref.at[(base + at)[:, None], dim], mask=(at < end)[:, None], other=0)

    def take_in(state: Any, keys: Any, values: Any, base: Any, at: Array, end: Any, visible: Any):  # type: ignore[no-untyped-def]
        """The state after the keys in places `at` < `end`, whose vectors begin at row `base`."""
        top, total, mixed = state
        scores = triton.dot(q, read(keys, base, at, end), trans_b=True) * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        scores = jnp.where(visible & (at < end)[None, :], scores, lowest)
        best = jnp.maximum(top, scores.max(axis=1))
        kept, weights = jnp.exp(top - best), jnp.exp(scores - best[:, None])
        mixed = mixed * kept[:, None]
        mixed += triton.dot(weights.astype(q.dtype), read(values, base, at, end))
        return best, total * kept + weights.sum(axis=1), mixed

    first_of_prompt, first_own, end_own = seen[batch, 0], seen[batch, 1], seen[batch, 2]
    prompt_base = (batch * heads + head) * prompt

    def over_prompt(block: Any, state: Any) -> Any:
        at = block * KEYS + jnp.arange(KEYS)
        visible = (at >= first_of_prompt)[None, :]
        return take_in(state, prefix_k, prefix_v, prompt_base, at, prompt, visible)

    first_block, blocks = first_own // KEYS, pl.cdiv(end_own, KEYS) - first_own // KEYS

    def over_samples(turn: Any, state: Any) -> Any:
        sample = first + turn // blocks
        at = (first_block + turn % blocks) * KEYS + jnp.arange(KEYS)
        base = ((batch * samples + sample) * heads + head) * room
        visible = (at >= first_own)[None, :] & (own == sample)[:, None]
        return take_in(state, suffix_k, suffix_v, base, at, end_own, visible)

    state = (
        jnp.full(rows, lowest),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros((rows, q_ref.shape[1]), jnp.float32),
    )
    turns = jnp.minimum(together, samples - first) * blocks
    state = jax.lax.fori_loop(first_of_prompt // KEYS, pl.cdiv(prompt, KEYS), over_prompt, state)
    _, total, mixed = jax.lax.fori_loop(0, turns, over_samples, state)
    mixed = (mixed / total[:, None]).astype(q.dtype)
    triton.store(out.at[place[:, None], dim], mixed, mask=real)


def samples_together(groups: int, samples: int, per_head: int) -> int:
    """Samples that share a program.

    As many as fill the smallest matrix product, but no more than `MOST_TOGETHER`, which are
    read one after another, and about as many in each program of a group. One, where that would
    leave few programs.
    """
    most = min(MOST_TOGETHER, max(1, LEAST_ROWS // per_head))
    parts = pl.cdiv(samples, most)
    return pl.cdiv(samples, parts) if groups * parts >= ENOUGH_PROGRAMS else 1


def decode_kernel(
    q: Float[Array, "batch samples heads head_dim"],
    prefix_k: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_v: Float[Array, "batch kv_heads prompt head_dim"],
    prefix_mask: Bool[Array, "batch prompt"],
    suffix_k: Float[Array, "batch samples kv_heads time head_dim"],
    suffix_v: Float[Array, "batch samples kv_heads time head_dim"],
    step: Int[Array, ""],
    window: Int[Array, ""] | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    together: int | None = None,
    interpret: bool = False,
) -> Float[Array, "batch samples heads head_dim"]:
    """`decode_attention`, for prompts that are padded on the left; where `has_kernel` says so.

    `together` samples of a prompt share a program, and with it the reading of the prompt's
    keys and values; None: as `samples_together` has it.
    """
    batch, samples, heads, head_dim = q.shape
    kv_heads, prompt, room = prefix_k.shape[1], prefix_k.shape[2], suffix_k.shape[3]
    per_head = heads // kv_heads
    if together is None:
        together = samples_together(batch * kv_heads, samples, per_head)
    first_of_prompt = prompt - prefix_mask.sum(axis=1)
    first_own = jnp.zeros_like(step)
    if window is not None:
        furthest = jnp.where(window > 0, step - window + 1, -prompt)
        first_of_prompt = jnp.clip(prompt + furthest, first_of_prompt, prompt)
        first_own = jnp.maximum(furthest, 0)
    columns = (first_of_prompt, first_own, step + 1)
    seen = jnp.stack([jnp.broadcast_to(x, batch).astype(jnp.int32) for x in columns], axis=1)
    kernel = partial(
        _attend, samples=samples, heads=kv_heads, together=together, per_head=per_head,
        prompt=prompt, room=room, scale=scale, softcap=softcap,
    )  # fmt: skip
    matrices = [x.reshape(-1, head_dim) for x in (q, prefix_k, prefix_v, suffix_k, suffix_v)]
    found = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(matrices[0].shape, q.dtype),
        grid=(batch, kv_heads, pl.cdiv(samples, together)),
        compiler_params=triton.CompilerParams(num_warps=4 if together > 1 else 2, num_stages=2),
        interpret=interpret,
        name="decode_attention",
    )(*matrices, seen)
    return found.reshape(q.shape)
