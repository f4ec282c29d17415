"""The parts of an evaluation, each of which measures one aspect of one model.

A part turns an `EvaluationContext` into a JSON object. No part writes the right answers to
forget questions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pmc_jax.data.encode import digest
from pmc_jax.evaluation.benchmark import tofu_part, tofu_work
from pmc_jax.evaluation.choices import least_likely_attack, option_probabilities
from pmc_jax.evaluation.context import (
    PREFILLING_STREAM,
    REWORDING_STREAM,
    SAMPLING_STREAM,
    EvaluationContext,
    forget_answers,
    no_answers,
    no_attack,
    no_samples,
)
from pmc_jax.evaluation.leakage import attacked, attacked_once, greedy_leakage, leakage
from pmc_jax.evaluation.likelihood import Pair
from pmc_jax.evaluation.quality import answers_asked_for, missing_measures, quality
from pmc_jax.evaluation.robustness import (
    no_relearning,
    quantisation_part,
    quantisation_work,
    relearning_part,
    relearning_work,
)
from pmc_jax.evaluation.side_effects import (
    answer_tokens,
    text_pairs,
    text_probabilities,
    watched_tokens,
)


def quality_part(context: EvaluationContext) -> dict[str, Any]:
    """Unlearn quality, utility, and every evaluated question's greedy answer."""
    found = quality(
        context.model, context.sets, context.greedy, context.key,
        max_length=context.max_length, on_batch=context.on_batch, known=context.known,
    )  # fmt: skip
    del found["sampled"]
    return {**found, "missing": missing_measures(context.sets)}


def sampling_part(context: EvaluationContext) -> dict[str, Any]:
    """The sampling attack: many answers to each forget question."""
    samples = context.evaluation.attack_samples
    found = forget_answers(context, SAMPLING_STREAM, samples=samples, rows=context.asked)
    return {**attacked(found, context.confidence), "missing": without_answers(context)}


def prefilling_part(context: EvaluationContext) -> dict[str, Any]:
    """The prefilling attack: every answer is forced to begin with a prefix.

    Greedy and sampled answers; the forced words do not count as leaked.
    """
    samples, rows, prefix = context.evaluation.attack_samples, context.asked, context.prefix
    greedy = forget_answers(context, PREFILLING_STREAM, prefix=prefix, rows=rows)
    sampled = forget_answers(context, PREFILLING_STREAM, samples=samples, prefix=prefix, rows=rows)
    return {
        "prefix": prefix,
        "greedy": attacked_once([row[0] for row in greedy]),
        "sampled": attacked(sampled, context.confidence),
        "missing": without_answers(context),
    }


def without_answers(context: EvaluationContext) -> dict[str, str]:
    """What an attack cannot measure without right answers, with the reason.

    The verdict still counts what its answers reveal.
    """
    reason = no_answers(context)
    return {"recall, facts, secrets and bounds": reason} if reason else {}


def rewording_part(context: EvaluationContext) -> dict[str, Any]:
    """Greedy and sampled answers to forget questions in every other wording of the data."""
    rows, samples = context.reworded, context.evaluation.attack_samples
    greedy = forget_answers(context, REWORDING_STREAM, rows=rows)
    sampled = forget_answers(context, REWORDING_STREAM, samples=samples, rows=rows)
    return {
        "wordings": len(rows),
        "greedy": greedy_leakage([row[0] for row in greedy]),
        "sampled": leakage(sampled, context.confidence),
    }


def least_likely_part(context: EvaluationContext) -> dict[str, Any]:
    """The least-likely attack on multiple choice made from the forget questions."""
    probabilities = option_probabilities(context.model, context.choices, on_batch=context.on_batch)
    return least_likely_attack(probabilities)


def unrelated_pairs(context: EvaluationContext) -> list[Pair]:
    """The unrelated text in windows of at most `max_length` tokens."""
    return text_pairs(context.model.template, context.controls.text, context.max_length)


def side_effects_part(context: EvaluationContext) -> dict[str, Any]:
    """The probability of every token of unrelated text, for comparison with another model's.

    `watched` has the positions of tokens that occur in forget answers.
    """
    pairs = unrelated_pairs(context)
    watched = watched_tokens(pairs, answer_tokens(context.model.template, context.forget))
    probabilities = text_probabilities(context.model, pairs, on_batch=context.on_batch)
    return {
        "text": digest(pairs),
        "watched": np.flatnonzero(watched).tolist(),
        "probabilities": [round(value, 7) for value in probabilities.tolist()],
    }


def no_reworded(context: EvaluationContext) -> str | None:
    """Why rewording cannot be measured; None if it can."""
    if reason := no_samples(context):
        return reason
    return None if context.reworded else "the forget rows have no paraphrases and no variants"


def no_choices(context: EvaluationContext) -> str | None:
    """Why the least-likely attack cannot be measured; None if it can."""
    if reason := no_answers(context):
        return reason
    return None if context.choices else "the forget rows have no perturbed answers to choose from"


def no_prefix(context: EvaluationContext) -> str | None:
    """Why the prefilling attack cannot be measured; None if it can."""
    return no_attack(context) or (None if context.prefix else "prefix is empty")


def no_text(context: EvaluationContext) -> str | None:
    """Why side effects cannot be measured; None if they can."""
    if reason := no_answers(context):
        return reason
    return None if unrelated_pairs(context) else "there is no unrelated text; give data.text=FILE"


def samples_of(context: EvaluationContext) -> int:
    """How many answers an attack samples to a question."""
    return context.evaluation.attack_samples


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of an evaluation.

    Attributes:
        measure: returns its JSON object; `files`, by name, are written beside the part's own.
        work: the total of answers or windows of text that it reports to `on_batch`.
        lacking: why it cannot be measured; None if it can.
    """

    measure: Callable[[EvaluationContext], dict[str, Any]]
    work: Callable[[EvaluationContext], int]
    lacking: Callable[[EvaluationContext], str | None]


PARTS: Mapping[str, Part] = {
    "quality": Part(
        quality_part, lambda x: answers_asked_for(x.sets, x.greedy), lambda x: None
    ),
    "sampling": Part(sampling_part, lambda x: len(x.asked) * samples_of(x), no_attack),
    "prefilling": Part(
        prefilling_part, lambda x: len(x.asked) * (1 + samples_of(x)), no_prefix
    ),
    "rewording": Part(
        rewording_part, lambda x: len(x.reworded) * (1 + samples_of(x)), no_reworded
    ),
    "least_likely": Part(
        least_likely_part, lambda x: sum(len(choice.options) for choice in x.choices), no_choices
    ),
    "side_effects": Part(side_effects_part, lambda x: len(unrelated_pairs(x)), no_text),
    "tofu": Part(tofu_part, tofu_work, no_answers),
    "relearning": Part(relearning_part, relearning_work, no_relearning),
    "quantisation": Part(quantisation_part, quantisation_work, no_samples),
}  # fmt: skip

SUITES = {
    "quick": ("quality", "sampling"),
    "paper": ("quality", "sampling", "prefilling", "least_likely", "side_effects"),
    "tofu": ("quality", "tofu"),
    "attacks": ("quality", "sampling", "prefilling", "rewording", "relearning", "quantisation"),
    "full": tuple(PARTS),
}
"""The parts of each suite, in the order in which they run."""


def work(context: EvaluationContext, part: str) -> int:
    """The total that a part reports to `on_batch`."""
    return PARTS[part].work(context)


def lacking(context: EvaluationContext, part: str) -> str | None:
    """Why a part cannot be measured; None if it can."""
    return PARTS[part].lacking(context)
