"""Decode lists of prompts to lists of responses, in batches with few distinct shapes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Int, Key, PRNGKeyArray

from pmc_jax.decoding.choice import Sampling
from pmc_jax.decoding.drafts import usable
from pmc_jax.decoding.layout import prompt_rows, shapes
from pmc_jax.decoding.sampler import DECODING, Decoding, Responses, sample
from pmc_jax.errors import NotFinite, UserError
from pmc_jax.model import ModelConfig, RopeConfig, batch_shards, to_devices
from pmc_jax.model.buckets import bucket_length, halved
from pmc_jax.model.memory import footprint, rows_at_once
from pmc_jax.model.specs import Params
from pmc_jax.runtime.memory import free_memory, in_batches
from pmc_jax.runtime.processes import from_all
from pmc_jax.settings import AUTO


@partial(jax.jit, static_argnames="samples")
def row_keys(
    key: PRNGKeyArray, step: jax.Array, question_ids: jax.Array, samples: int
) -> Key[Array, "batch samples"]:
    """The RNG key of each sample: fold_in(fold_in(fold_in(key, step), question), sample)."""
    key = jax.random.fold_in(key, step)

    def one(question: jax.Array, index: jax.Array) -> PRNGKeyArray:
        return jax.random.fold_in(jax.random.fold_in(key, question), index)

    over_samples = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(over_samples, in_axes=(0, None))(question_ids, jnp.arange(samples))


def check_longrope(rope: RopeConfig, prompt: int, limit: int) -> None:
    """Check that a response does not cross the length at which LongRoPE changes.

    Beyond this length, all cached keys would have to be rotated again.

    Raises:
        UserError: if the response may cross it.
    """
    longest = rope.original_max_position_embeddings
    if rope.kind == "longrope" and prompt <= longest < prompt + limit:
        raise UserError(
            f"a prompt of {prompt} tokens and up to {limit} new ones cross position {longest}, "
            "where the model's LongRoPE changes; expected fewer new tokens"
        )


def fewer_rows(prompts: int, wave: int, shards: int) -> tuple[int, int] | None:
    """Half as many prompts at a time, or else half as many samples of each.

    Every shard of a batch keeps at least one prompt. None if there is only one row.
    """
    if prompts > shards:
        return max(-(-prompts // 2), shards), wave
    return (prompts, -(-wave // 2)) if wave > 1 else None


MANY_SAMPLES = 8
"""With at least this many samples of a prompt, its greedy response is worth decoding as a draft."""

PruneBatch = Callable[[Sequence[int], Responses], Bool[np.ndarray, "batch samples"]]
"""Maps the indices of a batch's prompts, and its responses, to which responses can be dropped."""


