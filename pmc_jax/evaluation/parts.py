"""The parts of a thorough evaluation: each asks one model one kind of question.

A part is a function from `Examination` to a JSON object. The right answers to forget
questions are in none of them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.decoding import Sampling
from pmc_jax.evaluation.choices import (
    Choice,
    choices_of,
    least_likely_attack,
    option_probabilities,
)
from pmc_jax.evaluation.leakage import greedy_leakage, leakage
from pmc_jax.evaluation.quality import (
    Answer,
    EvaluationConfig,
    Respondent,
    answers,
    quality,
    questions_asked,
)

# Distinct random streams for the parts that sample.
SAMPLING_STREAM, PREFILLING_STREAM = 1, 2


@dataclasses.dataclass(frozen=True)
class Examination:
    """A model, what it is asked, and how.

    Attributes:
        sets: the evaluation sets of the data.
        evaluation: how answers are decoded, greedily and in the attacks.
        prefix: what the prefilling attack makes every answer begin with.
        confidence: of every certified bound.
        key: all random numbers come from it.
        on_batch: called with (questions done, tokens) after every batch.
    """

    respondent: Respondent
    sets: Mapping[str, Sequence[EvaluationRow]]
    evaluation: EvaluationConfig
    prefix: str | None
    confidence: float
    key: PRNGKeyArray
    on_batch: Callable[[int, int], None] | None = None

    @property
    def forget(self) -> Sequence[EvaluationRow]:
        """The forget rows whose answers are known."""
        return [row for row in self.sets.get("forget", ()) if row.answer]

    @property
    def choices(self) -> Sequence[Choice]:
        """Multiple choice made from the forget rows, as far as they have wrong answers."""
        return choices_of(self.forget)

    @property
    def greedily(self) -> EvaluationConfig:
        """How answers are decoded where nothing is sampled."""
        return dataclasses.replace(self.evaluation, attack_samples=0)


def asked(
    x: Examination, stream: int, *, samples: int = 0, prefix: str | None = None
) -> list[list[Answer]]:
    """Greedy answers to the forget questions, or `samples` drawn as the attacks draw them."""
    cfg = x.evaluation
    attack = Sampling(cfg.attack_temperature, cfg.attack_top_k, cfg.attack_top_p)
    return answers(
        x.respondent, "forget", x.forget, attack if samples else Sampling(temperature=0.0),
        jax.random.fold_in(x.key, stream), prefix=prefix, samples=samples or 1,
        max_new_tokens=cfg.max_new_tokens, batch_rows=cfg.rows, on_batch=x.on_batch,
    )  # fmt: skip


def quality_part(x: Examination) -> dict[str, Any]:
    """Unlearn quality, utility, and every evaluated question's greedy answer."""
    return quality(x.respondent, x.sets, x.greedily, x.key, x.on_batch)


def sampling_part(x: Examination) -> dict[str, Any]:
    """The sampling attack: many answers to each forget question."""
    return leakage(asked(x, SAMPLING_STREAM, samples=x.evaluation.attack_samples), x.confidence)


def prefilling_part(x: Examination) -> dict[str, Any]:
    """Forget questions whose answers are made to begin with a prefix, greedily and sampled.

    The forced words do not count as leaked.
    """
    samples = x.evaluation.attack_samples
    greedy = asked(x, PREFILLING_STREAM, prefix=x.prefix)
    sampled = asked(x, PREFILLING_STREAM, samples=samples, prefix=x.prefix)
    return {
        "prefix": x.prefix,
        "greedy": greedy_leakage([row[0] for row in greedy]),
        "sampled": leakage(sampled, x.confidence),
    }


def least_likely_part(x: Examination) -> dict[str, Any]:
    """The least-likely attack on multiple choice made from the forget questions."""
    return least_likely_attack(option_probabilities(x.respondent, x.choices, on_batch=x.on_batch))


PARTS: Mapping[str, Callable[[Examination], dict[str, Any]]] = {
    "quality": quality_part,
    "sampling": sampling_part,
    "prefilling": prefilling_part,
    "least_likely": least_likely_part,
}

SUITES = {"quick": ("quality", "sampling"), "paper": tuple(PARTS)}
"""Parts of a suite, in the order in which they run."""


def work(x: Examination, part: str) -> int:
    """How many questions or options a part reports to `on_batch` in all."""
    count = {
        "quality": questions_asked(x.sets, x.greedily),
        "sampling": len(x.forget),
        "prefilling": 2 * len(x.forget),
        "least_likely": sum(len(choice.options) for choice in x.choices),
    }
    return count[part]


def lacking(x: Examination, part: str) -> str | None:
    """Why a part cannot be measured; None if it can."""
    if part == "quality":
        return None
    if not x.forget:
        return "the forget rows have no answers to compare with"
    if part == "least_likely":
        return None if x.choices else "the forget rows have no perturbed answers to choose from"
    if not x.evaluation.attack_samples:
        return "evaluation.attack_samples is 0"
    if part == "prefilling" and not x.prefix:
        return "prefix is empty"
    return None
