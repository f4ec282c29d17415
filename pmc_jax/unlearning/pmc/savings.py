"""What saves work while sampling and changes no selected response, except by rounding.

- Branch and bound: a sample that can no longer be selected is not decoded any further.
- Waves: a question's samples are decoded a few at a time, and once one scores 0 the rest is
  left out.
- Drafts: samples that begin like y0 or like the remembered response are not decoded up to where
  they leave it.
- Few shapes: all steps share the same padded shapes, so that little is compiled.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt32

from pmc_jax.decoding import FINISHED, PruneBatch, Responses
from pmc_jax.unlearning.method import Run, Tokens
from pmc_jax.unlearning.pmc.memory import ResponseMemory
from pmc_jax.unlearning.pmc.reward import original_answer, reward_of, score_sample
from pmc_jax.unlearning.pmc.settings import PMCSettings

DRAFTS = 2
"""The most drafts of a question."""


def savings(
    run: Run[PMCSettings],
    memory: ResponseMemory,
    questions: Sequence[int],
    *,
    forced: bool = False,
) -> dict[str, Any]:
    """The arguments of `generate` that only save work; `forced`: prompts end with a beginning."""
    training = run.task.training
    return {
        "longest_prompt": training.max_length if forced else longest_read(run),
        "drafts": None if forced else drafts(run, memory, questions),
        "decode_batch": questions_at_once(run) * run.method.samples,
        "decoding": training.decoding,
        "wave": training.wave,
        "prune": pruning(run, memory, questions),
    }


@lru_cache(maxsize=2**12)
def _answer_tokens(encode: Callable[[str], list[int]], answer: str) -> Tokens:
    return tuple(encode(answer))


def original_tokens(run: Run[PMCSettings], question: int) -> Tokens:
    """y0(q) as tokens, as its text is encoded."""
    return _answer_tokens(run.task.model.template.encode_answer, original_answer(run, question))


def longest_read(run: Run[PMCSettings]) -> int:
    """The most tokens that sampling reads at once: the longest prompt, with y0 if it is a draft."""
    prompts = run.task.prompts
    if not run.task.training.drafts:
        return max(map(len, prompts))
    return max(len(prompt) + len(original_tokens(run, i)) for i, prompt in enumerate(prompts))


def drafts(
    run: Run[PMCSettings], memory: ResponseMemory, questions: Sequence[int]
) -> list[list[Tokens]] | None:
    """What samples may begin with: y0, and the response that training raises the probability of.

    Both are known from the state of the run alone. None without `training.drafts`.
    """
    if not run.task.training.drafts:
        return None
    longest = longest_read(run)

    def of(question: int) -> list[Tokens]:
        found = [original_tokens(run, question)]
        if memory.length[question]:
            found.append(tuple(memory.tokens[question, : memory.length[question]].tolist()))
        return [draft[: longest - len(run.task.prompts[question])] for draft in found]

    return [of(question) for question in questions]


def questions_at_once(run: Run[PMCSettings]) -> int:
    """The most questions whose responses are decoded at a time, in any step."""
    return min(run.task.training.sampled_at_once(run.method.samples), len(run.task.prompts))


def cannot_be_selected(
    remembered: Float[np.ndarray, " questions"],
    scores: Float[np.ndarray, "questions samples"],
    bounds: Float[np.ndarray, "questions samples"],
) -> Bool[np.ndarray, "questions samples"]:
    """The unfinished samples that the memory will not hold, however they go on (τ = 0 only).

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
    run: Run[PMCSettings], memory: ResponseMemory, questions: Sequence[int]
) -> PruneBatch | None:
    """Which samples of `questions` need no further decoding, as `generate` asks for it.

    None if there is nothing to save. If the reward has no bound, or without `training.prune`,
    samples are cut only in waves: once one scores 0, those after it are left out.
    """
    pmc, task = run.method, run.task
    if pmc.selection_temperature > 0 or not (task.training.prune or task.training.wave):
        return None
    lower = reward_of(pmc.reward).bound
    prunes = task.training.prune and lower is not None
    if not (prunes or task.training.wave):
        return None
    score = cache(partial(score_sample, run))

    @cache
    def bound(question: int, tokens: Tokens) -> float:
        assert lower is not None
        settled = task.model.template.decode_settled(tokens)
        return lower(original_answer(run, question), settled)

    def prune(indices: Sequence[int], found: Responses) -> Bool[np.ndarray, "batch samples"]:
        scores, bounds = np.full(found.status.shape, np.inf), np.zeros(found.status.shape)
        remembered = np.full(len(scores), np.inf)
        asked = [questions[index] for index in indices]
        remembered[: len(asked)] = memory.score[asked]
        for row, j in np.argwhere(found.status[: len(asked)] == FINISHED).tolist():
            scores[row, j] = score(asked[row], tuple(found.tokens_of(row, j)))
        begun = (found.status < FINISHED) & (found.length > 0) & prunes
        for row, j in np.argwhere(begun[: len(asked)]).tolist():
            bounds[row, j] = bound(asked[row], tuple(found.tokens_of(row, j)))
        return cannot_be_selected(remembered, scores, bounds)

    return prune


def padded_to_step(
    run: Run[PMCSettings],
    questions: Sequence[int],
    scores: Float[np.ndarray, "questions samples"],
) -> tuple[UInt32[np.ndarray, " step"], Float[np.ndarray, "step samples"]]:
    """Question ids and scores, padded to the questions of a whole step: one shape for all."""
    count = run.task.training.questions_per_step
    ids, padded = np.zeros(count, np.uint32), np.zeros((count, scores.shape[1]))
    ids[: len(questions)], padded[: len(questions)] = questions, scores
    return ids, padded


def tokens_saved(
    responses: Sequence[Sequence[Sequence[int]]], whole: Bool[np.ndarray, "questions samples"]
) -> int:
    """How many tokens the cut samples lack, if they were as long as the whole ones on average."""
    lengths = np.array([len(tokens) for row in responses for tokens in row])
    whole = whole.reshape(-1)
    if not whole.any():
        return 0
    return round(float(np.maximum(lengths[whole].mean() - lengths[~whole], 0).sum()))
