"""The sampler: prefill each prompt once, then decode n samples of it in a compiled loop.

The loop runs in chunks of a few decode steps. Between chunks, the host can drop rows that are no
longer needed, the remaining rows move to a smaller shape, and the suffix cache grows when it is
full, so that attention reads little more than what is written. A chunk of many rows ends early
when the remaining rows may fit a smaller shape.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key

from pmc_jax.decoding.draw import draw_checked, greedy
from pmc_jax.decoding.layout import arrange, cache_lengths, few_rows, smallest_shape
from pmc_jax.errors import NotFinite
from pmc_jax.model import (
    ModelConfig,
    PrefixCache,
    SuffixCache,
    decode_step,
    grow,
    init_suffix,
    prefill,
    replaced,
    squeeze_single,
    to_devices,
    to_host,
    unsqueeze_single,
)
from pmc_jax.model.kernels.dispatch import current_target, decode_kernel
from pmc_jax.model.specs import Params
from pmc_jax.runtime.progress import decoded

WAITING, RUNNING, FINISHED, DROPPED = range(4)
"""The state of a row during decoding."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature, then top-k, then top-p; temperature 0 is greedy.

    A token of `stop_ids` ends a response and belongs to it. None is chosen among the first
    `min_new_tokens` tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How responses are computed; no setting changes a response.

    Attributes:
        chunk: the most decode steps between two checks for finished rows.
        compact: when rows finish, the remaining ones move to a smaller shape that holds them. With
            many rows, this is checked within chunks too.
        grow_cache: the suffix cache grows with the responses. If false, it has its full length from
            the start.
    """

    chunk: int = 8
    compact: bool = True
    grow_cache: bool = True


DECODING = Decoding()


def suffix_lengths(time: int, cfg: ModelConfig, dtype: DTypeLike, decoding: Decoding) -> list[int]:
    """The successive lengths of the suffix cache for responses of up to `time` tokens."""
    if not decoding.grow_cache:
        return [time]
    # The native kernel reads only what is written, however long the cache is.
    native = decode_kernel(current_target(dtype), cfg.head_dim) == "native"
    return cache_lengths(time, 8 if native else 2)


@dataclasses.dataclass
class Responses:
    """The responses of a batch on the host, as far as they are decoded.

    Attributes:
        tokens: response tokens, zeros after the end.
        length: tokens of each response, its stop token included.
        status: WAITING, RUNNING, FINISHED (stopped, or at its limit) or DROPPED.
    """

    tokens: Int[np.ndarray, "batch samples time"]
    length: Int[np.ndarray, "batch samples"]
    status: Int[np.ndarray, "batch samples"]

    def tokens_of(self, row: int, sample: int) -> list[int]:
        """One response as far as it is decoded."""
        return self.tokens[row, sample, : self.length[row, sample]].tolist()


Prune = Callable[[Responses], Bool[np.ndarray, "batch samples"]]
"""Which responses need not be decoded further."""


@struct.dataclass
class DecodeState:
    """Everything that changes while decoding, and the constants of each row.

    Attributes:
        tokens: the responses so far, zeros after their ends.
        length: tokens of each response.
        last: each row's newest token, which is fed to the model next.
        done: whether a row has stopped or reached its limit; true for empty slots.
        keys, limit: each row's RNG key, and the most tokens of its response.
        broken: whether a token was chosen from logits that are not finite.
        step: number of tokens fed so far, the same for all rows.
        suffix: keys and values of the tokens fed so far.
    """

    tokens: Int[Array, "groups slots time"]
    length: Int[Array, "groups slots"]
    last: Int[Array, "groups slots"]
    done: Bool[Array, "groups slots"]
    keys: Key[Array, "groups slots"]
    limit: Int[Array, "groups slots"]
    broken: Bool[Array, "groups slots"]
    step: Int[Array, ""]
    suffix: SuffixCache


def choose(
    logits: Float[Array, "*batch vocab"],
    keys: Key[Array, "*rows"],
    index: Int[Array, ""],
    sampling: Sampling,
    temperature: Float[Array, ""] | None = None,
) -> tuple[Int[Array, "*rows"], Bool[Array, "*rows"]]:
    """Token number `index` of every row's response, drawn with the row's own key.

    The second result says where the logits are not finite (`draw_checked`).

    Rows along the axes of `keys` that `logits` lacks have the same logits. `temperature` replaces
    that of `sampling` in functions that are compiled once for all temperatures.
    """
    if sampling.stop_ids and sampling.min_new_tokens:
        stops = jnp.asarray(sampling.stop_ids)
        held = jnp.where(index < sampling.min_new_tokens, -jnp.inf, logits[..., stops])
        logits = logits.at[..., stops].set(held)

    def to_rows(found: Array) -> Array:
        return jnp.broadcast_to(
            found.reshape(*found.shape, *[1] * (keys.ndim - found.ndim)), keys.shape
        )

    if sampling.temperature == 0:
        # `greedy` takes the same maximum, which XLA computes once.
        return to_rows(greedy(logits)), to_rows(~jnp.isfinite(logits.max(-1)))
    token_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys.reshape(-1))
    chosen, highest = draw_checked(
        token_keys.reshape(keys.shape), logits, sampling.top_k, sampling.top_p,
        sampling.temperature if temperature is None else temperature,
    )  # fmt: skip
    return chosen, to_rows(~jnp.isfinite(highest))


def _append(
    state: DecodeState, chosen: Array, broken: Array, index: Array, sampling: Sampling
) -> DecodeState:
    """Write token number `index` of the running rows, and mark those that end with it.

    `chosen` and `broken` are what `choose` returns.
    """
    broken = state.broken | (broken & ~state.done)
    chosen = jnp.where(state.done, 0, chosen)
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, chosen[..., None], index, axis=2)
    length = jnp.where(state.done, state.length, index + 1)
    stopped = jnp.isin(chosen, jnp.asarray(sampling.stop_ids, jnp.int32))
    done = state.done | stopped | (length >= state.limit)
    return dataclasses.replace(
        state, tokens=tokens, length=length, last=chosen, done=done, broken=broken
    )


prefill_prompts = jax.jit(prefill, static_argnames=("cfg", "dtype"))
"""`prefill`, compiled. It maps weights, left-padded prompts `[batch, prompt]` and their mask to
logits `[batch, vocab]` and a `PrefixCache`. It donates nothing."""


@jax.jit
def take_prompts(prefix: PrefixCache, prompts: Int[Array, " groups"]) -> PrefixCache:
    """The cache of these prompts; one may occur several times."""
    k, v = jax.tree.map(lambda stack: stack[:, prompts], (prefix.k, prefix.v))
    return PrefixCache(k=k, v=v, mask=prefix.mask[prompts])


@partial(jax.jit, static_argnames=("length", "sampling"))
def begin_decoding(
    logits: Float[Array, "batch vocab"],
    prefix: PrefixCache,
    keys: Key[Array, "batch samples"],
    limit: Int[Array, " batch"],
    prompts: Int[Array, " groups"],
    rows: Int[Array, "groups slots"],
    *,
    length: int,
    sampling: Sampling,
    temperature: Float[Array, ""] | None = None,
) -> DecodeState:
    """Arrange rows in groups and slots, and choose the first token of each.

    It donates nothing, since later waves need `logits` again.

    Args:
        logits: what `prefill_prompts` returns.
        prefix: the prefix cache of each group.
        keys, limit: the key of each response, and the most tokens of each prompt's responses.
        prompts, rows: what `arrange` returns: the prompt of each group, and the row
            (prompt · samples + sample) of each slot, or -1 for an empty one.
        length: decode steps that the suffix cache has room for.
        temperature: replaces that of `sampling`; a change does not compile again.

    Returns:
        The state of `groups` × `slots` rows with an empty suffix cache.
    """
    groups, slots = rows.shape
    logits = logits[prompts]
    limits = jnp.broadcast_to(limit[prompts][:, None], rows.shape)
    state = DecodeState(
        tokens=jnp.zeros((groups, slots, length + 1), jnp.int32),
        length=jnp.zeros(rows.shape, jnp.int32),
        last=jnp.zeros(rows.shape, jnp.int32),
        done=(rows < 0) | (limits <= 0),
        keys=keys.reshape(-1)[rows],
        limit=limits,
        broken=jnp.zeros(rows.shape, bool),
        step=jnp.zeros((), jnp.int32),
        suffix=init_suffix(prefix, slots, length),
    )
    chosen, broken = choose(logits, state.keys, state.step, sampling, temperature)
    return _append(state, chosen, broken, state.step, sampling)


@partial(jax.jit, static_argnames=("cfg", "sampling"), donate_argnames="state")
def decode_chunk(
    params: Params,
    prefix: PrefixCache,
    state: DecodeState,
    until: Int[Array, ""],
    few: Int[Array, ""],
    *,
    cfg: ModelConfig,
    sampling: Sampling,
    temperature: Float[Array, ""] | None = None,
) -> DecodeState:
    """Decode until step `until`, or until no more than `few` rows are running.

    It donates `state`, whose suffix cache is updated in place, and neither `params` nor `prefix`.
    The returned state has the same shapes.

    Args:
        params: weights to decode with (`decoding_params`).
        prefix, state: what `begin_decoding` returns; `state` may come from an earlier chunk.
        until: at most the length of the suffix cache.
        temperature: replaces that of `sampling`; a change does not compile again.
    """

    def running(state: DecodeState) -> Array:
        return (state.step < until) & ((~state.done).sum() > few)

    def advance(state: DecodeState) -> DecodeState:
        whole = unsqueeze_single(state.suffix)
        logits, suffix = decode_step(params, state.last, state.step, prefix, whole, cfg)
        index = state.step + 1
        chosen, broken = choose(logits, state.keys, index, sampling, temperature)
        state = _append(state, chosen, broken, index, sampling)
        return dataclasses.replace(state, step=index, suffix=squeeze_single(suffix))

    state = dataclasses.replace(state, suffix=squeeze_single(state.suffix))
    state = jax.lax.while_loop(running, advance, state)
    return dataclasses.replace(state, suffix=unsqueeze_single(state.suffix))


def _grow(state: DecodeState, length: int) -> DecodeState:
    """The state with room for `length` decode steps; it replaces `state`."""
    room = [(0, 0), (0, 0), (0, length + 1 - state.tokens.shape[2])]
    return dataclasses.replace(
        state, tokens=_padded(state.tokens, tuple(room)), suffix=grow(state.suffix, length)
    )


_padded = jax.jit(jnp.pad, static_argnums=1)


@jax.jit
def _move_rows(rows: dict[str, Array], slots: Int[Array, "groups slots"]) -> dict[str, Array]:
    moved = jax.tree.map(lambda own: own.reshape(-1, *own.shape[2:])[slots], rows)
    return {**moved, "done": moved["done"] | (slots < 0)}


@jax.jit
def _move_stack(stack: Array, slots: Int[Array, "groups slots"]) -> Array:
    return stack.reshape(stack.shape[0], -1, *stack.shape[3:])[:, slots]


def _regroup(
    prefix: PrefixCache,
    state: DecodeState,
    groups: Int[Array, " groups"],
    slots: Int[Array, "groups slots"],
) -> tuple[PrefixCache, DecodeState]:
    """Rows in a new arrangement; its state replaces `state`.

    `groups` has the old group of each new group, and `slots` the old slot (group · slots + slot) of
    each new slot; -1 is an empty slot, which is marked as done.
    """
    names = ("tokens", "length", "last", "done", "keys", "limit", "broken")
    rows = _move_rows({name: getattr(state, name) for name in names}, slots)
    suffix = replaced(lambda stack: _move_stack(stack, slots), state.suffix)
    moved = DecodeState(**rows, step=state.step, suffix=suffix)
    return take_prompts(prefix, groups), moved


def _record(found: Responses, state: DecodeState, row_of: np.ndarray) -> int:
    """Copy the decoded tokens to the host; returns the number of tokens fed.

    Raises:
        NotFinite: with the prompt of a response whose logits are not.
    """
    arrays = state.tokens, state.length, state.done, state.broken, state.step
    tokens, length, done, broken, step = to_host(arrays)
    used, rows = row_of >= 0, row_of[row_of >= 0]
    if broken[used].any():
        prompt = int(rows[broken[used]].min()) // found.length.shape[1]
        raise NotFinite(prompt, "the logits are not finite")
    time = found.tokens.shape[2]
    width = min(tokens.shape[2], time)
    found.tokens.reshape(-1, time)[rows, :width] = tokens[used][:, :width]
    tokens_before = int(found.length.sum())
    found.length.reshape(-1)[rows] = length[used]
    status = found.status.reshape(-1)
    ended = rows[done[used]]
    status[ended] = np.where(status[ended] == RUNNING, FINISHED, status[ended])
    # The rows that fill up a batch have no tokens.
    complete = (found.status >= FINISHED) & (found.length > 0)
    decoded(int(found.length.sum()) - tokens_before, int(complete.sum()))
    return int(step)


def _drop(found: Responses, prune: Prune | None) -> None:
    """Mark unfinished responses that `prune` names as dropped."""
    if prune is not None:
        unfinished = (found.status == WAITING) | (found.status == RUNNING)
        found.status[prune(found) & unfinished] = DROPPED


def sample(
    params: Params,
    tokens: Int[Array, "batch prompt"],
    mask: Bool[Array, "batch prompt"],
    keys: Key[Array, "batch samples"],
    limit: Int[np.ndarray, " batch"],
    *,
    time: int,
    shapes: Sequence[tuple[int, int]],
    cfg: ModelConfig,
    sampling: Sampling,
    temperature: float | None = None,
    dtype: DTypeLike = jnp.float32,
    decoding: Decoding = DECODING,
    wave: int = 0,
    prune: Prune | None = None,
) -> Responses:
    """Sample `keys.shape[1]` responses to each left-padded prompt.

    Args:
        params: weights, preferably already in `dtype` (`decoding_params`).
        tokens, mask: left-padded prompts; every row needs at least one token.
        keys: one key per response. A response depends on its prompt and its key alone, not on the
            rest of the batch.
        limit: the most tokens of a response, stop token included; at most `time`.
        time: room for response tokens.
        shapes: the (groups, slots) to decode in, largest first; the largest holds a whole wave.
        cfg, sampling, dtype: model, choice of tokens, dtype of computation and cache.
        temperature: replaces that of `sampling`; a change does not compile again.
        decoding: how responses are computed.
        wave: how many samples of a prompt are decoded at a time, in order; 0: all at once.
        prune: called at the start of a wave and between chunks. A response that it drops is not
            decoded further.

    Raises:
        NotFinite: if the logits of a response that is not dropped hold NaN or infinity.
    """
    batch, samples = keys.shape
    logits, prompts = prefill_prompts(params, tokens, mask, cfg, dtype=dtype)
    found = Responses(
        tokens=np.zeros((batch, samples, time), np.int32),
        length=np.zeros((batch, samples), np.int32),
        status=np.where(limit[:, None] > 0, WAITING, FINISHED) + np.zeros((1, samples), int),
    )
    lengths = suffix_lengths(time, cfg, dtype, decoding)
    for first in range(0, samples, wave or samples):
        _drop(found, prune)
        chosen = found.status == WAITING
        chosen[:, first + (wave or samples) :] = False
        if not chosen.any():
            continue
        found.status[chosen] = RUNNING
        prompt_of, row_of = arrange(chosen, smallest_shape(chosen.sum(1), shapes))
        if in_order(prompt_of, row_of, batch):
            prompt_of, prefix = np.arange(batch, dtype=np.int32), prompts  # no second copy
        else:
            prefix = take_prompts(prompts, to_devices(prompt_of))
        state = begin_decoding(
            logits, prefix, keys, to_devices(limit), to_devices(prompt_of),
            to_devices(row_of), length=lengths[0], sampling=sampling, temperature=temperature,
        )  # fmt: skip
        advance = partial(decode_chunk, params, cfg=cfg, sampling=sampling, temperature=temperature)
        _decode_wave(advance, prefix, state, row_of, found, shapes, lengths, decoding, prune)
    return found


def in_order(prompt_of: np.ndarray, row_of: np.ndarray, batch: int) -> bool:
    """Whether there is a group for each of `batch` prompts, and each used one is that prompt's."""
    used = (row_of >= 0).any(1)
    return len(prompt_of) == batch and bool((prompt_of == np.arange(batch))[used].all())


