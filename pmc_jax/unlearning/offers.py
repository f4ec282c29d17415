"""A refusal as one more candidate of each selection: an option that is not in the paper.

A model that has only learned to answer never samples "I don't know", so its answers collapse onto
other assertions, or onto remains of the old ones. With `offer_refusals`, a visit of a question
draws one of the data set's refusals, which is scored and selected like a sample. Samples win ties.
So it is selected as long as samples keep more of y0 than it has; once the model refuses in its
own words, the samples take over.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from pmc_jax.data.batches import offer_draw
from pmc_jax.unlearning.baselines.refusals import DEFAULT_REFUSAL
from pmc_jax.unlearning.beginnings import ForcedRun
from pmc_jax.unlearning.method import Method, Run


class Offers(NamedTuple):
    """A refusal for each question of a visit: its tokens and its score."""

    tokens: Sequence[Sequence[int]]
    scores: Float[np.ndarray, " questions"]


def offered_refusal(run: Run[Method], step: int, question: int) -> list[int]:
    """The tokens of the refusal that a visit offers, as they follow the prompt of `run`."""
    task, template = run.task, run.task.model.template
    texts = task.refusals or (DEFAULT_REFUSAL,)
    number, begun = 0, ""
    if isinstance(run, ForcedRun):
        number, begun = run.number, run.begun.get(question, "")
    text = texts[offer_draw(task.seed, step, number, question, len(texts))]
    tokens = template.encode_answer(text)
    if begun:
        before, whole = template.encode_prefix(begun), template.encode_prefix(f"{begun} {text}")
        if whole[: len(before)] == before:
            tokens = [*whole[len(before) :], template.end_id]
    return tokens


def offered_refusals(
    run: Run[Any],
    step: int,
    questions: Sequence[int],
    limit: Callable[[int], int],
    score: Callable[[int, tuple[int, ...]], float],
) -> Offers | None:
    """The refusals that a visit of these questions offers; None without `offer_refusals`.

    Args:
        limit: the most tokens of a question's responses; a longer refusal is cut.
        score: a response's score, from its question and its tokens.
    """
    if not run.method.offer_refusals:
        return None
    tokens = [offered_refusal(run, step, i)[: limit(i)] for i in questions]
    scores = [score(i, tuple(own)) for i, own in zip(questions, tokens, strict=True)]
    return Offers(tokens, np.array(scores))


def scores_to_beat(
    remembered: Float[np.ndarray, " questions"], questions: Sequence[int], offers: Offers | None
) -> Float[np.ndarray, " questions"]:
    """The highest score at which a sample can still be selected, for every question.

    The lower of the remembered score and that of the refusal, which `questions` have.
    """
    if offers is None:
        return remembered
    found, asked = remembered.copy(), list(questions)
    found[asked] = np.minimum(found[asked], offers.scores)
    return found


def with_offers(
    samples: Sequence[Sequence[Sequence[int]]],
    scores: Float[np.ndarray, "questions samples"],
    offers: Offers | None,
) -> tuple[Sequence[Sequence[Sequence[int]]], Float[np.ndarray, "questions candidates"]]:
    """The candidates of each question and their scores: its samples, then its refusal if any."""
    if offers is None:
        return samples, scores
    candidates = [[*own, offer] for own, offer in zip(samples, offers.tokens, strict=True)]
    return candidates, np.column_stack([scores, offers.scores])
