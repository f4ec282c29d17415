"""The sampler: prefill each prompt once, then decode n samples of it in a compiled loop.

The loop runs in chunks of a few decode steps. Between chunks, the host can drop rows that are no
longer needed, and the remaining rows move to a smaller shape. The suffix cache grows when it is
full, so that attention reads little beyond the part that is written. A chunk of many rows ends
early when the remaining rows may fit a smaller shape.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key

from pmc_jax.decoding.choice import Sampling, choose
from pmc_jax.decoding.drafts import DraftStarts, best_drafts, read_drafts
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
class Decoding:
    """How responses are computed; no setting changes a response.

    Attributes:
        chunk: the largest number of decode steps between two checks for finished rows.
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
    native = decode_kernel(current_target(dtype), cfg.head_dim, cfg.num_kv_heads) == "native"
    return cache_lengths(time, 8 if native else 2)


@dataclasses.dataclass
class Responses:
    """The responses of a batch on the host, with the tokens decoded so far.

    Attributes:
        tokens: response tokens, zeros after the end.
        length: tokens of each response, its stop token included.
        status: WAITING, RUNNING, FINISHED (stopped, or at its limit) or DROPPED. With drafts, a
            waiting response may have tokens, and may finish without ever running.
        followed: how many tokens of each response are read from a draft and not decoded.
    """

    tokens: Int[np.ndarray, "batch samples time"]
    length: Int[np.ndarray, "batch samples"]
    status: Int[np.ndarray, "batch samples"]
    followed: Int[np.ndarray, "batch samples"]

    def tokens_of(self, row: int, sample: int) -> list[int]:
        """The tokens of one response so far."""
        return self.tokens[row, sample, : self.length[row, sample]].tolist()


Prune = Callable[[Responses], Bool[np.ndarray, "batch samples"]]
"""Which responses need not be decoded further."""


