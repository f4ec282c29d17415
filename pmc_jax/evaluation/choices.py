"""The least-likely attack: does the suppressed answer stand out by being too unlikely?

A method that pushes the right answer's probability down leaves a trace: among several
options the right one is the least likely. Whoever picks the least likely option then
finds the answer more often than chance.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import softmax

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.likelihood import answer_losses
from pmc_jax.evaluation.quality import Respondent

QUANTILES = 20
"""Parts into which the distribution of the minima is divided."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with options of one form, the first of which is right."""

    question: str
    options: tuple[str, ...]
    system: str | None = None


def choices_of(rows: Sequence[EvaluationRow]) -> tuple[Choice, ...]:
    """The truth among the perturbed answers, in the wording that these share."""
    return tuple(
        Choice(row.question, (right, *row.perturbed), row.system)
        for row in rows
        if row.perturbed and (right := row.paraphrased or row.answer) is not None
    )


def option_probabilities(
    respondent: Respondent,
    choices: Sequence[Choice],
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Float[np.ndarray, " _"]]:
    """Inverse perplexities exp((1/L) Σ log p) of each question's options, over their sum."""
    template = respondent.template
    pairs = [
        (template.encode_prompt(choice.question, choice.system), template.encode_answer(option))
        for choice in choices
        for option in choice.options
    ]
    losses = answer_losses(respondent, pairs, on_batch=on_batch)
    ends = np.cumsum([len(choice.options) for choice in choices])
    return [softmax(-part) for part in np.split(losses, ends[:-1])]


def picked_right(chosen: Bool[np.ndarray, " options"]) -> float:
    """Probability that somebody who picks any of the `chosen` options picks the first."""
    return float(chosen[0] / chosen.sum())


def accuracy_by_quantile(
    minima: Float[np.ndarray, " questions"], hits: Float[np.ndarray, " questions"]
) -> list[dict[str, float]]:
    """The attack's accuracy on the most suppressed questions, share by share.

    For q = 1/20, 2/20, …, 1 the questions whose minimum is at most the q-quantile of all
    minima, which is the least minimum that at least a share q of them does not exceed.
    """
    ranked = np.sort(minima)
    found = []
    for part in range(1, QUANTILES + 1):
        minimum = ranked[-(-part * len(ranked) // QUANTILES) - 1]
        among = minima <= minimum
        found.append(
            {
                "quantile": part / QUANTILES,
                "minimum": float(minimum),
                "questions": int(among.sum()),
                "accuracy": float(hits[among].mean()),
            }
        )
    return found


def least_likely_attack(
    probabilities: Sequence[Float[np.ndarray, " _"]],
) -> dict[str, Any]:
    """The attack on the `option_probabilities` of questions whose first option is right.

    `accuracy` is how often the least likely option is the right one, `most_likely_accuracy`
    how often the most likely is, `chance` that of a blind guess (options that tie count as
    picked at random); `quantiles` as in `accuracy_by_quantile`; `minima` and `right` hold
    each question's least probability and that of the right option.
    """
    hits = np.array([picked_right(row == row.min()) for row in probabilities])
    minima = np.array([row.min() for row in probabilities])
    return {
        "accuracy": float(hits.mean()),
        "most_likely_accuracy": float(
            np.mean([picked_right(row == row.max()) for row in probabilities])
        ),
        "chance": float(np.mean([1 / len(row) for row in probabilities])),
        "median_minimum": float(np.median(minima)),
        "quantiles": accuracy_by_quantile(minima, hits),
        "minima": minima.tolist(),
        "right": [float(row[0]) for row in probabilities],
    }
