"""Sequences of one optimizer step laid out in micro-batches of fixed shape."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, Shaped

from pmc_jax.buckets import bucket_length
from pmc_jax.data.batches import loss_rows

Pair = tuple[Sequence[int], Sequence[int]]


def padded_length(pairs: Sequence[Pair], max_length: int) -> int:
    """The bucket that holds the longest prompt with its answer."""
    longest = max((len(prompt) + len(answer) for prompt, answer in pairs), default=1)
    return min(bucket_length(longest), max_length)


def in_parts(
    values: Shaped[np.ndarray, "count *shape"], parts: int, per_part: int
) -> Shaped[np.ndarray, "parts per_part *shape"]:
    """`values` in order, `per_part` to each of `parts`; what is left over is zero."""
    full = np.zeros((parts * per_part, *values.shape[1:]), values.dtype)
    full[: len(values)] = values
    return full.reshape(parts, per_part, *values.shape[1:])


def micro_batches(
    pairs: Sequence[Pair], length: int, parts: int, per_part: int
) -> tuple[
    Int32[np.ndarray, "parts per_part length"],
    Bool[np.ndarray, "parts per_part length"],
    Bool[np.ndarray, "parts per_part length"],
]:
    """Tokens, mask and loss mask as `loss_rows` gives them; unused rows carry no loss."""
    arrays = loss_rows([prompt for prompt, _ in pairs], [answer for _, answer in pairs], length)
    tokens, mask, loss_mask = (in_parts(array, parts, per_part) for array in arrays)
    return tokens, mask, loss_mask
