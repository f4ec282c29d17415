"""How much of an answer a model completes by itself, given the words before.

Both measures look at the answer's tokens without the one that ends it, as
OpenUnlearning does. They need to know only which tokens are the model's greedy choice.
"""

import numpy as np
from jaxtyping import Bool


def exact_memorisation(greedy: Bool[np.ndarray, " tokens"]) -> float | None:
    """Share of tokens that are the greedy choice (Tirumala et al. 2022); None without tokens."""
    return float(np.mean(greedy)) if greedy.size else None


def extraction_strength(greedy: Bool[np.ndarray, " tokens"]) -> float:
    """1 − k/L with k the shortest prefix whose whole rest is greedy (Carlini et al. 2021).

    An answer of L tokens is never below 1/L: its last token alone counts as extracted,
    greedy or not, as in OpenUnlearning. Without tokens it is 0.
    """
    if not greedy.size:
        return 0.0
    wrong = np.flatnonzero(~greedy)
    prefix = int(wrong[-1]) + 1 if wrong.size else 0
    return 1 - min(prefix, greedy.size - 1) / greedy.size
