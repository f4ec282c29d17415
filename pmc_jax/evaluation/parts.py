"""The parts of a thorough evaluation: each asks one model one kind of question.

A part makes a JSON object out of an `Examination`. The right answers to forget questions
are in none of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pmc_jax.data.encode import digest
from pmc_jax.evaluation.aftermath import (
    no_relearning,
    relearning_part,
    relearning_work,
    rounding_part,
    rounding_work,
)
from pmc_jax.evaluation.benchmark import tofu_part, tofu_work
from pmc_jax.evaluation.choices import least_likely_attack, option_probabilities
from pmc_jax.evaluation.examination import (
    PREFILLING_STREAM,
    REWORDING_STREAM,
    SAMPLING_STREAM,
    Examination,
    asked,
    no_answers,
    no_samples,
)
from pmc_jax.evaluation.leakage import greedy_leakage, leakage
from pmc_jax.evaluation.likelihood import Pair
from pmc_jax.evaluation.quality import missing_measures, quality, questions_asked
from pmc_jax.evaluation.side_effects import (
    answer_tokens,
    text_pairs,
    text_probabilities,
    watched_tokens,
)


def quality_part(x: Examination) -> dict[str, Any]:
    """Unlearn quality, utility, and every evaluated question's greedy answer."""
    found = quality(x.respondent, x.sets, x.greedily, x.key, x.on_batch)
    return {**found, "missing": missing_measures(x.sets)}


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


def rewording_part(x: Examination) -> dict[str, Any]:
    """The forget questions in every other wording that the data has, greedily and sampled."""
    rows = x.reworded
    greedy = asked(x, REWORDING_STREAM, rows=rows)
    sampled = asked(x, REWORDING_STREAM, samples=x.evaluation.attack_samples, rows=rows)
    return {
        "wordings": len(rows),
        "greedy": greedy_leakage([row[0] for row in greedy]),
        "sampled": leakage(sampled, x.confidence),
    }


def least_likely_part(x: Examination) -> dict[str, Any]:
    """The least-likely attack on multiple choice made from the forget questions."""
    return least_likely_attack(option_probabilities(x.respondent, x.choices, on_batch=x.on_batch))


def unrelated_pairs(x: Examination) -> list[Pair]:
    """The unrelated text in windows that the model can take."""
    return text_pairs(x.respondent.template, x.controls.text, x.respondent.max_length)


def side_effects_part(x: Examination) -> dict[str, Any]:
    """The probability of every token of unrelated text, to be held against another model's.

    `watched` are the places of tokens that occur in forget answers.
    """
    pairs = unrelated_pairs(x)
    watched = watched_tokens(pairs, answer_tokens(x.respondent.template, x.forget))
    probabilities = text_probabilities(x.respondent, pairs, on_batch=x.on_batch)
    return {
        "text": digest(pairs),
        "watched": np.flatnonzero(watched).tolist(),
        "probabilities": [round(value, 7) for value in probabilities.tolist()],
    }


def no_reworded(x: Examination) -> str | None:
    """Why nothing is asked in other words; None if it is."""
    if reason := no_samples(x):
        return reason
    return None if x.reworded else "the forget rows have no paraphrases and no variants"


def no_choices(x: Examination) -> str | None:
    """Why there is no multiple choice; None if there is."""
    if reason := no_answers(x):
        return reason
    return None if x.choices else "the forget rows have no perturbed answers to choose from"


def no_prefix(x: Examination) -> str | None:
    """Why no answer is made to begin with anything; None if it is."""
    return no_samples(x) or (None if x.prefix else "prefix is empty")


def no_text(x: Examination) -> str | None:
    """Why side effects cannot be measured; None if they can."""
    if reason := no_answers(x):
        return reason
    return None if unrelated_pairs(x) else "there is no unrelated text; give data.text=FILE"


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of an evaluation.

    Attributes:
        measure: gives its JSON object; `files`, by name, are written beside the part's own.
        work: how many questions, answers or pieces of text it reports to `on_batch` in all.
        lacking: why it cannot be measured; None if it can.
    """

    measure: Callable[[Examination], dict[str, Any]]
    work: Callable[[Examination], int]
    lacking: Callable[[Examination], str | None]


PARTS: Mapping[str, Part] = {
    "quality": Part(
        quality_part, lambda x: questions_asked(x.sets, x.greedily), lambda x: None
    ),
    "sampling": Part(sampling_part, lambda x: len(x.forget), no_samples),
    "prefilling": Part(prefilling_part, lambda x: 2 * len(x.forget), no_prefix),
    "rewording": Part(rewording_part, lambda x: 2 * len(x.reworded), no_reworded),
    "least_likely": Part(
        least_likely_part, lambda x: sum(len(choice.options) for choice in x.choices), no_choices
    ),
    "side_effects": Part(side_effects_part, lambda x: len(unrelated_pairs(x)), no_text),
    "tofu": Part(tofu_part, tofu_work, no_answers),
    "relearning": Part(relearning_part, relearning_work, no_relearning),
    "rounding": Part(rounding_part, rounding_work, no_samples),
}  # fmt: skip

SUITES = {
    "quick": ("quality", "sampling"),
    "paper": ("quality", "sampling", "prefilling", "least_likely", "side_effects"),
    "tofu": ("quality", "tofu"),
    "attacks": ("quality", "sampling", "prefilling", "rewording", "relearning", "rounding"),
    "full": tuple(PARTS),
}
"""Parts of a suite, in the order in which they run."""


def work(x: Examination, part: str) -> int:
    """How much a part reports to `on_batch` in all."""
    return PARTS[part].work(x)


def lacking(x: Examination, part: str) -> str | None:
    """Why a part cannot be measured; None if it can."""
    return PARTS[part].lacking(x)
