"""Visits with a forced beginning: an option that is not in the paper.

Collapse of p_θ(x | q) says little about p_θ(x | q, b): a response that is forced to begin with the
words b can go on with what the model still knows. So each visit can also have beginnings: the first
words of the original answer y0 become part of the prompt, and the response that follows them is
sampled, scored against the rest of y0, selected and trained on. The forced words carry no loss.
"""

import dataclasses
from collections.abc import Sequence

import jax
from jaxtyping import PRNGKeyArray

from pmc_jax.data.batches import beginning_draw
from pmc_jax.text.words import word_spans
from pmc_jax.unlearning.method import Run
from pmc_jax.unlearning.pmc.settings import PMCSettings

BEGINNINGS_STREAM = 3


def divided_answer(answer: str, share: float) -> tuple[str, str]:
    """The first words of an answer and the rest of it, at least one word each.

    An answer of a single word has no first words.

    Args:
        share: where the answer is divided, in [0, 1); a uniform share makes all places equally
            likely.
    """
    starts = [start for start, _, _ in word_spans(answer)][1:]
    if not starts:
        return "", answer
    start = starts[int(share * len(starts))]
    return answer[:start].rstrip(), answer[start:]


def with_beginnings(
    run: Run[PMCSettings], step: int, number: int, questions: Sequence[int]
) -> Run[PMCSettings]:
    """The run in which the prompts of these questions end with the first words of y0.

    Its original answers are what is left of y0. A beginning depends on the seed, the step, its
    number and the question. A question stays as it is if `training.max_length` has no room for it.
    """
    task, originals = run.task, run.prepared["originals"]
    prompts, rests = list(task.prompts), list(originals)
    for i in questions:
        begun, rest = divided_answer(
            originals[i], beginning_draw(task.seed, step, number, question=i)
        )
        forced = [*prompts[i], *task.model.template.encode_prefix(begun)] if begun else prompts[i]
        if len(forced) + 2 <= task.training.max_length:
            prompts[i], rests[i] = forced, rest
    return dataclasses.replace(
        run,
        task=dataclasses.replace(task, prompts=prompts),
        prepared={**run.prepared, "originals": rests},
    )


def sampling_key(run: Run[PMCSettings], number: int) -> PRNGKeyArray:
    """The RNG key of a visit's samples: `number` is 0 without a beginning, and 1, 2, … with one."""
    return jax.random.fold_in(run.task.key(BEGINNINGS_STREAM), number) if number else run.task.key()
