"""Relearning as a Markov chain on small state spaces, computed with SciPy from its definition.

Nothing is sampled.
"""

import itertools

import numpy as np
from scipy.stats import multinomial


def states(N: int, K: int) -> np.ndarray:
    """Every count vector of N samples in K categories, [states, K]."""
    rows = [c for c in itertools.product(range(N + 1), repeat=K) if sum(c) == N]
    return np.array(rows)


def from_distribution(probs: np.ndarray, N: int) -> np.ndarray:
    """P(X = x) for X ~ Multinomial(N, probs), over `states`."""
    return multinomial.pmf(states(N, len(probs)), N, probs)


def transition(N: int, K: int, retain: np.ndarray | None = None) -> np.ndarray:
    """P(X_{t+1} = y | X_t = x) over `states`, with π_t = (x + R) / (N + M)."""
    counts = states(N, K)
    retain = np.zeros(K, int) if retain is None else retain
    fitted = (counts + retain) / (N + retain.sum())
    return np.stack([from_distribution(p, N) for p in fitted])


def law(probs: np.ndarray, N: int, rounds: int, retain: np.ndarray | None = None) -> np.ndarray:
    """P(X = x) over `states` for the samples of round `rounds` ≥ 1, from π_0 = `probs`."""
    step = transition(N, len(probs), retain)
    return from_distribution(probs, N) @ np.linalg.matrix_power(step, rounds - 1)