def generate(
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    cfg: ModelConfig,
    sampling: Sampling,
    temperature: float | None = None,
    key: PRNGKeyArray,
    limits: Sequence[int],
    samples: int = 1,
    step: int = 0,
    question_ids: Sequence[int] | None = None,
    drafts: Sequence[Sequence[Sequence[int]]] | Literal["greedy"] | None = None,
    longest_prompt: int = 0,
    decode_batch: int | str = AUTO,
    dtype: DTypeLike = jnp.float32,
    decoding: Decoding = DECODING,
    wave: int = 0,
    prune: PruneBatch | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[list[list[int]]]:
    """Decode `samples` responses to each prompt: token ids `[prompt][sample][token]`.

    Prompts of similar length form a batch. A batch has at most `decode_batch` responses, but at
    least one prompt, and one of the few shapes of `layout.shapes`. The RNG key of a response
    follows from key, step, question id and sample (`row_keys`), so a response does not depend on
    its batch, except by rounding. Responses include their stop token.

    If a device runs out of memory, the batch is decoded again with half as many responses at a
    time. Later batches in this process use the smaller number, too.

    Args:
        temperature: replaces the temperature of `sampling`, which must not be 0. The functions
            are then compiled once for all temperatures.
        limits: the maximum number of new tokens for each prompt, stop token included.
        question_ids: by default, the prompt's index in `prompts`.
        drafts: for each prompt, token lists `[prompt][draft][token]` that its responses may begin
            with. They change no response. They save decoding if responses begin like them.
            "greedy": the greedy responses, which are decoded first if there are at least
            `MANY_SAMPLES` samples.
        longest_prompt: if several calls share compiled functions, the length of the longest prompt
            of all these calls, with its longest draft.
        decode_batch: the maximum number of responses that are decoded at a time; "auto": what
            fits into memory, up to 512 on each shard of a batch. Calls with the same number share
            compiled functions, however few prompts they have.
        decoding: how to do the work; no setting changes a response.
        wave: how many samples of a prompt to decode at a time; 0: all.
        prune: called at the start of a wave and between chunks. The tokens that a dropped response
            has so far are returned, and `is_whole` is False for it.
        on_batch: called after every batch with the numbers of responses and tokens in it.

    Raises:
        UserError: if a response may cross the length at which LongRoPE changes.
        NotFinite: if the logits of a response contain NaN or infinity.
        UserError: if a device has too little memory for a single response.
    """
    for prompt, most in zip(prompts, limits, strict=True):
        check_longrope(cfg.rope, len(prompt), most)
    ids = range(len(prompts)) if question_ids is None else question_ids
    if drafts == "greedy":
        drafts = None
        if samples >= MANY_SAMPLES and (sampling.temperature > 0 or temperature):
            greedy = generate(
                params, prompts, cfg=cfg, key=key, limits=limits, longest_prompt=longest_prompt,
                sampling=Sampling(
                    0.0, min_new_tokens=sampling.min_new_tokens, stop_ids=sampling.stop_ids
                ),
                decode_batch=decode_batch, dtype=dtype, decoding=decoding,
            )  # fmt: skip
            drafts = [list(found) for found in greedy]
    own: list[list[list[int]]] = [[[]] for _ in prompts]
    if drafts is not None:
        count = max(map(len, drafts), default=0) or 1
        for i, (some, most) in enumerate(zip(drafts, limits, strict=True)):
            read = [usable(draft, most, sampling.stop_ids) for draft in some]
            own[i] = read + [[]] * (count - len(read))
    lengths = [len(prompt) + max(map(len, some)) for prompt, some in zip(prompts, own, strict=True)]
    widest = bucket_length(max(longest_prompt, *lengths, 0))
    time = bucket_length(max(limits, default=0))
    if decode_batch == AUTO:
        jax.block_until_ready(params)  # before memory is measured
        largest, wave = from_all(
            lambda: rows_at_once(
                footprint(cfg, dtype), free_memory(), prompts=len(prompts), samples=samples,
                width=widest, time=time, wave=wave,
                filters=sampling.top_k > 0 or sampling.top_p < 1,
                drafts=max(map(len, own), default=1) if drafts is not None else 0,
            )
        )  # fmt: skip
    else:
        largest = max(1, int(decode_batch) // samples)
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
    responses: list[list[list[int]]] = [[] for _ in prompts]

    def decode(chosen: Sequence[int], size: tuple[int, ...]) -> Responses:
        """The responses to a batch of prompts."""
        largest, wave = size
        batch = prompt_rows(len(chosen), largest, compact=decoding.compact)
        width = halved(widest, lengths[chosen[-1]])
        count = len(own[chosen[0]])
        rows = [[*prompts[i], *draft] for i in chosen for draft in own[i]]
        tokens, mask = left_padded(rows, batch * count, width)
        read = None
        if drafts is not None:
            read = np.zeros((batch, count), np.int32)
            read[: len(chosen)] = [[len(draft) for draft in own[i]] for i in chosen]
        limit, row_ids = np.zeros(batch, np.int32), np.zeros(batch, np.uint32)
        limit[: len(chosen)] = [limits[i] for i in chosen]
        row_ids[: len(chosen)] = [ids[i] for i in chosen]
        try:
            return sample(
                params, to_devices(tokens, "batch", None), to_devices(mask, "batch", None),
                row_keys(key, np.uint32(step), to_devices(row_ids), samples), limit,
                time=time, shapes=shapes(largest, samples, wave=wave, compact=decoding.compact),
                cfg=cfg, sampling=sampling, temperature=temperature, dtype=dtype,
                decoding=decoding, wave=wave, prune=partial(prune, chosen) if prune else None,
                drafts=read,
            )  # fmt: skip
        except NotFinite as error:
            i = chosen[error.index]
            raise NotFinite(i, f"prompt {i}: {error} (NaN or infinite)") from None

    def words(size: tuple[int, ...]) -> str:
        return f"{size[0] * min(size[1] or samples, samples)} responses at a time"

    for chosen, found in in_batches(
        order, decode, (largest, wave),
        lambda size: fewer_rows(size[0], size[1] or samples, batch_shards()), words,
        task=(cfg, str(jnp.dtype(dtype)), samples, widest, time), what="decoding",
    ):  # fmt: skip
        for row, i in enumerate(chosen):
            responses[i] = [found.tokens_of(row, j) for j in range(samples)]
        if on_batch:
            on_batch(len(chosen) * samples, int(found.length.sum()))
    return responses


def is_whole(response: Sequence[int], limit: int, stop_ids: Sequence[int]) -> bool:
    """Whether a response has reached its limit or a stop token, and was not dropped before."""
    return len(response) >= limit or any(token in stop_ids for token in response[-1:])


def left_padded(
    prompts: Sequence[Sequence[int]], batch: int, width: int
) -> tuple[Int[np.ndarray, "batch width"], Bool[np.ndarray, "batch width"]]:
    """Prompts as left-padded rows of `width` tokens, and a mask of their own tokens.

    Rows that fill up the batch have one token each, because attention needs at least one.
    """
    tokens, mask = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
    mask[len(prompts) :, -1] = True
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return tokens, mask
