"""Selection of one response per question, and the memory of the best one so far."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt32

from pmc_jax.model import to_devices, to_host

SELECTION = 0xFFFFFFFF

_categorical = jax.jit(jax.vmap(jax.random.categorical))


@struct.dataclass
class ResponseMemory:
    """The best response of every forget question so far; arrays live on the host.

    Attributes:
        score: its score; infinity before the first visit.
        tokens: its tokens as sampled, zeros after the end.
        length: its number of tokens.
    """

    score: Float[np.ndarray, " questions"]
    tokens: Int[np.ndarray, "questions time"]
    length: Int[np.ndarray, " questions"]


def empty_memory(questions: int, time: int) -> ResponseMemory:
    """A memory of nothing, with room for `time` tokens a response."""
    return ResponseMemory(
        score=np.full(questions, np.inf),
        tokens=np.zeros((questions, time), np.int32),
        length=np.zeros(questions, np.int32),
    )


def needs_sampling(
    memory: ResponseMemory, questions: Sequence[int], *, always: bool = False
) -> list[int]:
    """The questions whose remembered score is not exactly 0, the least there is; `always`: all."""
    return [i for i in questions if always or memory.score[i] != 0]


@jax.jit
def selection_keys(
    key: PRNGKeyArray, step: int | Array, question_ids: UInt32[Array, " questions"]
) -> Key[Array, " questions"]:
    """A key per question for `select`: that of a sample index which no response has."""
    key = jax.random.fold_in(key, step)

    def one(question: Array) -> PRNGKeyArray:
        return jax.random.fold_in(jax.random.fold_in(key, question), SELECTION)

    return jax.vmap(one)(question_ids)


def select(
    scores: Float[np.ndarray, "questions samples"],
    temperature: float = 0.0,
    keys: Key[Array, " questions"] | None = None,
) -> Int[np.ndarray, " questions"]:
    """Choose one sample per question by Bradley–Terry on the reward r = 1 - s.

    P(x̂ = x_i) = exp(r_i / τ) / Σ_j exp(r_j / τ); `temperature` τ = 0 is its limit,
    the first index of the least score. τ > 0 needs one key per question.
    """
    if temperature == 0:
        return np.argmin(scores, axis=1)
    if keys is None:
        raise ValueError("Bradley–Terry selection at a temperature needs a key per question")
    return to_host(_categorical(keys, to_devices((1 - scores) / temperature)))


def update_memory(
    memory: ResponseMemory,
    questions: Sequence[int],
    scores: Sequence[float],
    responses: Sequence[Sequence[int]],
) -> ResponseMemory:
    """Each selected response replaces the remembered one unless its score is higher.

    Ties take the newer response. `questions` holds no question twice.
    """
    score, tokens, length = memory.score.copy(), memory.tokens.copy(), memory.length.copy()
    for i, new_score, response in zip(questions, scores, responses, strict=True):
        if new_score <= score[i]:
            score[i], length[i] = new_score, len(response)
            tokens[i] = 0
            tokens[i, : len(response)] = response
    return ResponseMemory(score=score, tokens=tokens, length=length)


def cannot_be_selected(
    remembered: Float[np.ndarray, " questions"],
    scores: Float[np.ndarray, "questions samples"],
    bounds: Float[np.ndarray, "questions samples"],
) -> Bool[np.ndarray, "questions samples"]:
    """Which unfinished samples the memory will not hold, however they go on (τ = 0 only).

    Branch and bound: sample j with least possible score b_j is out if b_j > m, the remembered
    score; or if a finished sample i has s_i < b_j, or s_i = b_j and i < j. The winner w of all
    samples has b_w ≤ s_w, so that no finished sample rules it out; and if b_w > m, the memory
    stays as it is. b_j = m rules nothing out, since ties take the newer response.

    Args:
        remembered: m, infinity before the first visit.
        scores: s of finished samples, infinity for the others.
        bounds: b of unfinished samples; 0 is always true.
    """
    number = np.arange(scores.shape[1])
    finished, other = scores[:, :, None], bounds[:, None, :]
    beaten = (finished < other) | ((finished == other) & (number[:, None] < number))
    return beaten.any(1) | (bounds > remembered[:, None])
