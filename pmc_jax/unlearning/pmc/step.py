"""Algorithm 1 of the paper: sample, score, remember; then train.

`PMC.step_examples` visits a step's questions once and returns the responses to train on.
`training.loop.take_step` calls it, adds `retain_per_forget` retain pairs for each question, drawn
uniformly with replacement, and makes one AdamW update on `loss` + λ · `retain_term`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from pmc_jax.decoding import is_whole
from pmc_jax.model import to_devices
from pmc_jax.model.specs import Params
from pmc_jax.runtime.progress import speed_text
from pmc_jax.runtime.timing import timed
from pmc_jax.unlearning.beginnings import fact_places, forced_runs
from pmc_jax.unlearning.losses import Targets
from pmc_jax.unlearning.method import (
    Drawn,
    Example,
    Examples,
    Method,
    Run,
    StepExamples,
    Task,
    Tokens,
)
from pmc_jax.unlearning.offers import offered_refusals, scores_to_beat, with_offers
from pmc_jax.unlearning.pmc.memory import (
    ResponseMemory,
    empty_memory,
    needs_sampling,
    update_memory,
)
from pmc_jax.unlearning.pmc.objective import collapse_loss, retain_loss
from pmc_jax.unlearning.pmc.reward import reward_of, score_sample
from pmc_jax.unlearning.pmc.sampling import (
    original_answers,
    sample_limit,
    sample_responses,
    sampler,
)
from pmc_jax.unlearning.pmc.selection import select, selection_keys
from pmc_jax.unlearning.pmc.settings import PMCSettings
from pmc_jax.unlearning.savings.drafts import DRAFTS
from pmc_jax.unlearning.savings.pruning import tokens_saved
from pmc_jax.unlearning.savings.shapes import padded_to_step, run_shapes

Samples = Sequence[Sequence[Sequence[int]]]
"""`[question][sample][token]`."""


@dataclasses.dataclass(frozen=True)
class PMC(PMCSettings):
    __doc__ = PMCSettings.__doc__

    def examples_of(self, task: Task) -> Examples:
        """The forget questions, without any answer, and the retain pairs."""
        reward_of(self.reward)  # an error now rather than later
        return Examples(len(task.prompts), retain=task.retain)

    def prepare(self, task: Task, examples: Examples, params: Params) -> dict[str, Any]:
        """y0(q): the target model's greedy answers before the first step, and their fact words."""
        originals = original_answers(task, params, self.max_new_tokens)
        facts = {"facts": fact_places(task, originals)} if self.beginnings else {}
        return {"originals": originals, **facts}

    def initial_state(self, task: Task) -> ResponseMemory:
        """An empty memory of the best responses."""
        return empty_memory(len(task.prompts), task.training.max_length)

    def step_examples(
        self, run: Run[Any], state: Any, params: Params, step: int, questions: Sequence[int]
    ) -> StepExamples:
        """One visit of each of a step's questions q, before the gradient step on the objective.

        1. Sample x_1, …, x_n ~ p_θ(· | q), unless the remembered response already scores 0.
        2. Score s_i = 1 − r(x_i) against y0(q).
        3. Select x̂ and remember it, unless the remembered response has a lower score.
        4. Train on the remembered response, whether or not it was sampled in this step.

        With `beginnings`, which are not in the paper, the step also trains on responses that are
        forced to begin with the first words of y0. They are sampled anew at every visit and are
        not remembered.
        """
        seconds: dict[str, float] = {}
        visits = [visit(run, state, params, step, questions, seconds)]
        for forced in forced_runs(run, step, questions):
            empty = self.initial_state(run.task)
            visits.append(visit(forced, empty, params, step, questions, seconds))
        trained = [
            Example(one.prompts[i], one.memory.response(i)) for i in questions for one in visits
        ]
        memory, measures = visits[0].memory, step_measures(questions, visits)
        return StepExamples(trained, [], memory, measures, seconds, note(measures, seconds))

    @property
    def answers_per_question(self) -> int:
        """A response without a beginning, and one with each beginning."""
        return 1 + self.beginnings

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The first expectation of the objective."""
        return collapse_loss(forget)

    def retain_term(self, retain: Targets) -> Float[Array, ""]:
        """The second expectation of the objective."""
        return retain_loss(retain)

    def retain_weight_at(self, run: Run[Method], state: Any, step: int) -> float:
        """λ at a step: constant in the paper."""
        return run.at_step(step, self.retain_weight, self.final_retain_weight)

    @property
    def drawn(self) -> Drawn:
        """The responses that every step samples."""
        return Drawn(
            self.samples, sampler(self, ()), self.max_new_tokens, forced=self.beginnings > 0,
            drafts=DRAFTS,
        )  # fmt: skip

    def lines(self, run: Run[Any]) -> list[str]:
        """The shapes that will be compiled."""
        limits = [sample_limit(run, i) for i in range(len(run.task.prompts))]
        return run_shapes(run, limits).lines()


class Visit(NamedTuple):
    """The result of a visit of a step's questions.

    Attributes:
        prompts: the prompt of every question.
        memory: the best response to every question, including the responses of this visit.
        samples, scores: the samples of the questions that were sampled, and their scores.
    """

    prompts: Sequence[Tokens]
    memory: ResponseMemory
    samples: Samples
    scores: Float[np.ndarray, "questions samples"]


def visit(
    run: Run[PMCSettings],
    memory: ResponseMemory,
    params: Params,
    step: int,
    questions: Sequence[int],
    seconds: dict[str, float],
) -> Visit:
    """Sample these questions, score the samples, and remember the best ones.

    The time of each part is added to `seconds`. With `offer_refusals`, which is not in the paper,
    a refusal is one more candidate of each question.
    """
    asked = needs_sampling(memory, questions, always=run.method.keep_sampling)
    limit, score = partial(sample_limit, run), partial(score_sample, run)
    offers = offered_refusals(run, step, asked, limit, score)
    to_beat = dataclasses.replace(memory, score=scores_to_beat(memory.score, asked, offers))
    with timed(seconds, "sample"):
        samples = sample_responses(run, to_beat, params, step, asked)
    with timed(seconds, "score"):
        scores = score_samples(run, asked, samples)
        memory = remember_best(run, memory, step, asked, *with_offers(samples, scores, offers))
    return Visit(run.task.prompts, memory, samples, scores)


def score_samples(
    run: Run[PMCSettings], questions: Sequence[int], samples: Samples
) -> Float[np.ndarray, "questions samples"]:
    """The scores of all samples; infinity for a sample that was dropped (`savings`)."""
    stop_ids = run.task.model.template.stop_ids
    scores = np.full((len(questions), run.method.samples), np.inf)
    score = cache(partial(score_sample, run))
    for row, (i, own) in enumerate(zip(questions, samples, strict=True)):
        limit = sample_limit(run, i)
        for j, tokens in enumerate(own):
            if is_whole(tokens, limit, stop_ids):
                scores[row, j] = score(i, tuple(tokens))
    return scores


def remember_best(
    run: Run[PMCSettings],
    memory: ResponseMemory,
    step: int,
    questions: Sequence[int],
    samples: Samples,
    scores: Float[np.ndarray, "questions samples"],
) -> ResponseMemory:
    """Select one sample per question; remember it unless the old one has a lower score."""
    if not questions:
        return memory
    chosen = select_samples(run, step, questions, scores)
    return update_memory(
        memory,
        questions,
        [float(scores[row, j]) for row, j in enumerate(chosen)],
        [samples[row][j] for row, j in enumerate(chosen)],
    )


def select_samples(
    run: Run[PMCSettings],
    step: int,
    questions: Sequence[int],
    scores: Float[np.ndarray, "questions samples"],
) -> list[int]:
    """The index of the selected sample of each question."""
    temperature = run.method.selection_temperature
    if temperature == 0:
        return select(scores).tolist()
    ids, padded = padded_to_step(run, questions, scores)
    keys = selection_keys(run.sampling_key, step, to_devices(ids))
    return select(padded, temperature, keys)[: len(questions)].tolist()


def step_measures(questions: Sequence[int], visits: Sequence[Visit]) -> dict[str, int | float]:
    """The measures of sampling and selection in a step's line of `metrics.jsonl`.

    Scores and questions count only responses without a forced beginning. Tokens count all visits.
    """
    return {
        "mean_selected_score": float(np.mean(visits[0].memory.score[questions])),
        "questions_sampled": len(visits[0].samples),
        "tokens_sampled": sum(len(x) for one in visits for own in one.samples for x in own),
        "tokens_saved": sum(tokens_saved(one.samples, np.isfinite(one.scores)) for one in visits),
    }


def note(measures: Mapping[str, int | float], seconds: Mapping[str, float]) -> str:
    """A step's measures in words, for the progress line."""
    tokens = measures["tokens_sampled"]
    speed = speed_text(tokens, seconds["sample"]) if tokens else "none"
    return f"score {measures['mean_selected_score']:.2f}  sampling {speed}"
