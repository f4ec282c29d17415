"""The sampler: prefill each prompt once, then decode n samples of it in a compiled loop.

The loop runs in chunks. Within a chunk one `while_loop` decodes until every row is
done or the suffix cache is full; between chunks the cache doubles, so that
attention never reads much more than was written.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key

from pmc_jax.decoding.nucleus import draw
from pmc_jax.model import (
    ModelConfig,
    PrefixCache,
    SuffixCache,
    decode_step,
    grow,
    init_suffix,
    prefill,
)
from pmc_jax.model.specs import Params

FIRST_CHUNK = 16
"""Decode steps of the first chunk; every further chunk doubles the cache."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature, then top-k, then top-p; 0 temperature is greedy.

    `stop_ids` end a response and belong to it; before `min_new_tokens` tokens they are
    not chosen.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()


@struct.dataclass
class Samples:
    """Decoded responses.

    Attributes:
        tokens: response tokens, zeros after the end.
        length: tokens of each response, its stop token included.
    """

    tokens: Int[Array, "batch samples time"]
    length: Int[Array, "batch samples"]


@struct.dataclass
class DecodeState:
    """Everything that changes while decoding.

    Attributes:
        samples: the responses so far.
        last: each row's newest token, fed to the model next.
        done: rows that have stopped or reached their limit.
        step: number of tokens fed so far, the same for all rows.
        suffix: keys and values of the tokens fed so far.
    """

    samples: Samples
    last: Int[Array, "batch samples"]
    done: Bool[Array, "batch samples"]
    step: Int[Array, ""]
    suffix: SuffixCache


def choose(
    logits: Float[Array, "*rows vocab"],
    keys: Key[Array, "*rows"],
    index: Int[Array, ""],
    sampling: Sampling,
) -> Int[Array, "*rows"]:
    """The response's token number `index` for every row, by the row's own key."""
    if sampling.stop_ids and sampling.min_new_tokens:
        held = logits.at[..., jnp.asarray(sampling.stop_ids)].set(-jnp.inf)
        logits = jnp.where(index < sampling.min_new_tokens, held, logits)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys.reshape(-1))
    return draw(
        keys.reshape(logits.shape[:-1]),
        logits / sampling.temperature,
        sampling.top_k,
        sampling.top_p,
    )


def _append(
    state: DecodeState, chosen: Array, index: Array, limit: Array, sampling: Sampling
) -> DecodeState:
    """Write token number `index` of the rows that still run, and see which of them end."""
    chosen = jnp.where(state.done, 0, chosen)
    tokens = jax.lax.dynamic_update_slice_in_dim(
        state.samples.tokens, chosen[..., None], index, axis=2
    )
    length = jnp.where(state.done, state.samples.length, index + 1)
    stopped = jnp.isin(chosen, jnp.asarray(sampling.stop_ids, jnp.int32))
    done = state.done | stopped | (length >= limit)
    return dataclasses.replace(state, samples=Samples(tokens, length), last=chosen, done=done)


@partial(jax.jit, static_argnames=("time", "cfg", "sampling", "dtype"))
def _start(
    params: Params,
    tokens: Array,
    mask: Array,
    keys: Key[Array, "batch samples"],
    limit: Array,
    *,
    time: int,
    cfg: ModelConfig,
    sampling: Sampling,
    dtype: DTypeLike,
) -> tuple[PrefixCache, DecodeState]:
    """Prefill and choose every response's first token."""
    logits, prefix = prefill(params, tokens, mask, cfg, dtype=dtype)
    batch, samples = keys.shape
    state = DecodeState(
        samples=Samples(
            tokens=jnp.zeros((batch, samples, time), jnp.int32),
            length=jnp.zeros((batch, samples), jnp.int32),
        ),
        last=jnp.zeros((batch, samples), jnp.int32),
        done=jnp.broadcast_to(limit <= 0, (batch, samples)),
        step=jnp.zeros((), jnp.int32),
        suffix=init_suffix(cfg, batch, samples, min(FIRST_CHUNK, time), dtype),
    )
    logits = jnp.broadcast_to(logits[:, None], (batch, samples, logits.shape[-1]))
    chosen = choose(logits, keys, state.step, sampling)
    return prefix, _append(state, chosen, state.step, limit, sampling)


@partial(jax.jit, static_argnames=("cfg", "sampling"), donate_argnames="state")
def _decode_chunk(
    params: Params,
    prefix: PrefixCache,
    state: DecodeState,
    keys: Key[Array, "batch samples"],
    limit: Array,
    *,
    cfg: ModelConfig,
    sampling: Sampling,
) -> DecodeState:
    """Decode until all rows are done or the suffix cache is full."""

    def running(state: DecodeState) -> Array:
        return (state.step < state.suffix.length) & ~state.done.all()

    def advance(state: DecodeState) -> DecodeState:
        logits, suffix = decode_step(params, state.last, state.step, prefix, state.suffix, cfg)
        index = state.step + 1
        chosen = choose(logits, keys, index, sampling)
        state = _append(state, chosen, index, limit, sampling)
        return dataclasses.replace(state, step=index, suffix=suffix)

    return jax.lax.while_loop(running, advance, state)


@partial(jax.jit, static_argnames="length")
def _grow(state: DecodeState, length: int) -> DecodeState:
    return dataclasses.replace(state, suffix=grow(state.suffix, length))


def sample(
    params: Params,
    tokens: Int[Array, "batch prompt"],
    mask: Bool[Array, "batch prompt"],
    keys: Key[Array, "batch samples"],
    limit: Int[Array, " batch"],
    *,
    time: int,
    cfg: ModelConfig,
    sampling: Sampling,
    dtype: DTypeLike = jnp.float32,
) -> Samples:
    """Sample `keys.shape[1]` responses to each left-padded prompt.

    Args:
        params: weights, best already in `dtype`.
        tokens, mask: left-padded prompts; every row needs at least one token.
        keys: `[batch, samples]`, one key per response. A response depends on its
            prompt and its key alone, not on the rest of the batch.
        limit: most tokens of a response, stop token included; at most `time`.
        time: room for response tokens.
        cfg, sampling, dtype: model, choice of tokens, compute and cache dtype.
    """
    prefix, state = _start(
        params, tokens, mask, keys, limit[:, None],
        time=time, cfg=cfg, sampling=sampling, dtype=dtype,
    )  # fmt: skip
    while not bool(state.done.all()):
        if int(state.step) == state.suffix.length:
            state = _grow(state, min(2 * state.suffix.length, time))
        state = _decode_chunk(
            params, prefix, state, keys, limit[:, None], cfg=cfg, sampling=sampling
        )
    return state.samples