def _decode_wave(
    advance: Callable[[PrefixCache, DecodeState, Array, Array], DecodeState],
    prefix: PrefixCache,
    state: DecodeState,
    row_of: Int[np.ndarray, "groups slots"],
    found: Responses,
    shapes: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    decoding: Decoding,
    prune: Prune | None,
) -> None:
    """Decode chunk by chunk, by `advance`, until no response in `found` is running."""
    step, running = 0, found.status == RUNNING
    while True:
        until = min(step + decoding.chunk, state.suffix.length)
        few = few_rows(int(running.sum()), row_of.shape, shapes) if decoding.compact else 0
        state = advance(prefix, state, jnp.int32(until), jnp.int32(few))
        step = _record(found, state, row_of)
        if (found.status == RUNNING).any():
            _drop(found, prune)
        running = found.status == RUNNING
        if not running.any():
            return
        shape = smallest_shape(running.sum(1), shapes)
        if decoding.compact and shape[0] * shape[1] < row_of.size:
            _, moved = arrange(running, shape)
            prefix, state = _move(prefix, state, row_of, moved)
            row_of = moved
        done = (row_of < 0) | ~running.reshape(-1)[row_of]
        state = dataclasses.replace(state, done=to_devices(done))
        if step == state.suffix.length:
            state = _grow(state, lengths[lengths.index(step) + 1])


def _move(
    prefix: PrefixCache, state: DecodeState, old: np.ndarray, new: np.ndarray
) -> tuple[PrefixCache, DecodeState]:
    """Move the rows from arrangement `old` to `new`."""
    slot_of = np.full(int(old.max()) + 1, -1, np.int32)
    slot_of[old[old >= 0]] = np.flatnonzero(old.reshape(-1) >= 0)
    slots = np.where(new >= 0, slot_of[new], -1)
    groups = np.maximum(slots[:, 0], 0) // old.shape[1]
    return _regroup(prefix, state, to_devices(groups), to_devices(slots))
