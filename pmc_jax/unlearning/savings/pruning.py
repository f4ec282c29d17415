"""Branch and bound: samples that can no longer be selected are not decoded any further."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from jaxtyping import Bool, Float

from pmc_jax.decoding import FINISHED, PruneBatch, Responses
from pmc_jax.unlearning.method import Tokens
from pmc_jax.unlearning.schedule import Training


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a method scores samples of which it keeps the one with the least score.

    Attributes:
        remembered: the remembered score of every question, infinity before its first visit. A
            sample must not exceed it.
        score: (question, tokens) to the score of a finished sample.
        bound: (question, tokens) to the least score of a sample that begins with these tokens;
            None if it is unknown.
    """

    remembered: Float[np.ndarray, " questions"]
    score: Callable[[int, Tokens], float]
    bound: Callable[[int, Tokens], float] | None


def cannot_be_selected(
    remembered: Float[np.ndarray, " questions"],
    scores: Float[np.ndarray, "questions samples"],
    bounds: Float[np.ndarray, "questions samples"],
) -> Bool[np.ndarray, "questions samples"]:
    """The unfinished samples that will not be remembered, however they go on.

    Branch and bound: sample j with least possible score b_j is out if b_j > m, the remembered
    score; or if a finished sample i has s_i < b_j, or s_i = b_j and i < j. The winner w of all
    samples has b_w ≤ s_w, so no finished sample rules it out; and if b_w > m, the memory stays
    as it is. b_j = m rules nothing out, since ties take the newer response.

    Args:
        remembered: m, infinity before the first visit.
        scores: s of finished samples, infinity for the others.
        bounds: b of unfinished samples; 0 is always true.
    """
    number = np.arange(scores.shape[1])
    finished, other = scores[:, :, None], bounds[:, None, :]
    beaten = (finished < other) | ((finished == other) & (number[:, None] < number))
    return beaten.any(1) | (bounds > remembered[:, None])


def pruning(
    training: Training, questions: Sequence[int], scoring: Scoring | None
) -> PruneBatch | None:
    """Which samples of `questions` need no further decoding, as `generate` asks for it.

    None if there is nothing to save. If scores have no bound, or without `training.prune`, samples
    are cut only in waves: once one scores 0, those after it are left out.
    """
    if scoring is None:
        return None
    lower = scoring.bound if training.prune else None
    if lower is None and not training.wave:
        return None
    score, bound = cache(scoring.score), None if lower is None else cache(lower)

    def prune(indices: Sequence[int], found: Responses) -> Bool[np.ndarray, "batch samples"]:
        scores, bounds = np.full(found.status.shape, np.inf), np.zeros(found.status.shape)
        remembered = np.full(len(scores), np.inf)
        asked = [questions[index] for index in indices]
        remembered[: len(asked)] = scoring.remembered[asked]
        for row, j in np.argwhere(found.status[: len(asked)] == FINISHED).tolist():
            scores[row, j] = score(asked[row], tuple(found.tokens_of(row, j)))
        begun = (found.status < FINISHED) & (found.length > 0) & (bound is not None)
        for row, j in np.argwhere(begun[: len(asked)]).tolist():
            assert bound is not None
            bounds[row, j] = bound(asked[row], tuple(found.tokens_of(row, j)))
        return cannot_be_selected(remembered, scores, bounds)

    return prune


def tokens_saved(
    responses: Sequence[Sequence[Sequence[int]]], whole: Bool[np.ndarray, "questions samples"]
) -> int:
    """How many tokens the cut samples lack, if they were as long as the whole ones on average."""
    lengths = np.array([len(tokens) for row in responses for tokens in row])
    whole = whole.reshape(-1)
    if not whole.any():
        return 0
    return round(float(np.maximum(lengths[whole].mean() - lengths[~whole], 0).sum()))
