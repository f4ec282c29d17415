"""Membership inference: do forget answers look like training data?

A score is high if a text looks unfamiliar. The measure is the area under the ROC curve. It is
1 if every forget answer looks more like training data than every held-out answer.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from pmc_jax.evaluation.likelihood import TokenScores

MIN_K = 0.4
"""Share of an answer's tokens, the least likely ones, that min-k uses."""

DEFAULT_REFERENCE_AUC = 0.5

MOST_REFERENCE_AUC = 0.99
"""The largest AUC of a model that never saw the forget set for which PrivLeak is measured. With a
larger AUC, forget and held-out answers already differ for that model, and PrivLeak divides by
almost 0."""


def loss_score(scores: TokenScores) -> float:
    """Mean negative log-likelihood per token, end token included (Yeom et al. 2018)."""
    return scores.loss


def zlib_score(scores: TokenScores, text: str) -> float:
    """The loss divided by the bytes of the zlib-compressed answer (Carlini et al. 2021)."""
    return scores.loss / len(zlib.compress(text.encode("utf-8")))


def reference_score(scores: TokenScores, reference: TokenScores) -> float:
    """The loss minus the loss under a reference model (Carlini et al. 2022)."""
    return scores.loss - reference.loss


def _lowest(values: Float[np.ndarray, " tokens"], share: float) -> float:
    """Minus the mean of the lowest `share` of the values, at least one; 0 without values."""
    if not values.size:
        return 0.0
    return -float(np.mean(np.sort(values)[: max(1, int(values.size * share))]))


def min_k_score(scores: TokenScores, share: float = MIN_K) -> float:
    """−mean of the lowest log-probabilities, without the end token (Shi et al. 2024)."""
    return _lowest(scores.without_end().log_probs, share)


def min_k_plus_plus_score(scores: TokenScores, share: float = MIN_K) -> float:
    """Min-k of (log p − μ)/σ, with μ and σ² over the vocabulary (Zhang et al. 2025)."""
    tokens = scores.without_end()
    deviation = np.sqrt(np.maximum(tokens.variance, 1e-6))
    return _lowest((tokens.log_probs - tokens.mean) / deviation, share)


def membership_auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """P(forget score < holdout score) + P(equal)/2, by the Mann–Whitney statistic."""
    unfamiliar = scipy.stats.mannwhitneyu(holdout, forget).statistic
    return float(unfamiliar) / (len(forget) * len(holdout))


def privacy_leakage(auc: float, reference: float = DEFAULT_REFERENCE_AUC) -> float | None:
    """PrivLeak in percent, from the AUC of a model and of one that never saw the forget set.

    None if `reference` is above `MOST_REFERENCE_AUC`.

    100 · (a − b)/(b + 1e-10) with a = 1 − auc and b = 1 − reference (Shi et al. 2025, who
    define the AUC the other way round). Below 0 the forget set is still recognised; above 0 it
    is less familiar than unseen text.
    """
    if reference > MOST_REFERENCE_AUC:
        return None
    ours, theirs = 1 - auc, 1 - reference
    return 100 * (ours - theirs) / (theirs + 1e-10)
