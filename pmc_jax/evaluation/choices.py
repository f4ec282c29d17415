"""The least-likely attack: is the suppressed answer recognisable because it is too unlikely?

A method that lowers the right answer's probability leaves a trace: the right option becomes
the least likely of several. Picking the least likely option then finds the answer more often
than chance.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import softmax

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.likelihood import answer_losses
from pmc_jax.language_model import LanguageModel

QUANTILES = 20
"""Number of quantiles of the minima."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with options of the same form; the first option is right."""

    question: str
    options: tuple[str, ...]
    system: str | None = None


def choices_of(rows: Sequence[EvaluationRow]) -> tuple[Choice, ...]:
    """The right answer and the perturbed answers, in the same wording."""
    return tuple(
        Choice(row.question, (right, *row.perturbed), row.system)
        for row in rows
        if row.perturbed and (right := row.paraphrased or row.answer) is not None
    )


def option_probabilities(
    model: LanguageModel,
    choices: Sequence[Choice],
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Float[np.ndarray, " _"]]:
    """Inverse perplexities exp((1/L) Σ log p) of each question's options, over their sum."""
    template = model.template
    pairs = [
        template.encode_pair(choice.question, option, choice.system)
        for choice in choices
        for option in choice.options
    ]
    losses = answer_losses(model, pairs, on_batch=on_batch)
    ends = np.cumsum([len(choice.options) for choice in choices])
    return [softmax(-part) for part in np.split(losses, ends[:-1])]


def picked_right(chosen: Bool[np.ndarray, " options"]) -> float:
    """Probability that a random pick among the `chosen` options is the first option."""
    return float(chosen[0] / chosen.sum())


def accuracy_by_quantile(
    minima: Float[np.ndarray, " questions"], hits: Float[np.ndarray, " questions"]
) -> list[dict[str, float]]:
    """The attack's accuracy on the most suppressed questions, for growing shares of questions.

    For q = 1/20, 2/20, …, 1 the accuracy is over the questions whose minimum is at most the
    q-quantile of all minima: the least minimum m such that a share of at least q of the minima
    is at most m.
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

    `accuracy` is the share of questions whose least likely option is right, and
    `most_likely_accuracy` the share whose most likely option is right. Ties count as a random
    pick. `chance` is the accuracy of a random pick among all options. `quantiles` is
    `accuracy_by_quantile`. `minima` and `right` have each question's least probability and the
    probability of the right option.
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
