"""Token lists to padded arrays, and which rows come when. Numpy only, nothing stateful."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

Tokens = Sequence[int]

# Distinct random streams for numbers drawn from the same seed.
ORDER_STREAM, RETAIN_STREAM, REFUSAL_STREAM, CONTROL_STREAM = 0, 1, 2, 3


def loss_rows(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], length: int
) -> tuple[
    Int32[np.ndarray, "batch length"],
    Bool[np.ndarray, "batch length"],
    Bool[np.ndarray, "batch length"],
]:
    """Right-padded prompt + answer: tokens, a mask of real tokens, and a mask of targets.

    The third is True where `tokens[row, t]` is an answer token (end token included): what
    position t - 1 must predict. Prompt and padding, which is zeros, carry no loss.
    """
    tokens = np.zeros((len(prompts), length), np.int32)
    mask, loss_mask = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, end = len(prompt), len(prompt) + len(answer)
        if not 0 < start < end <= length:
            raise ValueError(
                f"row {row} has {start} prompt and {end - start} answer tokens; expected "
                f"at least one of each and at most {length} in all"
            )
        tokens[row, :start], tokens[row, start:end] = prompt, answer
        mask[row, :end], loss_mask[row, start:end] = True, True
    return tokens, mask, loss_mask


def train_sequence(
    prompt: Tokens, answer: Tokens, end_id: int, max_length: int, stop_ids: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Prompt and answer as they are trained on: at most `max_length` tokens, always ended.

    The answer ends in `end_id`, whether the sample ended so, in another of `stop_ids`, or
    was cut; what does not fit before the end token is dropped.
    """
    room = max_length - len(prompt) - 1
    if room < 0:
        raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room within {max_length}")
    body = list(answer)
    if body and (body[-1] == end_id or body[-1] in stop_ids):
        body.pop()
    return list(prompt), [*body[:room], end_id]


def epoch_order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    """A permutation of `count` rows that depends on seed and epoch only."""
    return np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(count)


def retain_draw(seed: int, step: int, count: int, population: int) -> Int64[np.ndarray, " count"]:
    """`count` of `population` rows, uniform with replacement, for one optimizer step."""
    return np.random.default_rng([RETAIN_STREAM, seed, step]).integers(0, population, count)


def refusal_draw(seed: int, count: int, population: int) -> Int64[np.ndarray, " count"]:
    """One of `population` refusals for each of `count` questions, the same in the whole run."""
    return np.random.default_rng([REFUSAL_STREAM, seed]).integers(0, population, count)
