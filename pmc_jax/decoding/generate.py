"""From lists of prompts to lists of responses, through batches of few distinct shapes."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Int, Key, PRNGKeyArray

from pmc_jax.decoding.layout import prompt_rows, shapes
from pmc_jax.decoding.sampler import DECODING, Decoding, Responses, Sampling, sample
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig, to_devices
from pmc_jax.model.buckets import bucket_length, halved
from pmc_jax.model.specs import Params


@partial(jax.jit, static_argnames="samples")
def row_keys(
    key: PRNGKeyArray, step: jax.Array, question_ids: jax.Array, samples: int
) -> Key[Array, "batch samples"]:
    """Keys `[batch, samples]`: fold_in(fold_in(fold_in(key, step), question), sample)."""
    key = jax.random.fold_in(key, step)

    def one(question: jax.Array, index: jax.Array) -> PRNGKeyArray:
        return jax.random.fold_in(jax.random.fold_in(key, question), index)

    over_samples = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(over_samples, in_axes=(0, None))(question_ids, jnp.arange(samples))


def refuse_switch(rope: RopeConfig, prompt: int, limit: int) -> None:
    """Refuse what would need keys rotated anew halfway: LongRoPE's step from short to long."""
    longest = rope.original_max_position_embeddings
    if rope.kind == "longrope" and prompt <= longest < prompt + limit:
        raise UserError(
            f"a prompt of {prompt} tokens and up to {limit} new ones cross position {longest}, "
            "where the model's LongRoPE changes; expected fewer new tokens"
        )


MOST_ROWS = 512
"""Responses decoded at a time where a caller sets no number."""

PruneBatch = Callable[[Sequence[int], Responses], Bool[np.ndarray, "batch samples"]]
"""Which responses of a batch, whose prompts have these places in `prompts`, can be dropped."""


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
    longest_prompt: int = 0,
    rows: int | None = None,
    dtype: DTypeLike = jnp.float32,
    decoding: Decoding = DECODING,
    wave: int = 0,
    prune: PruneBatch | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[list[list[int]]]:
    """Decode `samples` responses to each prompt; `[prompt][sample][token]`, stop token included.

    Prompts of similar length go through together, at most `rows` responses at a time
    (at least one prompt), in the few shapes of `shapes`, which follow from `rows`. The RNG key
    of a response is `row_keys` of key, step, question id and sample, so that the answer does
    not depend on the batch it travels in.

    Args:
        temperature: in place of that of `sampling`, which is not 0. Programs are then compiled
            for any temperature, else for that of `sampling`.
        limits: most new tokens per prompt, the stop token included.
        question_ids: default: the prompt's place in `prompts`.
        longest_prompt: tokens of the longest prompt of all calls that are to share programs, if
            this one has shorter ones alone.
        rows: None: as many as there are, up to 512. Calls with the same number share programs,
            however few prompts they have.
        decoding: how the work is done; no setting changes a response.
        wave: samples of a prompt decoded at a time, the first ones first; 0: all at once.
        prune: called at the start of a wave and between chunks; a response that it drops
            is returned as far as it is decoded, and is not `is_whole`.
        on_batch: called with (prompts done, tokens decoded) after every batch.

    Raises:
        UserError: if a response may grow past the length at which LongRoPE rotates otherwise.
    """
    for prompt, most in zip(prompts, limits, strict=True):
        refuse_switch(cfg.rope, len(prompt), most)
    ids = range(len(prompts)) if question_ids is None else question_ids
    widest = bucket_length(max(longest_prompt, *map(len, prompts), 0))
    if rows is None:
        rows = min(len(prompts) * samples, MOST_ROWS)
    largest = max(1, rows // samples)
    choices = shapes(largest, samples, wave=wave, compact=decoding.compact)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    responses: list[list[list[int]]] = [[] for _ in prompts]
    for first in range(0, len(order), largest):
        chosen = order[first : first + largest]
        batch = prompt_rows(len(chosen), largest, compact=decoding.compact)
        width = halved(widest, len(prompts[chosen[-1]]))
        tokens, mask = left_padded([prompts[i] for i in chosen], batch, width)
        limit, row_ids = np.zeros(batch, np.int32), np.zeros(batch, np.uint32)
        limit[: len(chosen)] = [limits[i] for i in chosen]
        row_ids[: len(chosen)] = [ids[i] for i in chosen]
        found = sample(
            params, to_devices(tokens, "batch", None), to_devices(mask, "batch", None),
            row_keys(key, np.uint32(step), to_devices(row_ids), samples), limit,
            time=bucket_length(max(limits)), shapes=choices, cfg=cfg,
            sampling=sampling, temperature=temperature, dtype=dtype, decoding=decoding, wave=wave,
            prune=partial(prune, chosen) if prune else None,
        )  # fmt: skip
        for row, i in enumerate(chosen):
            responses[i] = [found.tokens_of(row, j) for j in range(samples)]
        if on_batch:
            on_batch(len(chosen), int(found.length.sum()))
    return responses


def is_whole(response: Sequence[int], limit: int, stop_ids: Sequence[int]) -> bool:
    """Whether a response has come to its end, rather than being dropped before."""
    return len(response) >= limit or any(token in stop_ids for token in response[-1:])


def left_padded(
    prompts: Sequence[Sequence[int]], batch: int, width: int
) -> tuple[Int[np.ndarray, "batch width"], Bool[np.ndarray, "batch width"]]:
    """Prompts as `batch` rows of `width` tokens, and where their own are.

    Rows that are filled up have one token, since every row needs one.
    """
    tokens, mask = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
    mask[len(prompts) :, -1] = True
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return tokens, mask
