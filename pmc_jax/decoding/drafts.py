"""Drafts: possible beginnings of a prompt's samples, read once for all samples.

A draft is any list of tokens, such as the greedy response. It is read together with its prompt.
Every sample draws its tokens from the logits at the draft's positions, with the keys of plain
decoding, until it draws a token that differs from the draft. The sample is therefore the same as in
plain decoding. Only the tokens after this point are decoded, over the keys and values of the prompt
and of the part of the draft that the sample followed.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key

from pmc_jax.decoding.choice import Sampling, choose
from pmc_jax.model import ModelConfig, PrefixCache, logits_after, prefill_states
from pmc_jax.model.specs import Params


def usable(draft: Sequence[int], limit: int, stop_ids: Sequence[int]) -> list[int]:
    """The tokens of a draft that a sample can continue: before a stop token and the limit."""
    ends = [i for i, token in enumerate(draft) if token in stop_ids]
    return list(draft[: min([*ends, max(limit - 1, 0)])])


@struct.dataclass
class DraftStarts:
    """How responses begin.

    Attributes:
        followed: how many tokens of a draft a response follows.
        token: the token after these, which it drew in place of the draft's next token.
        unused: how many tokens of the draft it does not follow.
    """

    followed: Int[Array, "rows samples"]
    token: Int[Array, "rows samples"]
    unused: Int[Array, "rows samples"]


@partial(jax.jit, static_argnames=("cfg", "sampling", "dtype"))
def read_drafts(
    params: Params,
    tokens: Int[Array, "rows prompt"],
    mask: Bool[Array, "rows prompt"],
    drafts: Int[Array, " rows"],
    keys: Key[Array, "batch samples"],
    cfg: ModelConfig,
    *,
    sampling: Sampling,
    temperature: Float[Array, ""] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[DraftStarts, Bool[Array, "rows samples"], PrefixCache]:
    """Read left-padded prompts with drafts, and draw each sample's beginning.

    It continues position by position as long as a sample follows its draft, so that only the
    logits of one position are in memory.

    Args:
        tokens, mask: prompts, each followed by a draft; a prompt has one row for each draft.
        drafts: the length of each draft.
        keys: one key per response.

    Returns:
        The beginnings; where a token was drawn from logits that are not finite; and the cache.
    """
    states, prefix = prefill_states(params, tokens, mask, cfg, dtype=dtype)
    rows, width = tokens.shape
    keys = jnp.repeat(keys, rows // len(keys), axis=0)

    def goes_on(carry: Any) -> Array:
        column, *_, following = carry
        return (column < width) & following.any()

    def advance(carry: Any) -> Any:
        column, followed, token, broken, following = carry
        index = column - (width - 1 - drafts)
        state = jax.lax.dynamic_index_in_dim(states, column, axis=1, keepdims=False)
        found = logits_after(params, state, cfg)
        chosen, bad = choose(found, keys, jnp.maximum(index, 0), sampling, temperature)
        # Shorter drafts begin at a later column.
        here = following & (index >= 0)[:, None]
        wanted = jnp.take(tokens, jnp.minimum(column + 1, width - 1), axis=1)[:, None]
        follows = here & (chosen == wanted) & (column + 1 < width)
        return (
            column + 1,
            followed + follows,
            jnp.where(here, chosen, token),
            broken | (here & bad),
            jnp.where(here, follows, following),
        )

    none = jnp.zeros(keys.shape, jnp.int32)
    start = (width - 1 - drafts.max(), none, none, none > 0, none == 0)
    _, followed, token, broken, _ = jax.lax.while_loop(goes_on, advance, start)
    begun = DraftStarts(followed, token, drafts[:, None] - followed)
    return begun, broken, prefix


@dataclasses.dataclass(frozen=True)
class Begun:
    """How the responses to a batch of prompts begin, on the host.

    Attributes:
        tokens: the known tokens of each response, from the draft that gives the most of them.
        length: the number of these tokens.
        ended: whether they are the whole response.
        best: for each prompt, the draft whose cache is used to continue decoding.
        followed: how many tokens of that draft each response follows.
    """

    tokens: Int[np.ndarray, "batch samples time"]
    length: Int[np.ndarray, "batch samples"]
    ended: Bool[np.ndarray, "batch samples"]
    best: Int[np.ndarray, " batch"]
    followed: Int[np.ndarray, "batch samples"]


def best_drafts(
    followed: Int[np.ndarray, "rows samples"],
    token: Int[np.ndarray, "rows samples"],
    drafts: Int[np.ndarray, "batch drafts time"],
    limit: Int[np.ndarray, " batch"],
    stop_ids: Sequence[int],
) -> Begun:
    """For each prompt, the draft with the most tokens that unfinished responses follow.

    A response is finished as soon as any of the drafts finishes it.

    Args:
        followed, token: from `DraftStarts`, with a row for each draft of each prompt.
        drafts: the tokens of the drafts, zeros after their ends.
        limit: the most tokens of a response.
    """
    batch, count, time = drafts.shape
    followed, token = (part.reshape(batch, count, -1) for part in (followed, token))
    ended = np.isin(token, stop_ids) | (followed + 1 >= limit[:, None, None])
    further = np.argmax(followed + time * ended, axis=1)[:, None]
    length = np.take_along_axis(followed, further, axis=1)[:, 0]
    tokens = drafts[np.arange(batch)[:, None], further[:, 0]]
    position = np.arange(time)
    last = np.take_along_axis(token, further, axis=1)[:, 0, :, None]
    tokens = np.where(position < length[..., None], tokens, 0)
    tokens = np.where(position == length[..., None], last, tokens)
    whole = np.asarray(ended.any(1))
    best = np.argmax(np.where(whole[:, None], 0, followed).sum(-1), axis=1)
    return Begun(
        tokens.astype(np.int32), np.minimum(length + 1, limit[:, None]), whole, best,
        followed[np.arange(batch), best],
    )  # fmt: skip