@struct.dataclass
class DecodeState:
    """Everything that changes while decoding, and the constants of each row.

    Attributes:
        tokens: the responses so far, zeros after their ends. With drafts, these tokens and all
            numbers of tokens here do not include the tokens of the draft.
        length: tokens of each response.
        last: each row's newest token, which is fed to the model next.
        done: whether a row has stopped or reached its limit; true for empty slots.
        keys, limit: each row's RNG key, and the largest number of tokens of its response.
        broken: whether a token was chosen from logits that are not finite.
        step: number of tokens fed so far, the same for all rows.
        suffix: keys and values of the tokens fed so far.
        followed, unused: how many tokens of its draft a row follows, and how many it does not
            follow, whose keys and values it does not see; None without drafts.
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
    followed: Int[Array, "groups slots"] | None = None
    unused: Int[Array, "groups slots"] | None = None


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
    begun: Float[Array, "batch vocab"] | DraftStarts,
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

    It donates nothing, because later waves need `begun` again.

    Args:
        begun: the logits that `prefill_prompts` returns, or how the responses begin with drafts.
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
    limits = jnp.broadcast_to(limit[prompts][:, None], rows.shape)
    followed = unused = None
    if isinstance(begun, DraftStarts):
        followed, unused = (
            jnp.where(rows < 0, 0, part.reshape(-1)[rows])
            for part in (begun.followed, begun.unused)
        )
        limits = limits - followed
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
        followed=followed,
        unused=unused,
    )
    if isinstance(begun, DraftStarts):
        chosen, broken = begun.token.reshape(-1)[rows], state.broken
    else:
        chosen, broken = choose(begun[prompts], state.keys, state.step, sampling, temperature)
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

    It donates `state`, whose suffix cache is updated in place, but neither `params` nor `prefix`.
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
        logits, suffix = decode_step(
            params, state.last, state.step, prefix, whole, cfg, state.unused
        )
        index = state.step + 1
        number = index if state.followed is None else index + state.followed
        chosen, broken = choose(logits, state.keys, number, sampling, temperature)
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
    names = (
        "tokens", "length", "last", "done", "keys", "limit", "broken", "followed", "unused",
    )  # fmt: skip
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
    followed = found.followed.reshape(-1)[rows]
    position = followed[:, None] + np.arange(tokens.shape[2])
    row, column = np.nonzero(position < time)
    found.tokens.reshape(-1, time)[rows[row], position[row, column]] = tokens[used][row, column]
    tokens_before = int(found.length.sum())
    found.length.reshape(-1)[rows] = followed + length[used]
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
    tokens: Int[Array, "rows prompt"],
    mask: Bool[Array, "rows prompt"],
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
    drafts: Int[np.ndarray, "batch drafts"] | None = None,
) -> Responses:
    """Sample `keys.shape[1]` responses to each left-padded prompt.

    Args:
        params: weights, preferably already in `dtype` (`decoding_params`).
        tokens, mask: left-padded prompts; every row needs at least one token. With drafts, there
            is a row for each draft of each prompt: the prompt and then the draft.
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
        drafts: the length of each draft; at most its prompt's limit − 1, and no token of it is a
            stop token. They change no response.

    Raises:
        NotFinite: if the logits of a response that is not dropped contain NaN or infinity; with
            drafts, also if the response would be dropped.
    """
    batch, samples = keys.shape
    found = Responses(
        tokens=np.zeros((batch, samples, time), np.int32),
        length=np.zeros((batch, samples), np.int32),
        status=np.where(limit[:, None] > 0, WAITING, FINISHED) + np.zeros((1, samples), int),
        followed=np.zeros((batch, samples), np.int32),
    )
    begun: Array | DraftStarts
    if drafts is None:
        begun, prompts = prefill_prompts(params, tokens, mask, cfg, dtype=dtype)
    else:
        read, broken, prompts = read_drafts(
            params, tokens, mask, to_devices(drafts.reshape(-1)), keys, cfg, sampling=sampling,
            temperature=temperature, dtype=dtype,
        )  # fmt: skip
        begun, prompts = _begin(found, read, broken, prompts, tokens, drafts, limit, sampling)
    lengths = suffix_lengths(time, cfg, dtype, decoding)
    for first in range(0, samples, wave or samples):
        _drop(found, prune)
        chosen = found.status == WAITING
        chosen[:, first + (wave or samples) :] = False
        if not chosen.any():
            continue
        found.status[chosen] = RUNNING
        # What another draft says of them is forgotten: they go on from the tokens that they follow.
        found.length[chosen] = found.followed[chosen]
        found.tokens[chosen[..., None] & (np.arange(time) >= found.followed[..., None])] = 0
        prompt_of, row_of = arrange(chosen, smallest_shape(chosen.sum(1), shapes))
        if in_order(prompt_of, row_of, batch):
            prompt_of, prefix = np.arange(batch, dtype=np.int32), prompts  # no second copy
        else:
            prefix = take_prompts(prompts, to_devices(prompt_of))
        state = begin_decoding(
            begun, prefix, keys, to_devices(limit), to_devices(prompt_of),
            to_devices(row_of), length=lengths[0], sampling=sampling, temperature=temperature,
        )  # fmt: skip
        advance = partial(decode_chunk, params, cfg=cfg, sampling=sampling, temperature=temperature)
        _decode_wave(advance, prefix, state, row_of, found, shapes, lengths, decoding, prune)
    return found


def _begin(
    found: Responses,
    read: DraftStarts,
    broken: Bool[Array, "rows samples"],
    prompts: PrefixCache,
    tokens: Int[Array, "rows prompt"],
    drafts: Int[np.ndarray, "batch drafts"],
    limit: Int[np.ndarray, " batch"],
    sampling: Sampling,
) -> tuple[DraftStarts, PrefixCache]:
    """Write what drafts say of the responses to `found`; mark those that they finish.

    Returns the beginnings and the caches of the draft that each prompt goes on with.

    Raises:
        NotFinite: with the prompt of a response whose logits are not.
    """
    batch, count = drafts.shape
    time = found.tokens.shape[2]
    followed, token, wrong, texts = to_host((read.followed, read.token, broken, tokens))
    used = (limit > 0).repeat(count)
    if wrong[used].any():
        prompt = int(np.flatnonzero(wrong.any(1) & used)[0]) // count
        raise NotFinite(prompt, "the logits are not finite")
    own = np.zeros((batch * count, time), np.int32)
    for row, length in enumerate(drafts.reshape(-1).tolist()):
        own[row, :length] = texts[row, texts.shape[1] - length :]
    own = own.reshape(batch, count, time)
    best = best_drafts(followed, token, own, limit, sampling.stop_ids)
    asked = found.status == WAITING
    found.tokens[asked], found.length[asked] = best.tokens[asked], best.length[asked]
    found.followed[:] = best.followed
    found.status[asked & best.ended] = FINISHED
    decoded(0, int((asked & best.ended).sum()))
    if count == 1:
        return read, prompts
    rows = to_devices((np.arange(batch) * count + best.best).astype(np.int32))
    return _take_rows(read, rows), take_prompts(prompts, rows)


@jax.jit
def _take_rows(begun: DraftStarts, rows: Int[Array, " batch"]) -> DraftStarts:
    return jax.tree.map(lambda part: part[rows], begun)


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
