"""Visits with a forced beginning: an option of PMC that is not in the paper.

Collapse of p_θ(x | q) says little about p_θ(x | q, b): a response that is forced to begin with the
words b can go on with what the model still knows. So each visit can also have beginnings: the first
words of the original answer y0 become part of the prompt, and the response that follows them is
sampled, scored against the rest of y0, selected and trained on. The forced words carry no loss.
Half of the beginnings end right before a word that carries a fact, where y0 would give it away.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from jaxtyping import PRNGKeyArray

from pmc_jax.data.batches import beginning_draw
from pmc_jax.text.facts import background_of, fact_spans, facts_of
from pmc_jax.text.words import word_spans
from pmc_jax.unlearning.method import Method, Run, Task

BEGINNINGS_STREAM = 3


@dataclasses.dataclass(frozen=True)
class ForcedRun(Run[Method]):
    """A run whose prompts end with the first words of y0, and whose originals are the rest of y0.

    Attributes:
        number: which of a visit's beginnings it has, from 1; the samples of each have RNG keys of
            their own.
        begun: the first words of y0 that the prompt of a question ends with, by question.
    """

    number: int = 1
    begun: Mapping[int, str] = dataclasses.field(default_factory=dict)

    forced: ClassVar[bool] = True

    @property
    def sampling_key(self) -> PRNGKeyArray:
        """The RNG key of the samples after this beginning."""
        return jax.random.fold_in(self.task.key(BEGINNINGS_STREAM), self.number)


def divided_answer(answer: str, share: float, facts: Sequence[int] = ()) -> tuple[str, str]:
    """The first words of an answer and the rest of it, at least one word each.

    An answer of a single word has no first words.

    Args:
        share: where the answer is divided, in [0, 1). A uniform share makes all places between
            words equally likely, and all places in `facts` equally likely in half of the cases.
        facts: where the fact words begin that are not the first word.
    """
    starts: Sequence[int] = [start for start, _, _ in word_spans(answer)][1:]
    if not starts:
        return "", answer
    if facts:
        starts, share = (facts, 2 * share) if share < 0.5 else (starts, 2 * share - 1)
    start = starts[int(share * len(starts))]
    return answer[:start].rstrip(), answer[start:]


def fact_places(task: Task, originals: Sequence[str]) -> list[list[int]]:
    """Where the fact words of each original answer begin, except an answer's first word.

    Fact words are neither in the question nor common in the retain answers (`text.facts`).
    """
    template = task.model.template
    known = background_of(originals, [template.decode(pair.answer) for pair in task.retain])
    questions = [row.question for row in task.questions] or [""] * len(originals)
    found = []
    for answer, question in zip(originals, questions, strict=True):
        first = min((start for start, _, _ in word_spans(answer)), default=0)
        spans = fact_spans(facts_of(answer, question, known), answer)
        found.append([start for start, _ in spans if start > first])
    return found


def with_beginnings(run: Run[Any], step: int, number: int, questions: Sequence[int]) -> ForcedRun:
    """The run in which the prompts of these questions end with the first words of y0.

    Its original answers are what is left of y0. A beginning depends on the seed, the step, its
    number and the question. A question stays as it is if `training.max_length` has no room for it.
    """
    task, originals = run.task, run.prepared["originals"]
    prompts, rests, words = list(task.prompts), list(originals), {}
    for i in questions:
        begun, rest = divided_answer(
            originals[i],
            beginning_draw(task.seed, step, number, question=i),
            run.prepared["facts"][i],
        )
        forced = [*prompts[i], *task.model.template.encode_prefix(begun)] if begun else prompts[i]
        if len(forced) + 2 <= task.training.max_length:
            prompts[i], rests[i], words[i] = forced, rest, begun
    return ForcedRun(
        method=run.method,
        task=dataclasses.replace(task, prompts=prompts),
        examples=run.examples,
        prepared={**run.prepared, "originals": rests},
        number=number,
        begun=words,
    )


def forced_runs(run: Run[Any], step: int, questions: Sequence[int]) -> list[Run[Any]]:
    """The run with each of the beginnings that `method.beginnings` asks for: by default none."""
    numbers = range(1, run.method.beginnings + 1)
    return [with_beginnings(run, step, number, questions) for number in numbers]
