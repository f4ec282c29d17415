"""The best response to every forget question so far."""

from collections.abc import Sequence

import numpy as np
from flax import struct
from jaxtyping import Float, Int


@struct.dataclass
class ResponseMemory:
    """The best response to every forget question so far; arrays live on the host.

    Attributes:
        score: its score; infinity before the first visit.
        tokens: its tokens as sampled, zeros after the end.
        length: its number of tokens.
    """

    score: Float[np.ndarray, " questions"]
    tokens: Int[np.ndarray, "questions time"]
    length: Int[np.ndarray, " questions"]

    def response(self, question: int) -> list[int]:
        """The tokens of the best response to a question."""
        return self.tokens[question, : self.length[question]].tolist()


def empty_memory(questions: int, time: int) -> ResponseMemory:
    """An empty memory with room for `time` tokens per response."""
    return ResponseMemory(
        score=np.full(questions, np.inf),
        tokens=np.zeros((questions, time), np.int32),
        length=np.zeros(questions, np.int32),
    )


def needs_sampling(
    memory: ResponseMemory, questions: Sequence[int], *, always: bool = False
) -> list[int]:
    """The questions whose remembered score is not 0, the lowest score; `always`: all."""
    return [i for i in questions if always or memory.score[i] != 0]


def update_memory(
    memory: ResponseMemory,
    questions: Sequence[int],
    scores: Sequence[float],
    responses: Sequence[Sequence[int]],
) -> ResponseMemory:
    """Replace each remembered response by the selected one, unless its score is higher.

    Ties take the newer response. `questions` must not contain a question twice.
    """
    score, tokens, length = memory.score.copy(), memory.tokens.copy(), memory.length.copy()
    for i, new_score, response in zip(questions, scores, responses, strict=True):
        if new_score <= score[i]:
            score[i], length[i] = new_score, len(response)
            tokens[i] = 0
            tokens[i, : len(response)] = response
    return ResponseMemory(score=score, tokens=tokens, length=length)
