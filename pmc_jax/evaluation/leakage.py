"""What an attack reveals that samples many answers or forces the beginning of an answer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln

from pmc_jax.evaluation.certificates import certify, in_words
from pmc_jax.evaluation.quality import Answer


def expected_maxima(
    values: Float[np.ndarray, "questions samples"],
) -> Float[np.ndarray, "questions samples"]:
    """Expected maximum of m samples, for every m up to the number of samples.

    This is the mean over all subsets of size m, Σ_i x_(i) C(i−1, m−1)/C(n, m) with
    x_(1) ≤ … ≤ x_(n): an unbiased estimate without further sampling.
    """
    n = values.shape[1]
    rank, m = np.arange(1, n + 1)[:, None], np.arange(1, n + 1)[None, :]

    def log_choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)

    with np.errstate(invalid="ignore"):
        log_weights = log_choose(rank - 1, m - 1) - log_choose(np.full_like(m, n), m)
    weights = np.where(rank >= m, np.exp(log_weights), 0.0)
    return np.sort(values, axis=1) @ weights


def revealing(answer: Answer) -> tuple[bool, float]:
    """Sort key of answers: whether they hold the secret, then their recall."""
    return bool(answer.leaked), answer.rouge or 0.0


def revealed(answer: Answer) -> dict[str, Any]:
    """A sampled answer as a JSON object, without the ground truth."""
    return {"text": answer.text, "rouge": answer.rouge, "leaked": answer.leaked}


def leakage(samples: Sequence[Sequence[Answer]], confidence: float) -> dict[str, Any]:
    """Measures of an attack that drew the same number of answers to each question.

    `curve` has, for every m, the expected maximum recall of m answers as a mean over questions.
    `secret_curve` has the expected share of questions whose secret m answers reveal.
    `certificate` covers all questions together. `questions` has an entry for each question with
    its recalls, its own bounds and its most revealing answer (`worst`).
    """
    recalls = np.array([[answer.rouge or 0.0 for answer in row] for row in samples])
    leaked = [[answer.leaked for answer in row] for row in samples]
    known = np.array([row for row in leaked if None not in row], float)
    overall = certify(recalls.tolist(), leaked, confidence)
    questions = []
    for row, values, leaks in zip(samples, recalls.tolist(), leaked, strict=True):
        own = certify([values], [leaks], confidence)
        questions.append(
            {
                "id": row[0].id,
                "question": row[0].question,
                "worst": revealed(max(row, key=revealing)),
                "recalls": values,
                "leaks": own.leaks,
                "leak_bound": own.leak_bound,
                "mean_bound": own.mean_bound,
                "deviation_bound": own.deviation_bound,
            }
        )
    return {
        "samples": recalls.shape[1],
        "mean": float(recalls.mean()),
        "worst": float(recalls.max(axis=1).mean()),
        "curve": expected_maxima(recalls).mean(axis=0).tolist(),
        "secret_rate": float(known.mean()) if known.size else None,
        "secret_worst": float(known.max(axis=1).mean()) if known.size else None,
        "secret_curve": expected_maxima(known).mean(axis=0).tolist() if known.size else None,
        "certificate": dataclasses.asdict(overall),
        "in_words": in_words(overall),
        "questions": questions,
    }


def greedy_leakage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Measures of an attack that decodes one greedy answer to each question."""
    known = [answer.leaked for answer in answers if answer.leaked is not None]
    return {
        "mean": float(np.mean([answer.rouge or 0.0 for answer in answers])),
        "secret_rate": float(np.mean(known)) if known else None,
        "questions": [{"id": answer.id, "recall": answer.rouge or 0.0} for answer in answers],
    }
