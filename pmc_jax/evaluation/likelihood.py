"""How likely a model finds given answers, in few batched forward passes."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.buckets import bucket_length
from pmc_jax.data.batches import loss_rows
from pmc_jax.evaluation.quality import Respondent
from pmc_jax.model import ModelConfig, forward, token_nll
from pmc_jax.model.specs import Params


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def mean_nll(
    params: Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    loss_mask: Bool[Array, "batch time"],
    *,
    cfg: ModelConfig,
    dtype: DTypeLike,
) -> Float[Array, " batch"]:
    """Mean negative log-likelihood (nats a token) of the tokens in `loss_mask`, row by row."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = forward(params, tokens, positions, mask, cfg, dtype=dtype)
    nll = token_nll(params, hidden, tokens, cfg)
    return (nll * loss_mask).sum(axis=1) / loss_mask.sum(axis=1)


def answer_losses(
    respondent: Respondent,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    rows: int = 64,
    on_batch: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, " pairs"]:
    """−(1/L) Σ log p of the L tokens of each answer after its prompt, in nats.

    Args:
        pairs: token ids of prompt and answer; the answer holds its end token.
        rows: most pairs in one forward pass. Pairs of similar length go through together;
            a smaller batch is filled up to a power of two.
        on_batch: called with (pairs done, tokens scored) after every batch.
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (lengths[i], i))
    losses = np.zeros(len(pairs))
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        batch = min(rows, 1 << (len(chosen) - 1).bit_length())
        filled = [pairs[i] for i in chosen] + [pairs[chosen[0]]] * (batch - len(chosen))
        prompts, answers = zip(*filled, strict=True)
        arrays = loss_rows(prompts, answers, bucket_length(lengths[chosen[-1]]))
        found = mean_nll(
            respondent.params, *map(jnp.asarray, arrays),
            cfg=respondent.model, dtype=respondent.dtype,
        )  # fmt: skip
        losses[chosen] = np.asarray(found)[: len(chosen)]
        if on_batch:
            on_batch(len(chosen), sum(len(pairs[i][1]) for i in chosen))
    return losses
