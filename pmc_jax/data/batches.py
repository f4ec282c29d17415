"""Padded arrays of token lists, and which examples a step draws. NumPy only, no state."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

Tokens = Sequence[int]

# Distinct random streams for numbers drawn from the same seed.
ORDER_STREAM, RETAIN_STREAM, REFUSAL_STREAM, CONTROL_STREAM = 0, 1, 2, 3
BEGINNING_STREAM, OFFER_STREAM = 4, 5


def loss_rows(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], length: int
) -> tuple[
    Int32[np.ndarray, "batch length"],
    Bool[np.ndarray, "batch length"],
    Bool[np.ndarray, "batch length"],
]:
    """Prompts with their answers as right-padded rows.

    Returns:
        tokens: prompt, answer, and zeros as padding.
        mask: True at tokens that are not padding.
        loss_mask: True at answer tokens, the end token included. Token t is predicted at
            position t - 1. Prompt and padding carry no loss.

    Raises:
        ValueError: if a prompt or an answer is empty, or both together exceed `length`.
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
    """The prompt and answer to train on: at most `max_length` tokens together.

    The answer ends with `end_id`. It replaces another stop token, and is added to an answer
    without one. An answer that does not fit is cut, and has no end token: it would be learnt in
    the middle of a sentence.

    Raises:
        ValueError: if the prompt leaves no room for a token.
    """
    room = max_length - len(prompt)
    if room < 1:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens leaves no room within {max_length} tokens"
        )
    body = list(answer)
    if body and (body[-1] == end_id or body[-1] in stop_ids):
        body.pop()
    return list(prompt), [*body, end_id][:room]


def epoch_order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    """A permutation of `count` questions that depends on seed and epoch only."""
    return np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(count)


def retain_draw(seed: int, step: int, count: int, population: int) -> Int64[np.ndarray, " count"]:
    """Indices of an optimizer step's retain pairs, uniform over `population`, with replacement."""
    return np.random.default_rng([RETAIN_STREAM, seed, step]).integers(0, population, count)


def refusal_draw(seed: int, count: int, population: int) -> Int64[np.ndarray, " count"]:
    """The index of each question's refusal, uniform over `population`; fixed for a run."""
    return np.random.default_rng([REFUSAL_STREAM, seed]).integers(0, population, count)


def offer_draw(seed: int, step: int, number: int, question: int, population: int) -> int:
    """The index of the refusal that a visit of a question offers, uniform over `population`."""
    return int(
        np.random.default_rng([OFFER_STREAM, seed, step, number, question]).integers(population)
    )


def beginning_draw(seed: int, step: int, number: int, question: int) -> float:
    """Where beginning `number` of a question divides its original answer: uniform over [0, 1)."""
    return float(np.random.default_rng([BEGINNING_STREAM, seed, step, number, question]).random())
